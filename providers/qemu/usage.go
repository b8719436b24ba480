//go:build linux

package qemu

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

// Usage is what the QEMU process uses: the machine's own and what it costs to run.
func (p *Provider) Usage(_ context.Context, ws string) (providers.Usage, error) {
	last, err := p.running("measure", ws)
	if err != nil {
		return providers.Usage{}, err
	}
	u := providers.Usage{DiskBytes: allocated(
		filepath.Join(p.instanceDir(ws), rootDisk), filepath.Join(p.volumeDir(ws), volumeDisk))}
	dir := fmt.Sprintf("/proc/%d/", last.PID)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, notRunning("measure", ws)
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return u, notRunning("measure", ws)
	}
	// Fields 14 and 15 of proc(5), counted behind the name in brackets.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return u, failed("measure", ws, fmt.Errorf("unexpected %sstat", dir))
	}
	for _, i := range []int{11, 12} {
		n, _ := strconv.ParseInt(string(f[i]), 10, 64) // the kernel's writing
		u.CPU += time.Duration(n) * time.Second / ticksPerSecond
	}
	// Mapped files are shared with other machines.
	u.MemoryBytes = kibibytes(string(status), "RssAnon:") + kibibytes(string(status), "RssShmem:")
	return u, nil
}

func kibibytes(status, field string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64) // the kernel's writing
			return n << 10
		}
	}
	return 0
}
