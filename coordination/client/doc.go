// Package client is the only client of the coordination server; the CLI and the
// gateway both go through it. Client holds the server's services and Guest those
// of one workspace, as generated. Around them stand what every caller would
// otherwise write again: a command that survives a lost link (process.go,
// attach.go), waiting for an operation (wait.go) and copying files (copy*.go).
//
// Its subfolders hold what runs on the user's own machine. What comes from a
// workspace is untrusted here: sizes are bounded and no name from it decides
// where on this machine something is written.
//
// Nothing here reads flags, files of configuration or the environment, and
// nothing prints.
package client
