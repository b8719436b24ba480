//go:build linux

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// GroupParent is the control group above all instances'. Both generations of
// control groups are served. It is at the top of each hierarchy and not below the
// agent's, so that stopping the agent's service does not end instances.
const GroupParent = "vendetta"

// cpuPeriod in microseconds, the kernel's default.
const cpuPeriod = 100000

// Hierarchies of this machine: v1 controller to its mount, or "" for v2's.
func Hierarchies(mounts string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup2":
			if _, known := found[""]; !known {
				found[""] = f[1]
			}
		case "cgroup":
			for option := range strings.SplitSeq(f[3], ",") {
				switch option {
				case "pids", "memory", "cpu", "cpuacct", "freezer":
					if _, known := found[option]; !known {
						found[option] = f[1]
					}
				}
			}
		}
	}
	return found
}

// Settings of one controller: file to value.
func Settings(v2 bool, controller string, r providers.Resources) map[string]string {
	quota := int64(r.CPUs * cpuPeriod)
	set := map[string]string{}
	switch {
	case controller == "pids":
		set["pids.max"] = strconv.FormatInt(r.PIDs, 10)
	case controller == "memory" && r.MemoryBytes > 0 && v2:
		set["memory.max"] = strconv.FormatInt(r.MemoryBytes, 10)
		set["memory.swap.max"] = "0"
	case controller == "memory" && r.MemoryBytes > 0:
		set["memory.limit_in_bytes"] = strconv.FormatInt(r.MemoryBytes, 10)
	case controller == "cpu" && r.CPUs > 0 && v2:
		set["cpu.max"] = fmt.Sprintf("%d %d", max(quota, 1000), cpuPeriod)
	case controller == "cpu" && r.CPUs > 0:
		set["cpu.cfs_period_us"] = strconv.Itoa(cpuPeriod)
		set["cpu.cfs_quota_us"] = strconv.FormatInt(max(quota, 1000), 10)
	}
	return set
}

// Set writes one file of a control group, which must exist.
func Set(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// RemoveGroups removes control groups, and waits for their last process to leave,
// which takes the kernel a moment after its end.
func RemoveGroups(ctx context.Context, dirs []string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for _, dir := range dirs {
		for {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(filepath.Dir(dir)) // ours while another instance is in it
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-deadline.C:
				return err
			case <-tick.C:
			}
		}
	}
	return nil
}

// Measure reads control groups of either generation; false unless both time and
// memory were told.
func Measure(dirs []string, u *providers.Usage) bool {
	cpu, memory := false, false
	for _, dir := range dirs {
		if n, ok := number(dir, "cpuacct.usage"); ok {
			u.CPU, cpu = time.Duration(n), true
		}
		if n, ok := field(dir, "cpu.stat", "usage_usec"); ok {
			u.CPU, cpu = time.Duration(n)*time.Microsecond, true
		}
		for _, file := range []struct{ used, cache string }{
			{"memory.usage_in_bytes", "total_inactive_file"}, {"memory.current", "inactive_file"},
		} {
			if n, ok := number(dir, file.used); ok {
				cache, _ := field(dir, "memory.stat", file.cache) // untold: none is taken off
				u.MemoryBytes, memory = max(n-cache, 0), true
			}
		}
	}
	return cpu && memory
}

func number(dir, file string) (int64, bool) {
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}

func field(dir, file, name string) (int64, bool) {
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// Memory is the machine's, in bytes; 0 where the kernel does not tell.
func Memory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}
