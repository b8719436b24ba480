// Package providertest is the suite that every provider passes. It holds a driver
// to what the comments in package providers promise: the life of an instance, the
// repetition of every call, what a new process finds, the stream to the guest,
// what is kept and what is removed, and what an instance is kept from.
//
// A driver joins by a Harness in a test of its own; see package fake's. The guest
// inside is the real one, reached as a node agent reaches it.
package providertest
