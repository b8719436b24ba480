// Package lxc makes workspaces of LXC containers: one container an instance, on an
// overlay over an image that all instances of it share, in a user namespace with a
// range of ids of its own, joined to a bridge.
//
// The provider does all that can be done without liblxc: folders, layers, limits,
// network, config. For the rest it runs the program vendetta-lxc, one request at a
// time, because liblxc forks and needs cgo. What the two say is in package helper;
// nothing here links liblxc.
//
// Containers outlive the agent, under a monitor process of liblxc's. What an agent
// must know of them lies in a record beside the instance, and a process is
// believed to be a container's first only when boot, process id and start time
// all agree. Mounts of a container exist in the mount namespace of its monitor
// alone, so that nothing is left of them when it ends, however it ends.
//
// docs/providers-lxc.md says what this isolates and what it does not.
package lxc
