// Package native makes workspaces of nothing but the Linux kernel: a user
// namespace and mount, pid, ipc, uts, cgroup and network namespaces around the
// guest, with the machine's own system folders read-only inside. Nothing has to
// be installed, and an ordinary user may run it.
//
// An instance's life takes two programs. The node agent prepares folders, limits
// and network and clones a process into fresh namespaces; that process runs
// [Init], which builds the root file system from the inside, gives up what it may
// do and becomes the guest. The agent itself never enters an instance and never
// opens, follows or runs a path that a workspace controls.
//
// Guests outlive the agent. What an agent must know of them lies in a record
// beside the instance, and a process is believed to be a guest only when boot,
// process id and start time all agree.
//
// docs/providers-native.md says what this isolates and what it does not.
package native
