//go:build linux

package host

import "testing"

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
		base, ok := pool.Pick("w", used)
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
	if base, ok := pool.Pick("w", used); ok {
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
