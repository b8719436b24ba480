// Package docker drives Docker containers by the engine's API, from version
// 20.10 (API 1.41) on; the user of the agent needs access to its socket, which
// membership in the group docker gives, and no more.
//
// An instance is one container named vendetta-ID, with the guest's program as
// its first process, run as the container's root; the image's entrypoint and
// command are ignored, its environment is kept, its user is the one that the
// guest runs commands as. Two volumes, vendetta-ID-workspace and
// vendetta-ID-state, hold /workspace and the guest's own folder and outlive the
// container. The folder of the guest's link lies below Options.StateDir.
//
// # Copies
//
// A snapshot is an image, of the root, and a pair of volumes; a fork and a restored
// instance are made of the same. The volumes are copied through the engine while
// the instance is paused, between containers that never run. The order of the
// steps is such that what is whole can be told from what is not by its names
// alone: mend removes the one, or puts back what was to be replaced, after a
// process that died at its work.
//
// # Images
//
// Store is the engine's images. The engine is not ours alone, so that nothing is
// pruned but what was made here.
//
// # Limits
//
// Where a spec says nothing an instance gets half of the machine's memory (and
// no swap beside it), all of its processors, and 4096 processes and threads.
//
// # Hardening
//
// Docker's default capabilities less NET_RAW, MKNOD, AUDIT_WRITE, SETPCAP and
// SETFCAP; no-new-privileges, so that sudo does not work inside; the engine's
// default seccomp (and AppArmor) profile; no host network, no devices, never the
// engine's socket. Whoever may use the engine's socket is root on the machine:
// that is Docker's nature, and a reason to give the node agent a machine or a
// rootless engine of its own.
//
// Workspaces share Docker's default bridge network: they reach the outside and,
// unless the engine is configured with "icc": false, one another's addresses.
package docker
