// Package boot makes the guest the first process of a virtual machine: it loads
// the drivers that the initramfs holds, mounts the machine's disks, sets up its
// network and steps into the image's root file system, where the guest then
// serves as it does in a container.
//
// What a provider must tell a machine lies on a small read-only disk, the seed.
// Disks are told apart by their serial numbers, ports by their names.
//
// Root inside is the virtual machine's own root with all capabilities: the
// machine is the boundary, and nothing of the node is behind them.
package boot
