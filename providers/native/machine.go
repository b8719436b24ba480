//go:build linux

package native

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// idsPerInstance is the size of an instance's range of user and group ids under
// a root agent: all 16-bit ids, nobody (65534) included.
const idsPerInstance = 65536

// The pool of ids that a root agent hands out when /etc/subuid gives root none.
// systemd's list of well-known ranges (UIDS-GIDS.md) leaves 1879048192 to
// 2147483647 unused.
const (
	defaultIDBase  = 1879048192
	defaultIDCount = 268435456
)

// machine is what this process may do here.
type machine struct {
	root bool // the real root, who can hand out ids, networks and limits
	// idBase and idSlots: the pool of ranges for a root agent.
	idBase, idSlots uint32
	uid, gid        uint32
	iptables        string // "" when absent
	mounts          string // the file that lists them
	bootID          string
	kernel          string
	// mapped is false for a root that cannot map the pool, being itself inside a
	// user namespace.
	mapped bool
}

func thisMachine() machine {
	m := machine{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), mounts: "/proc/self/mounts"}
	m.root = m.uid == 0
	if raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		m.bootID = strings.TrimSpace(string(raw))
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if m.root {
		subuid, _ := os.ReadFile("/etc/subuid") // absent: the default
		m.idBase, m.idSlots = idPool(string(subuid))
		own, _ := os.ReadFile("/proc/self/uid_map") // unreadable: nothing is mapped
		m.mapped = covers(string(own), m.idBase, m.idSlots*idsPerInstance)
		for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
			if path, err := exec.LookPath(dir + "/iptables"); err == nil {
				m.iptables = path
				break
			}
		}
	}
	return m
}

// idPool is root's own entry of /etc/subuid where that holds at least one range.
func idPool(subuid string) (base, slots uint32) {
	lines := bufio.NewScanner(strings.NewReader(subuid))
	for lines.Scan() {
		f := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(f) != 3 || (f[0] != "root" && f[0] != "0") {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 31)
		count, err2 := strconv.ParseUint(f[2], 10, 31)
		if err1 == nil && err2 == nil && start > 0 && count >= idsPerInstance {
			return uint32(start), uint32(count / idsPerInstance)
		}
	}
	return defaultIDBase, defaultIDCount / idsPerInstance
}

// covers says whether a uid_map holds count ids from base.
func covers(uidMap string, base, count uint32) bool {
	lines := bufio.NewScanner(strings.NewReader(uidMap))
	for lines.Scan() {
		var inside, outside, size uint64
		if n, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); n != 3 || err != nil {
			continue
		}
		if inside <= uint64(base) && uint64(base)+uint64(count) <= inside+size {
			return true
		}
	}
	return false
}
