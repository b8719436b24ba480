//go:build linux

package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
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
	if !last.Alive() {
		return none, notRunning("measure", ws)
	}
	u := providers.Usage{DiskBytes: -1}
	if !host.Measure(last.Cgroups, &u) {
		if err := summed(last.PID, &u); err != nil {
			return none, failed("measure", ws, err)
		}
	}
	return u, nil
}

// summed adds up the processes of pid's namespace. Shared pages count once for
// each process.
func summed(pid int, u *providers.Usage) error {
	all, err := members(pid)
	if err != nil {
		return err
	}
	u.CPU, u.MemoryBytes = 0, 0
	for _, id := range all {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil { // gone meanwhile
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
