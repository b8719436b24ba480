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
	res := providers.Resources{PIDs: 60}
	if r.machine.root {
		// Without control groups memory is limited by address space, which this
		// binary, the guest here, needs a lot of under the race detector.
		res.CPUs, res.MemoryBytes = 0.5, 96<<20
	}
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone, Resources: res})
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

func TestSummedNobody(t *testing.T) {
	var u providers.Usage
	if err := summed(1<<22, &u); err == nil {
		t.Error("summed up nobody")
	}
}
