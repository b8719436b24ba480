//go:build linux

package native

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/network"
)

// idsPerInstance is the size of an instance's range under a root agent.
const idsPerInstance = host.IDsPerInstance

// machine is what this process may do here.
type machine struct {
	root bool // the real root, who can hand out ids, networks and limits
	// idBase and idSlots: the pool of ranges for a root agent.
	idBase, idSlots uint32
	uid, gid        uint32
	iptables        string // "" when absent
	mounts          string // the file that lists them
	kernel          string
	// mapped is false for a root that cannot map the pool, being itself inside a
	// user namespace.
	mapped bool
}

func thisMachine() machine {
	m := machine{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), mounts: "/proc/self/mounts"}
	m.root = m.uid == 0
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if m.root {
		pool, mapped := host.RootIDs()
		m.idBase, m.idSlots, m.mapped = pool.Base, pool.Slots, mapped
		m.iptables = network.FindIPTables()
	}
	return m
}
