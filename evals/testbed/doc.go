// Package testbed starts the real things that tests and benchmarks run against:
// OpenSSH servers with keys and a config of their own, and networks of
// namespaces whose links can be cut. Everything is ended by its process id or
// name, and nothing on the machine outside its own folders is changed.
package testbed
