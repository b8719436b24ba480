// Package install puts the node agent onto a machine and takes it off again,
// over a connection that somebody else made: it asks what machine it is, uploads
// the programs that differ, leaves the server's public key, and starts the
// agent. Everything may be repeated; a repeat is a repair.
//
// On the machine it runs short POSIX shell scripts and needs uname, mktemp and
// sha256sum, which every Linux has. Nothing there is trusted: answers are bounded
// and checked.
package install
