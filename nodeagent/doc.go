// Package nodeagent is the program on a node. It brings workspaces to the state
// that a server wants (workspace.go, steps.go), writes down what it was told
// before it acts (journal.go), keeps one link to each running guest and passes
// the guest's calls through it (link.go), and reports what the machine has and
// what runs on it (report.go). Several servers may share one agent: everything
// is kept by the id of the server that a call names.
//
// Instances outlive the agent. After a crash or a reboot it finds out what is,
// goes on with what it was told, and starts again what should run.
//
// The rest is the agent as a daemon: a supervisor that starts it again
// (supervise.go), the way to start and stop that (daemon.go), and the stdio
// bridge for hosts whose sshd forbids forwarding (connect.go).
//
// What happens inside an instance is the guest's business, in package guest; how
// instances are made is the providers'. Nothing a guest says is trusted here.
package nodeagent
