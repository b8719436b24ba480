//go:build linux

// Command soak lets a server, a node agent and guests work through many commands,
// file operations and short-lived workspaces, and fails when what they hold
// (memory, descriptors, threads, processes, mounts, containers, files) has grown
// by more than a fixed slack. It brings up all it needs in a folder of its own
// and takes it down again.
package main
