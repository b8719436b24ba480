// Package clienttest is a coordination server in memory, guests included, for the
// tests of what stands above the client: the client itself and the gateway. It
// speaks the real wire over pipes that a test can cut, and keeps the promises of
// the contract that callers rely on; commands are Go functions.
package clienttest
