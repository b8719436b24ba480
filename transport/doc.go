// Package transport is the contract by which the coordination server reaches a
// node agent. A transport's only product is a byte stream; what runs over it
// does not know which transport carries it. Package unix serves the server's own
// machine, package ssh a machine with an OpenSSH server; package transporttest
// holds the suite that all of them pass.
//
// Nothing about nodes, workspaces or HTTP may enter here.
package transport
