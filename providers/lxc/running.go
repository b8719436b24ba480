//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

var (
	_ providers.Pauser  = (*Provider)(nil)
	_ providers.Resizer = (*Provider)(nil)
)

// Pause halts an instance's processes.
func (p *Provider) Pause(ctx context.Context, ws string) error {
	if err := p.running("pause", ws); err != nil {
		return err
	}
	if p.machine.frozen(ws) {
		return nil
	}
	err := p.request(ctx, helper.Freeze, ws)
	if err != nil && ctx.Err() == nil {
		// A pause that was cut off leaves liblxc thinking that it is done already.
		p.log.Debug("pause without liblxc", "workspace", ws, "error", err)
		err = p.machine.freeze(ctx, ws)
	}
	if err != nil { // half of it may be done
		err = errors.Join(err, p.goOn(context.WithoutCancel(ctx), ws))
	}
	return failed("pause", ws, err)
}

// goOn lets an instance's processes go on, whatever liblxc thinks of them.
func (p *Provider) goOn(ctx context.Context, ws string) error {
	if err := p.request(ctx, helper.Unfreeze, ws); err != nil {
		p.log.Debug("resume without liblxc", "workspace", ws, "error", err)
	}
	return p.machine.thaw(ws)
}

// Resume lets a paused instance go on.
func (p *Provider) Resume(ctx context.Context, ws string) error {
	if err := p.running("resume", ws); err != nil {
		return err
	}
	if !p.machine.frozen(ws) {
		return nil
	}
	return failed("resume", ws, p.goOn(ctx, ws))
}

// halted does something while an instance's processes stand still.
func (p *Provider) halted(ctx context.Context, ws string, do func() error) (err error) {
	last, err := p.run(ws)
	if err != nil {
		return err
	}
	if last.Alive() && !p.machine.frozen(ws) {
		if err := p.Pause(ctx, ws); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Resume(context.WithoutCancel(ctx), ws)) }()
	}
	return do()
}

// Resize changes limits, of a running instance at once.
func (p *Provider) Resize(ctx context.Context, ws string, wanted providers.Resources) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", failed("resize", ws, err)
	}
	r, err := p.ready("resize", ws)
	if err != nil {
		return "", err
	}
	if bad := p.checkLimits(wanted); bad != nil {
		return "", &providers.Error{Kind: providers.ErrInvalid, Message: fmt.Sprintf("resize lxc workspace %s: %s", ws, bad.text), Next: bad.next}
	}
	if wanted.DiskBytes > 0 {
		return "", unlimitedDisk("resize", ws)
	}
	before := r.Resources
	if wanted.CPUs > 0 {
		r.Resources.CPUs = wanted.CPUs
	}
	if wanted.MemoryBytes > 0 {
		r.Resources.MemoryBytes = wanted.MemoryBytes
	}
	if wanted.PIDs > 0 {
		r.Resources.PIDs = wanted.PIDs
	}
	last, err := p.run(ws)
	if err != nil {
		return "", failed("resize", ws, err)
	}
	alive := last.Alive()
	if alive {
		if err := p.machine.hold(ws, before, r.Resources); err != nil {
			return "", failed("resize", ws, errors.Join(err, p.machine.hold(ws, r.Resources, before)))
		}
	}
	if err := host.Write(filepath.Join(p.instanceDir(ws), recordFile), r); err != nil {
		if alive {
			err = errors.Join(err, p.machine.hold(ws, r.Resources, before))
		}
		return "", failed("resize", ws, err)
	}
	return "", nil
}

// hold writes limits to a running instance's groups.
func (m machine) hold(ws string, from, to providers.Resources) error {
	all, err := m.hierarchies()
	if err != nil {
		return err
	}
	container, _, _ := groupNames(ws)
	settings := all.settings(to)
	// Memory with swap is never less than memory alone: the wider one moves first.
	if to.MemoryBytes > from.MemoryBytes {
		for i := 1; i < len(settings); i++ {
			if settings[i].file == "memory.memsw.limit_in_bytes" {
				settings[i-1], settings[i] = settings[i], settings[i-1]
			}
		}
	}
	for _, s := range settings {
		top := all[s.controller]
		if s.v2 {
			top = all[""]
		}
		if err := host.Set(filepath.Join(top, container), s.file, s.value); err != nil {
			return err
		}
	}
	if from.CPUs > 0 && to.CPUs == 0 {
		return m.freeCPU(all, container)
	}
	return nil
}

// freeCPU takes a limit off that was not there before.
func (m machine) freeCPU(all groups, container string) error {
	if top, v1 := all["cpu"]; v1 {
		return host.Set(filepath.Join(top, container), "cpu.cfs_quota_us", "-1")
	}
	return host.Set(filepath.Join(all[""], container), "cpu.max", "max")
}

// Usage comes from the control groups.
func (p *Provider) Usage(_ context.Context, ws string) (providers.Usage, error) {
	if err := p.running("measure", ws); err != nil {
		return providers.Usage{}, err
	}
	u := providers.Usage{DiskBytes: -1}
	container, _, _ := groupNames(ws)
	dirs, err := p.machine.every(container)
	if err == nil && !host.Measure(dirs, &u) {
		err = errNoGroups
	}
	return u, failed("measure", ws, err)
}
