//go:build linux

// Command bench measures vendetta beside what its users would use instead, in
// turn and in one run, and prints one table. It brings up all that it measures
// (OpenSSH servers, a server, nodes, workspaces, containers) in folders of its
// own, and takes all of it down again. Numbers are for reading: no time that was
// measured makes it fail.
//
// Nothing here is imported by anything; nothing here may be needed by a test.
package main
