//go:build linux

package host

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestHierarchies(t *testing.T) {
	for mounts, want := range map[string]map[string]string{
		"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n": {"": "/sys/fs/cgroup"},
		"cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /cg/pids cgroup rw,pids 0 0\ncgroup /again cgroup rw,pids 0 0\n" +
			"cgroup /cg/blkio cgroup rw,blkio 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0\ncgroup2 /b cgroup2 rw 0 0\nshort\n": {
			"cpu": "/cg/cpu,cpuacct", "cpuacct": "/cg/cpu,cpuacct", "pids": "/cg/pids", "": "/cg/unified",
		},
	} {
		if got := Hierarchies(mounts); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func TestSettings(t *testing.T) {
	res := providers.Resources{PIDs: 5, MemoryBytes: 7, CPUs: 0.001}
	for _, c := range []struct {
		v2         bool
		controller string
		want       map[string]string
	}{
		{true, "pids", map[string]string{"pids.max": "5"}},
		{true, "memory", map[string]string{"memory.max": "7", "memory.swap.max": "0"}},
		{false, "memory", map[string]string{"memory.limit_in_bytes": "7"}},
		{true, "cpu", map[string]string{"cpu.max": "1000 100000"}},
		{false, "cpu", map[string]string{"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "1000"}},
		{false, "cpuacct", map[string]string{}},
	} {
		if got := Settings(c.v2, c.controller, res); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.controller, got, c.want)
		}
	}
	for _, controller := range []string{"memory", "cpu"} {
		for _, v2 := range []bool{true, false} {
			if got := Settings(v2, controller, providers.Resources{}); len(got) != 0 {
				t.Errorf("%s: %v", controller, got)
			}
		}
	}
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	put := func(file, text string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var u providers.Usage
	if Measure([]string{dir}, &u) {
		t.Error("told by an empty folder")
	}
	put("cpu.stat", "nr 1\nusage_usec 1500\n")
	put("memory.current", "nonsense")
	if Measure([]string{dir}, &u) {
		t.Error("told by nonsense")
	}
	put("memory.current", "1000\n")
	put("memory.stat", "anon 1\ninactive_file 300\n")
	if !Measure([]string{dir}, &u) || u.CPU.Microseconds() != 1500 || u.MemoryBytes != 700 {
		t.Errorf("%+v", u)
	}
}

func TestMemory(t *testing.T) {
	if got := Memory(); got < 1<<20 {
		t.Errorf("the machine has %d bytes", got)
	}
}
