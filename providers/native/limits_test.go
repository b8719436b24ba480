//go:build linux

package native

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestLimits(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone, Resources: providers.Resources{PIDs: 60, MemoryBytes: 96 << 20, CPUs: 0.5}})
	r.want("w1", "sh -c 'ulimit -u' 2>/dev/null || grep processes /proc/self/limits | tr -s ' ' | cut -d' ' -f3", "60")
	out, _ := r.sh("w1", "i=0; while [ $i -lt 100 ]; do sleep 3 >/dev/null 2>&1 & i=$((i+1)); done; echo all")
	if !strings.Contains(out, "annot fork") {
		t.Errorf("a hundred processes fit in sixty: %s", out)
	}
	last, err := r.run("w1")
	if err != nil {
		t.Fatal(err)
	}
	if !r.machine.root {
		if len(last.Cgroups) != 0 {
			t.Error(last.Cgroups)
		}
		return
	}
	read := map[string]string{}
	for _, dir := range last.Cgroups {
		for _, file := range []string{"pids.max", "memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max"} {
			if raw, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
				read[file] = strings.TrimSpace(string(raw))
			}
		}
	}
	v1 := map[string]string{"pids.max": "60", "memory.limit_in_bytes": "100663296", "cpu.cfs_quota_us": "50000"}
	v2 := map[string]string{"pids.max": "60", "memory.max": "100663296", "cpu.max": "50000 100000"}
	if !reflect.DeepEqual(read, v1) && !reflect.DeepEqual(read, v2) {
		t.Error(read)
	}
	if err := r.Stop(t.Context(), "w1", 0); err != nil {
		t.Fatal(err)
	}
	for _, dir := range last.Cgroups {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s stays: %v", dir, err)
		}
	}
}

func TestHierarchies(t *testing.T) {
	for mounts, want := range map[string]map[string]string{
		"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n": {"": "/sys/fs/cgroup"},
		"cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /cg/pids cgroup rw,pids 0 0\ncgroup /again cgroup rw,pids 0 0\n" +
			"cgroup /cg/blkio cgroup rw,blkio 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0\ncgroup2 /b cgroup2 rw 0 0\nshort\n": {
			"cpu": "/cg/cpu,cpuacct", "cpuacct": "/cg/cpu,cpuacct", "pids": "/cg/pids", "": "/cg/unified",
		},
	} {
		if got := hierarchies(mounts); !reflect.DeepEqual(got, want) {
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
		if got := settings(c.v2, c.controller, res); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.controller, got, c.want)
		}
	}
	for _, controller := range []string{"memory", "cpu"} {
		for _, v2 := range []bool{true, false} {
			if got := settings(v2, controller, providers.Resources{}); len(got) != 0 {
				t.Errorf("%s: %v", controller, got)
			}
		}
	}
}

func TestGroupedUsage(t *testing.T) {
	dir := t.TempDir()
	put := func(file, text string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var u providers.Usage
	if grouped([]string{dir}, &u) {
		t.Error("told by an empty folder")
	}
	put("cpu.stat", "nr 1\nusage_usec 1500\n")
	put("memory.current", "nonsense")
	if grouped([]string{dir}, &u) {
		t.Error("told by nonsense")
	}
	put("memory.current", "1000\n")
	put("memory.stat", "anon 1\ninactive_file 300\n")
	if !grouped([]string{dir}, &u) || u.CPU.Microseconds() != 1500 || u.MemoryBytes != 700 {
		t.Errorf("%+v", u)
	}
	if err := summed(1<<22, &u); err == nil {
		t.Error("summed up nobody")
	}
}
