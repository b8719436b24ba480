//go:build linux

package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// ticksPerSecond is USER_HZ, which the kernel fixes at 100 for what it tells.
const ticksPerSecond = 100

// Usage comes from the control groups where there are some, and else is the sum
// over the processes of the guest's pid namespace.
func (p *Provider) Usage(_ context.Context, ws string) (providers.Usage, error) {
	none := providers.Usage{}
	if _, err := p.ready("measure", ws); err != nil {
		return none, err
	}
	last, err := p.run(ws)
	if err != nil {
		return none, failed("measure", ws, err)
	}
	if !p.machine.alive(last.process) {
		return none, notRunning("measure", ws)
	}
	u := providers.Usage{DiskBytes: -1}
	if !grouped(last.Cgroups, &u) {
		if err := summed(last.PID, &u); err != nil {
			return none, failed("measure", ws, err)
		}
	}
	return u, nil
}

// grouped reads control groups of either generation; false unless both time and
// memory were told.
func grouped(dirs []string, u *providers.Usage) bool {
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

// summed adds up the processes of pid's namespace. Shared pages count once for
// each process.
func summed(pid int, u *providers.Usage) error {
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	u.CPU, u.MemoryBytes = 0, 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := "/proc/" + e.Name()
		if at, err := os.Readlink(dir + "/ns/pid"); err != nil || at != home {
			continue // another's, or gone meanwhile
		}
		raw, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
		if len(f) < 22 {
			continue
		}
		// Fields 14 to 17 and 24 of proc(5): its own time, its children's, pages.
		var ticks int64
		for _, i := range []int{11, 12, 13, 14} {
			n, _ := strconv.ParseInt(string(f[i]), 10, 64) // the kernel's writing
			ticks += n
		}
		pages, _ := strconv.ParseInt(string(f[21]), 10, 64)
		u.CPU += time.Duration(ticks) * time.Second / ticksPerSecond
		u.MemoryBytes += pages * int64(os.Getpagesize())
	}
	return nil
}
