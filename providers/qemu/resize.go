//go:build linux

package qemu

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
)

var _ providers.Resizer = (*Provider)(nil)

// Resize grows the disks of a machine at once; the rest is for its next start.
func (p *Provider) Resize(ctx context.Context, ws string, res providers.Resources) (note string, err error) {
	r, err := p.ready("resize", ws)
	if err != nil {
		return "", err
	}
	refuse := func(next, format string, args ...any) error {
		return invalid(next, "resize qemu workspace %s: %s", ws, fmt.Sprintf(format, args...))
	}
	if res.CPUs < 0 || res.MemoryBytes < 0 || res.PIDs < 0 || res.DiskBytes < 0 {
		return "", refuse("", "a limit is negative")
	}
	was := r.Resources
	if res.CPUs > 0 {
		r.Resources.CPUs = res.CPUs
	}
	if res.MemoryBytes > 0 {
		r.Resources.MemoryBytes = res.MemoryBytes
	}
	if res.PIDs > 0 {
		r.Resources.PIDs = res.PIDs
	}
	if res.DiskBytes > 0 {
		r.Resources.DiskBytes = (res.DiskBytes + 511) &^ 511
	}
	if err := checkBounds(r.Resources, refuse); err != nil {
		return "", err
	}
	if r.Resources.DiskBytes < was.DiskBytes {
		return "", refuse("make a new workspace with a smaller disk", "a disk of %d bytes cannot be made smaller", was.DiskBytes)
	}
	last, err := p.run(ws)
	if err != nil {
		return "", failed("resize", ws, err)
	}
	if r.Resources.DiskBytes > was.DiskBytes {
		if err := p.growDisks(ctx, ws, r, last); err != nil {
			return "", failed("resize", ws, err)
		}
	}
	if err := p.save(ws, r); err != nil {
		return "", failed("resize", ws, err)
	}
	if !last.Alive() {
		return "", nil
	}
	return later(last.Resources, r.Resources), nil
}

// later says what a machine that runs does not have yet.
func later(now, then providers.Resources) string {
	var what []string
	if now.CPUs != then.CPUs {
		what = append(what, "processors")
	}
	if now.MemoryBytes != then.MemoryBytes {
		what = append(what, "memory")
	}
	if now.PIDs != then.PIDs {
		what = append(what, "the number of processes")
	}
	if len(what) == 0 {
		return ""
	}
	return strings.Join(what, ", ") + ": from the next start on"
}

// growDisks makes both disks larger, and the file systems of a machine that runs.
func (p *Provider) growDisks(ctx context.Context, ws string, r record, last run) error {
	size := r.Resources.DiskBytes
	if !last.Alive() {
		for _, path := range []string{filepath.Join(p.instanceDir(ws), rootDisk), filepath.Join(p.volumeDir(ws), volumeDisk)} {
			if err := growDisk(ctx, path, size); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range []string{nodeRoot, nodeVolume} {
		if err := p.command(ctx, ws, "block_resize", map[string]any{"node-name": name, "size": size}, nil); err != nil {
			return err
		}
	}
	if state, err := p.state(ctx, ws); err != nil || state != providers.StateRunning {
		return err // a halted one looks when it is told to the next time, or at its start
	}
	return p.tell(ctx, ws, "grow")
}
