package fake

import (
	"context"
	"slices"

	"github.com/vendetta-dev/vendetta/providers"
)

// Operation is a method of the contract.
type Operation string

// The operations that can be made to fail or to wait, and are recorded.
const (
	Create  Operation = "create"
	Start   Operation = "start"
	Stop    Operation = "stop"
	Destroy Operation = "destroy"
	Inspect Operation = "inspect"
	List    Operation = "list"
	Connect Operation = "connect"
	Usage   Operation = "usage"
)

// Call is one call that a Provider took.
type Call struct {
	Operation Operation
	Workspace string // empty for List
}

// Fail lets the next call of an operation fail with err, before it does
// anything. Several are used up one after the other.
func (m *Machine) Fail(operation Operation, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[operation] = append(m.faults[operation], err)
}

// FailHalfway lets the next Create fail with err and leave a broken instance.
func (m *Machine) FailHalfway(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[Create] = append(m.faults[Create], err)
	m.half = true
}

// Block makes calls of an operation wait, until release is called or their
// contexts end. A call that waits has been recorded.
func (m *Machine) Block(operation Operation) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gate := make(chan struct{})
	m.gates[operation] = gate
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.gates[operation] == gate {
			delete(m.gates, operation)
			close(gate)
		}
	}
}

// Blocked is the number of calls of an operation that wait at a Block.
func (m *Machine) Blocked(operation Operation) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting[operation]
}

// Calls returns what was called so far, in order, Probe aside.
func (m *Machine) Calls() []Call {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

// SetStatus is what Probe answers from now on.
func (m *Machine) SetStatus(status providers.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = status
}

// SetImages names the images that exist; before the first call all do.
func (m *Machine) SetImages(images ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images = map[string]bool{}
	for _, image := range images {
		m.images[image] = true
	}
}

// Kill ends a workspace's instance as a crash does.
func (m *Machine) Kill(workspace string) {
	m.mu.Lock()
	i := m.instances[workspace]
	var r *run
	if i != nil {
		r = i.run
	}
	m.mu.Unlock()
	if r != nil {
		m.end(i, r, "killed")
	}
}

// Reboot ends all instances.
func (m *Machine) Reboot() {
	m.mu.Lock()
	workspaces := []string{}
	for workspace := range m.instances {
		workspaces = append(workspaces, workspace)
	}
	m.mu.Unlock()
	for _, workspace := range workspaces {
		m.Kill(workspace)
	}
}

// enter records a call, waits at a gate and says how the call fails.
func (m *Machine) enter(ctx context.Context, operation Operation, workspace string) error {
	m.mu.Lock()
	m.calls = append(m.calls, Call{operation, workspace})
	gate := m.gates[operation]
	if gate != nil {
		m.waiting[operation]++
	}
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
		}
		m.mu.Lock()
		m.waiting[operation]--
		m.mu.Unlock()
	}
	if err := ctx.Err(); err != nil {
		return &providers.Error{Message: string(operation) + " workspace " + workspace + ": " + err.Error(), Cause: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if queue := m.faults[operation]; len(queue) > 0 {
		m.faults[operation] = queue[1:]
		return queue[0]
	}
	return nil
}
