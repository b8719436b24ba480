// Package coordination is the domain of the server: nodes, workspaces and
// operations, the pure reconciler, and the dispatcher that carries accepted
// changes to the node agents. It declares the Dialer and Installer that it
// needs; cmd/vendetta supplies them. How calls arrive is the business of
// package httpapi.
package coordination
