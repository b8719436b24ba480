//go:build linux

package qemu

import (
	"context"
	"strconv"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

var _ providers.Pauser = (*Provider)(nil)

// Pause halts the machine's processors.
func (p *Provider) Pause(ctx context.Context, ws string) error {
	if _, err := p.up(ctx, "pause", ws); err != nil {
		return err
	}
	return failed("pause", ws, p.command(ctx, ws, "stop", nil, nil))
}

// Resume lets the machine go on, and tells it the time.
func (p *Provider) Resume(ctx context.Context, ws string) error {
	state, err := p.up(ctx, "resume", ws)
	if err != nil || state == providers.StateRunning {
		return err
	}
	if err := p.cont(ctx, ws); err != nil {
		return failed("resume", ws, err)
	}
	p.tellTime(ctx, ws)
	return nil
}

// up returns the state of a machine that runs or is paused.
func (p *Provider) up(ctx context.Context, op, ws string) (providers.State, error) {
	if _, err := p.running(op, ws); err != nil {
		return "", err
	}
	state, err := p.state(ctx, ws)
	if err != nil {
		return "", failed(op, ws, err)
	}
	if state == providers.StateStopped {
		return "", notRunning(op, ws)
	}
	return state, nil
}

// tellTime sets the clock of a machine that was halted. One that does not listen
// keeps its own time.
func (p *Provider) tellTime(ctx context.Context, ws string) {
	if err := p.tell(ctx, ws, "clock", strconv.FormatInt(time.Now().UnixNano(), 10)); err != nil {
		p.log.Warn("tell a virtual machine the time", "workspace", ws, "error", err)
	}
}
