//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

var _ providers.Forker = (*Provider)(nil)

// Fork copies the disks of a machine, and the memory of one that runs: its QEMU
// sends it to that of the fork over a pair of sockets, as in a migration, and
// goes on itself.
func (p *Provider) Fork(ctx context.Context, origin string, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	from, err := p.ready("fork", origin)
	if err != nil {
		return none, err
	}
	r, err := p.forkRecord(from, spec)
	if err != nil {
		return none, err
	}
	ws := spec.Workspace
	if ws == origin {
		return none, invalid("give the fork a workspace of its own", "fork qemu workspace %s: it cannot be its own fork", origin)
	}
	if known, i, err := p.known(ctx, ws); known || err != nil {
		return i, err
	}
	if err := ctx.Err(); err != nil {
		return none, failed("fork", origin, err)
	}
	// A fork has its origin's files, so what an earlier instance of that workspace
	// left behind cannot stay.
	if v, err := p.volume(ws); err == nil && v.Ready {
		return none, invalid("remove that workspace first, or name another",
			"fork qemu workspace %s: workspace %s has files of its own already", origin, ws)
	}
	if err := p.fork(ctx, origin, ws, r); err != nil {
		last, rerr := p.run(ws)
		if rerr == nil {
			rerr = p.end(context.WithoutCancel(ctx), ws, last)
		}
		return none, failed("fork", origin, errors.Join(err, rerr, p.abandonFork(ws)))
	}
	return p.Inspect(ctx, ws)
}

// abandonFork removes a fork that failed, with its volume.
func (p *Provider) abandonFork(ws string) error {
	return errors.Join(discard(p.instanceDir(ws)), discard(p.volumeDir(ws)), p.opts.Images.Release(p.holder(ws)))
}

// forkRecord is the fork's record: spec's, and where that is silent its origin's.
func (p *Provider) forkRecord(from record, spec providers.Spec) (record, error) {
	open := func(value *int64, other int64) {
		if *value == 0 {
			*value = other
		}
	}
	open(&spec.Resources.MemoryBytes, from.Resources.MemoryBytes)
	open(&spec.Resources.PIDs, from.Resources.PIDs)
	open(&spec.Resources.DiskBytes, from.Resources.DiskBytes)
	if spec.Resources.CPUs == 0 {
		spec.Resources.CPUs = from.Resources.CPUs
	}
	if spec.Network == "" {
		spec.Network = from.Network
	}
	if err := check(&spec); err != nil {
		return record{}, err
	}
	if spec.Resources.DiskBytes < from.Resources.DiskBytes {
		return record{}, invalid("give the fork a disk as large as its origin's", "fork into qemu workspace %s: a disk cannot be made smaller", spec.Workspace)
	}
	r := newRecord(p.server, spec)
	r.Image, r.Digest, r.Disk, r.BaseFormat, r.Env, r.User = from.Image, from.Digest, from.Disk, from.BaseFormat, from.Env, from.User
	return r, nil
}

func (p *Provider) fork(ctx context.Context, origin, ws string, r record) error {
	if err := p.opts.Images.Hold(r.Digest, p.holder(ws)); err != nil {
		return err
	}
	return p.halted(ctx, origin, func(running bool, last run) error {
		err := p.build(ctx, ws, r, &disks{
			root: filepath.Join(p.instanceDir(origin), rootDisk), volume: filepath.Join(p.volumeDir(origin), volumeDisk),
		})
		if err != nil {
			return err
		}
		if !running {
			return nil
		}
		from, err := p.load(origin)
		if err != nil {
			return err
		}
		// What runs on is the origin's machine, whatever the fork is to be later.
		now := r
		now.Ready, now.Network = true, from.Network
		now.Resources.CPUs, now.Resources.MemoryBytes = last.Resources.CPUs, last.Resources.MemoryBytes
		return p.send(ctx, origin, ws, now)
	})
}

// send moves a copy of origin's memory into a new QEMU of ws, and lets that go on.
func (p *Provider) send(ctx context.Context, origin, ws string, r record) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	out, in := os.NewFile(uintptr(pair[0]), "out"), os.NewFile(uintptr(pair[1]), "in")
	err = p.spawn(ctx, ws, r, start{stream: in})
	if err == nil {
		err = p.talk(ctx, origin, func(m *monitor) error {
			if err := m.send("getfd", map[string]any{"fdname": "fork"}, out, nil); err != nil {
				return err
			}
			// Nothing changes meanwhile, and nothing else is to be spared.
			if err := m.do("migrate-set-parameters", map[string]any{"max-bandwidth": int64(1) << 40}, nil); err != nil {
				return err
			}
			return m.do("migrate", map[string]any{"uri": "fd:fork"}, nil)
		})
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := p.sent(ctx, origin); err != nil {
		return errors.Join(err, p.command(context.WithoutCancel(ctx), origin, "migrate_cancel", nil, nil))
	}
	if err := p.await(ctx, ws, func(s string) (bool, error) { return s == "paused", nil }); err != nil {
		return err
	}
	if err := p.cont(ctx, ws); err != nil {
		return err
	}
	p.tellTime(ctx, ws)
	return nil
}

// sent waits until QEMU has sent all of a machine.
func (p *Provider) sent(ctx context.Context, ws string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var m struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := p.command(ctx, ws, "query-migrate", nil, &m); err != nil {
			return err
		}
		switch m.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("send the memory: %s %s", m.Status, m.Error)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
