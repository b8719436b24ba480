// Package coordination is the domain of the server: nodes, workspaces and
// operations, the pure reconciler, and the dispatcher that carries accepted
// changes to the node agents. It declares the Dialer and Installer that it
// needs; cmd/vendetta supplies them. How calls arrive is the business of
// package httpapi.
//
// A change is accepted in one transaction (intent, idempotency key, generation,
// audit row), then answered, then dispatched. Each node has a link: a watch that
// keeps its lease and brings its reports, connections for control, guests and
// bulk, and a dispatcher. What should be lies in the store, what is in the last
// reports; Reconcile compares the two. A node that is lost makes its workspaces
// unknown and changes nothing else.
package coordination
