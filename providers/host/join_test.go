//go:build linux

package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// groups are folders with the files that a kernel would make in them.
func groups(t *testing.T, files ...string) string {
	t.Helper()
	top := t.TempDir()
	for _, file := range files {
		at := filepath.Join(top, file)
		must(t, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, nil, 0o644))
	}
	return top
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for file, want := range files {
		if raw, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(raw) != want {
			t.Errorf("%s holds %q, %v; want %q", file, raw, err, want)
		}
	}
}

var limits = providers.Resources{PIDs: 5, MemoryBytes: 7, CPUs: 2}

func TestJoinFirstGeneration(t *testing.T) {
	top := groups(t, "pids/vendetta/w/pids.max", "pids/vendetta/w/cgroup.procs",
		"cpu/vendetta/w/cpu.cfs_period_us", "cpu/vendetta/w/cpu.cfs_quota_us", "cpu/vendetta/w/cgroup.procs", "unified/cgroup.controllers")
	all := map[string]string{"pids": top + "/pids", "cpu": top + "/cpu", "cpuacct": top + "/cpu", "": top + "/unified"}
	for range 2 { // with the second generation mounted beside it, and without
		dirs, err := join(all, "w", 42, limits)
		slices.Sort(dirs)
		if err != nil || !slices.Equal(dirs, []string{top + "/cpu/vendetta/w", top + "/pids/vendetta/w"}) {
			t.Errorf("joined %q, %v", dirs, err)
		}
		delete(all, "")
	}
	holds(t, top, map[string]string{
		"pids/vendetta/w/pids.max": "5", "pids/vendetta/w/cgroup.procs": "42",
		"cpu/vendetta/w/cpu.cfs_quota_us": "200000", "cpu/vendetta/w/cgroup.procs": "42",
	})
}

func TestJoinSecondGeneration(t *testing.T) {
	// A kernel without swap accounting has no memory.swap.max.
	top := groups(t, "cgroup.subtree_control", "vendetta/cgroup.subtree_control",
		"vendetta/w/pids.max", "vendetta/w/memory.max", "vendetta/w/cpu.max", "vendetta/w/cgroup.procs")
	must(t, os.WriteFile(filepath.Join(top, "cgroup.controllers"), []byte("cpuset cpu io memory pids\n"), 0o644))
	dirs, err := join(map[string]string{"": top}, "w", 42, limits)
	if err != nil || !slices.Equal(dirs, []string{top + "/vendetta/w"}) {
		t.Errorf("joined %q, %v", dirs, err)
	}
	holds(t, top, map[string]string{
		"cgroup.subtree_control": "+cpu +memory +pids", "vendetta/cgroup.subtree_control": "+cpu +memory +pids",
		"vendetta/w/pids.max": "5", "vendetta/w/memory.max": "7", "vendetta/w/cpu.max": "200000 100000", "vendetta/w/cgroup.procs": "42",
	})
}

// Folders that were made are told with the error, so that they can be removed.
func TestJoinFails(t *testing.T) {
	controllers := func(files ...string) string {
		top := groups(t, files...)
		must(t, os.WriteFile(filepath.Join(top, "cgroup.controllers"), []byte("pids\n"), 0o644))
		return top
	}
	for what, c := range map[string]struct {
		all  map[string]string
		want error
		dirs int
	}{
		"no controllers are told":      {map[string]string{"": groups(t)}, fs.ErrNotExist, 0},
		"the parent is a file":         {map[string]string{"": controllers("vendetta")}, unix.ENOTDIR, 0},
		"nothing is handed down":       {map[string]string{"": controllers("other")}, fs.ErrNotExist, 0},
		"the group is a file":          {map[string]string{"pids": groups(t, "vendetta/w")}, unix.ENOTDIR, 1},
		"the group has no limit":       {map[string]string{"pids": groups(t)}, fs.ErrNotExist, 1},
		"the group takes no processes": {map[string]string{"pids": groups(t, "vendetta/w/pids.max")}, fs.ErrNotExist, 1},
	} {
		if dirs, err := join(c.all, "w", 42, limits); !errors.Is(err, c.want) || len(dirs) != c.dirs {
			t.Errorf("%s: %q, %v", what, dirs, err)
		}
	}
}

func TestRemoveGroups(t *testing.T) {
	top := groups(t, "a/vendetta/kept/x")
	must(t, os.MkdirAll(filepath.Join(top, "b/vendetta/w"), 0o755))
	must(t, RemoveGroups(t.Context(), []string{filepath.Join(top, "b/vendetta/w"), filepath.Join(top, "b/vendetta/absent")}))
	if _, err := os.Stat(filepath.Join(top, "b/vendetta")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty parent is left: %v", err)
	}
	if err := RemoveGroups(t.Context(), []string{filepath.Join(top, "a/vendetta/kept")}); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("a folder that is not empty: %v", err)
	}
}
