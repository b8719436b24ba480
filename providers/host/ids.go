//go:build linux

package host

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IDsPerInstance is the size of an instance's range of user and group ids under
// a root agent: all 16-bit ids, nobody (65534) included.
const IDsPerInstance = 65536

// The pool of ids that a root agent hands out when /etc/subuid gives root none.
// systemd's list of well-known ranges (UIDS-GIDS.md) leaves 1879048192 to
// 2147483647 unused.
const (
	defaultIDBase  = 1879048192
	defaultIDCount = 268435456
)

// IDs is a pool of ranges of IDsPerInstance ids each.
type IDs struct {
	Base, Slots uint32
}

// RootIDs is the pool of a root agent. mapped is false for a root that cannot map
// it, being itself inside a user namespace.
func RootIDs() (pool IDs, mapped bool) {
	subuid, _ := os.ReadFile("/etc/subuid") // absent: the default
	pool = idPool(string(subuid))
	own, _ := os.ReadFile("/proc/self/uid_map") // unreadable: nothing is mapped
	return pool, covers(string(own), pool.Base, pool.Slots*IDsPerInstance)
}

// idPool is root's own entry of /etc/subuid where that holds at least one range.
func idPool(subuid string) IDs {
	lines := bufio.NewScanner(strings.NewReader(subuid))
	for lines.Scan() {
		f := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(f) != 3 || (f[0] != "root" && f[0] != "0") {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 31)
		count, err2 := strconv.ParseUint(f[2], 10, 31)
		if err1 == nil && err2 == nil && start > 0 && count >= IDsPerInstance {
			return IDs{Base: uint32(start), Slots: uint32(count / IDsPerInstance)}
		}
	}
	return IDs{Base: defaultIDBase, Slots: defaultIDCount / IDsPerInstance}
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

// Of returns the range that an id is of, by its first id; false when it is none
// of the pool's.
func (p IDs) Of(id uint32) (base uint32, ok bool) {
	if id < p.Base || (id-p.Base)/IDsPerInstance >= p.Slots {
		return 0, false
	}
	return id - (id-p.Base)%IDsPerInstance, true
}

// Taken are the ranges of those who own what lies at the paths that a pattern
// finds; see filepath.Match.
func (p IDs) Taken(pattern string) map[uint32]bool {
	found, _ := filepath.Glob(pattern) // one that is malformed finds nothing
	taken := map[uint32]bool{}
	for _, path := range found {
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			continue // gone meanwhile
		}
		if base, ok := p.Of(st.Uid); ok {
			taken[base] = true
		}
	}
	return taken
}

// Volumes is a pattern for what marks the ids of all volumes that providers of this
// agent have beside the state folder dir: of other servers, and of other kinds.
func Volumes(dir string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(dir)), "*", "*", "volumes", "*", "state")
}

// Pick returns a range that is not used; false when there is none. One that is taken
// by others is picked only where there is no other. It begins where key hashes to,
// so that those who do not know of each other's ranges hardly ever pick the same.
func (p IDs) Pick(key string, used, taken map[uint32]bool) (base uint32, ok bool) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	for i := range p.Slots {
		next := p.Base + (h.Sum32()%p.Slots+i)%p.Slots*IDsPerInstance
		switch {
		case used[next]:
		case !taken[next]:
			return next, true
		case !ok:
			base, ok = next, true
		}
	}
	return base, ok
}
