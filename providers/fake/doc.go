// Package fake is a provider in this process, for tests of what stands above
// providers. Its instances are guests that run as goroutines; its volumes are
// folders; its machine is a value, so that a "restarted" process is a new
// Provider on the same Machine. Calls can be made to fail, to wait and to leave
// half-made instances, and instances can die.
//
// Its capabilities are those that Probe announces: a test switches them off, and
// those of memory, which a goroutine cannot keep, on.
//
// It passes the suite in providertest. What it does not do is isolate: a guest's
// commands are this machine's own processes.
package fake
