package fake

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/vendetta-dev/vendetta/providers"
)

// Pause implements providers.Pauser.
func (p *Provider) Pause(ctx context.Context, workspace string) error {
	return p.whileUp(ctx, Pause, workspace, p.machine.halt)
}

// Resume implements providers.Pauser.
func (p *Provider) Resume(ctx context.Context, workspace string) error {
	return p.whileUp(ctx, Resume, workspace, p.machine.resume)
}

// whileUp does something to an instance that is running or paused.
func (p *Provider) whileUp(ctx context.Context, operation Operation, workspace string, do func(*instance, *run)) error {
	m := p.machine
	if err := m.enter(ctx, operation, workspace); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.can(providers.CapabilityPause, operation, workspace); err != nil {
		return err
	}
	i, err := p.find(workspace)
	if err != nil {
		return err
	}
	if i.run == nil {
		return &providers.Error{
			Kind:    providers.ErrNotFound,
			Message: fmt.Sprintf("%s workspace %s: it is not running", operation, workspace),
			Next:    "start it",
		}
	}
	do(i, i.run)
	return nil
}

// halt holds an instance's processes and its link. The machine is locked.
func (m *Machine) halt(i *instance, r *run) {
	if r.halted != nil {
		return
	}
	r.halted = make(chan struct{})
	i.state = providers.StatePaused
	if m.freeze != nil {
		m.freeze(r.home, true)
	}
}

// resume undoes halt. The machine is locked.
func (m *Machine) resume(i *instance, r *run) {
	if r.halted == nil {
		return
	}
	if m.freeze != nil {
		m.freeze(r.home, false)
	}
	close(r.halted)
	r.halted = nil
	if i.run == r {
		i.state = providers.StateRunning
	}
}

// goOn is resume for one that is about to end.
func (m *Machine) goOn(i *instance, r *run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resume(i, r)
}

// held is the guest's end of a link, which carries nothing while its instance is
// paused.
type held struct {
	net.Conn
	machine *Machine
	run     *run

	once   sync.Once
	closed chan struct{}
}

// wait returns when the instance runs or the stream was closed.
func (h *held) wait() {
	for {
		h.machine.mu.Lock()
		halted := h.run.halted
		h.machine.mu.Unlock()
		if halted == nil {
			return
		}
		select {
		case <-halted:
		case <-h.closed:
			return
		}
	}
}

func (h *held) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.wait()
	return n, err
}

func (h *held) Write(b []byte) (int, error) {
	h.wait()
	return h.Conn.Write(b)
}

func (h *held) Close() error {
	h.once.Do(func() { close(h.closed) })
	return h.Conn.Close()
}
