// Package providertest is the suite that every provider passes. It holds a driver
// to what the comments in package providers promise: the life of an instance, the
// repetition of every call, what a new process finds, the stream to the guest,
// what is kept and what is removed, and what an instance is kept from.
//
// Run holds it to the optional interfaces too: where Probe announces one, its part
// runs, and elsewhere its calls must refuse and change nothing. RunCycles counts
// what many lives of a workspace leave on the machine, and RunImages holds a store
// of images to providers.Images.
//
// A driver joins by a Harness in a test of its own; see package fake's. The guest
// inside is the real one, reached as a node agent reaches it.
package providertest
