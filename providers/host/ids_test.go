//go:build linux

package host

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestIDPool(t *testing.T) {
	for text, want := range map[string][2]uint32{
		"":                              {defaultIDBase, 4096},
		"dev:100000:65536\n":            {defaultIDBase, 4096},
		"# no\nroot:200000:131072\n":    {200000, 2},
		"0:300000:65536":                {300000, 1},
		"root:100000:1000\n":            {defaultIDBase, 4096},
		"root:x:65536\nroot:1:y\nroot:": {defaultIDBase, 4096},
	} {
		pool := idPool(text)
		if pool.Base != want[0] || pool.Slots != want[1] {
			t.Errorf("%q: %+v", text, pool)
		}
	}
	for text, want := range map[string]bool{
		"         0          0 4294967295\n":  true,
		"0 1000 1\n1 100000 65536\n":          false,
		"":                                    false,
		"nonsense\n0 100000 65536\n":          false,
		"0 0 100\n200000 200000 1000000000\n": false,
	} {
		if got := covers(text, defaultIDBase, defaultIDCount); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestRangesOfIDs(t *testing.T) {
	pool := IDs{Base: 1000, Slots: 3}
	used := map[uint32]bool{}
	for range 3 {
		base, ok := pool.Pick("w", used, nil)
		if !ok || used[base] {
			t.Errorf("picked %d, %v of %v", base, ok, used)
		}
		used[base] = true
		for _, id := range []uint32{base, base + IDsPerInstance - 1} {
			if of, ok := pool.Of(id); !ok || of != base {
				t.Errorf("%d is of %d, %v; want %d", id, of, ok, base)
			}
		}
	}
	if base, ok := pool.Pick("w", used, nil); ok {
		t.Errorf("picked %d of none", base)
	}
	for _, id := range []uint32{0, 999, 1000 + 3*IDsPerInstance} {
		if base, ok := pool.Of(id); ok {
			t.Errorf("%d is of %d", id, base)
		}
	}
	// The machine's own, whoever this is.
	if pool, _ := RootIDs(); pool.Base == 0 || pool.Slots == 0 {
		t.Errorf("root has %+v", pool)
	}
}

// Providers of one agent, of whichever kind and server, keep out of each other's
// ranges for as long as there are others.
func TestPickLeavesOthersRanges(t *testing.T) {
	agent := t.TempDir()
	for _, dir := range []string{"native/s1/volumes/w1/state", "lxc/s2/volumes/w2/state"} {
		if err := os.MkdirAll(filepath.Join(agent, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	own := uint32(os.Getuid())
	pool := IDs{Base: own, Slots: 3}
	for dir, want := range map[string]int{"lxc/s1": 1, "native/s2": 1, "lxc/s1/deeper": 0} {
		if taken := pool.Taken(Volumes(filepath.Join(agent, dir))); len(taken) != want || want > 0 && !taken[own] {
			t.Errorf("seen from %s: %v", dir, taken)
		}
	}
	if taken := pool.Taken("["); len(taken) != 0 {
		t.Errorf("by no pattern: %v", taken)
	}
	used, taken := map[uint32]bool{}, map[uint32]bool{own: true}
	for range pool.Slots {
		base, ok := pool.Pick("key", used, taken)
		if !ok || used[base] || taken[base] && len(used) < 2 {
			t.Errorf("picked %d, %t of %v", base, ok, used)
		}
		used[base] = true
	}
	if base, ok := pool.Pick("key", used, maps.Clone(taken)); ok {
		t.Errorf("picked %d a second time", base)
	}
}
