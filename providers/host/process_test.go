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

func TestParseStatus(t *testing.T) {
	s, err := parseStatus([]byte("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"))
	if err != nil || s.state != 'S' || s.start != 4242 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) S 1", "7 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20"} {
		if _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}
