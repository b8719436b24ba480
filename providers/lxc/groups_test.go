//go:build linux

package lxc

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// A machine with version 2 alone, made of files.
func TestVersionTwo(t *testing.T) {
	top := t.TempDir()
	p := quiet(t, "cgroup2 "+top+" cgroup2 rw 0 0\nshort\n")
	put(t, filepath.Join(top, "cgroup.controllers"), "cpu memory pids\n")
	group := filepath.Join(top, "vendetta-lxc.w1")
	for _, file := range []string{"cpu.max", "memory.max", "memory.swap.max", "pids.max", "cgroup.procs"} {
		put(t, filepath.Join(group, file), "")
	}
	put(t, filepath.Join(group, "cgroup.freeze"), "1\n")
	read := func(file string) string {
		raw, err := os.ReadFile(filepath.Join(group, file))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	m := p.machine
	if !m.frozen("w1") || !m.freezes() {
		t.Error("it is not frozen")
	}
	if err := m.thaw("w1"); err != nil || m.frozen("w1") {
		t.Errorf("it stays frozen: %v", err)
	}
	if err := m.thaw("w2"); err != nil {
		t.Error(err)
	}
	before, after := providers.Resources{CPUs: 2, MemoryBytes: 100, PIDs: 5}, providers.Resources{CPUs: 1, MemoryBytes: 200, PIDs: 7}
	if err := m.hold("w1", before, after); err != nil {
		t.Fatal(err)
	}
	if got := []string{read("cpu.max"), read("memory.max"), read("memory.swap.max"), read("pids.max")}; !reflect.DeepEqual(got, []string{"100000 100000", "200", "0", "7"}) {
		t.Errorf("%q", got)
	}
	if err := m.hold("w1", after, providers.Resources{PIDs: 7}); err != nil || !strings.HasPrefix(read("cpu.max"), "max") {
		t.Errorf("%q, %v", read("cpu.max"), err)
	}
	if err := m.hold("w2", before, after); err == nil {
		t.Error("held nobody")
	}
	put(t, filepath.Join(group, "cgroup.procs"), "1\nx\n-3\n")
	if got, err := m.members("w1"); err != nil || !reflect.DeepEqual(got, []int{1}) {
		t.Errorf("%v, %v", got, err)
	}
	all, err := m.hierarchies()
	if err != nil || !all.pure() {
		t.Errorf("%v, %v", all, err)
	}
}

// With version 1 memory with swap is never below memory alone, on the way too.
func TestMemoryOrder(t *testing.T) {
	memory, cpu := t.TempDir(), t.TempDir()
	p := quiet(t, "cgroup "+memory+" cgroup rw,memory 0 0\ncgroup "+cpu+" cgroup rw,cpu 0 0\n")
	put(t, filepath.Join(memory, "memory.memsw.limit_in_bytes"), "")
	put(t, filepath.Join(cpu, "vendetta-lxc.w1", "cpu.cfs_quota_us"), "")
	for _, growing := range []bool{true, false} {
		group := filepath.Join(memory, "vendetta-lxc.w1")
		if err := os.RemoveAll(group); err != nil {
			t.Fatal(err)
		}
		from, to := int64(10), int64(20)
		last := "memory.limit_in_bytes"
		if !growing {
			from, to, last = to, from, "memory.memsw.limit_in_bytes"
		}
		// The last file is missing, so the one before it alone is written.
		other := map[string]string{"memory.limit_in_bytes": "memory.memsw.limit_in_bytes", "memory.memsw.limit_in_bytes": "memory.limit_in_bytes"}[last]
		put(t, filepath.Join(group, other), "")
		if err := p.machine.hold("w1", providers.Resources{MemoryBytes: from}, providers.Resources{MemoryBytes: to}); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if raw, err := os.ReadFile(filepath.Join(group, other)); err != nil || len(raw) == 0 {
			t.Errorf("growing %v: %s was not first: %v", growing, other, err)
		}
	}
	if err := p.machine.freeCPU(groups{"cpu": cpu}, "vendetta-lxc.w1"); err != nil {
		t.Error(err)
	}
}

func TestPurgeAfterReboot(t *testing.T) {
	p := quiet(t, "")
	p.machine.mounts = filepath.Join(t.TempDir(), "absent")
	if err := p.purge(t.Context(), "w1", run{Monitor: host.Process{PID: 1, BootID: "another"}}); err != nil {
		t.Error(err)
	}
	if inside(0) != nil || mountNamespace(1<<22+1) != 0 {
		t.Error("found somebody nowhere")
	}
	if err := p.kill("w1", 1<<22+1, 1); err != nil {
		t.Error(err)
	}
}
