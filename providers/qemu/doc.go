// Package qemu makes workspaces that are virtual machines: QEMU with KVM where
// that runs, and else with its own translator.
//
// A machine has two disks of its own. One is an overlay on the image's, which all
// machines of that image share and nobody writes to; it ends with the instance.
// The other is the volume with /workspace and the guest's folder; it ends with
// the workspace. A container image is booted directly, with a kernel of the node
// and an initramfs that is made here and has the guest as its first program. A
// disk image boots by itself, and a NoCloud seed brings the guest into it.
//
// QEMU runs as a user of its own under a root agent, in its own session and
// control groups, so that it outlives the agent. All files and sockets are opened
// by the agent and handed over as descriptors: QEMU needs no path of ours. What
// an agent must know of it lies in a record beside the instance, and a process is
// believed to be that QEMU only when boot, process id and start time agree.
//
// docs/providers-qemu.md says what this isolates and what it does not.
package qemu
