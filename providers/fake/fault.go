package fake

import (
	"context"
	"slices"
	"time"

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

	Snapshot       Operation = "snapshot"
	Snapshots      Operation = "snapshots"
	Restore        Operation = "restore"
	RemoveSnapshot Operation = "remove-snapshot"
	Fork           Operation = "fork"
	Pause          Operation = "pause"
	Resume         Operation = "resume"
	Resize         Operation = "resize"

	// Those of Images; Call.Workspace is the image's reference.
	ListImages  Operation = "list-images"
	PullImage   Operation = "pull-image"
	ImportImage Operation = "import-image"
	PruneImages Operation = "prune-images"
)

// Call is one call that a Provider took.
type Call struct {
	Operation Operation
	Workspace string // empty for List, the origin for Fork
}

// Fail lets the next call of an operation fail with err, before it does
// anything. Several are used up one after the other.
func (m *Machine) Fail(operation Operation, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[operation] = append(m.faults[operation], err)
}

// FailHalfway lets the next Create fail with err and leave a broken instance.
func (m *Machine) FailHalfway(err error) { m.failHalfway(Create, err) }

// FailForkHalfway lets the next Fork fail with err and leave a broken fork.
func (m *Machine) FailForkHalfway(err error) { m.failHalfway(Fork, err) }

// FailRestoreHalfway lets the next Restore fail with err and leave the instance
// broken, which the one after mends.
func (m *Machine) FailRestoreHalfway(err error) { m.failHalfway(Restore, err) }

func (m *Machine) failHalfway(operation Operation, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[operation] = append(m.faults[operation], err)
	m.half[operation] = true
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

// SetStatus is what Probe answers from now on. What its capabilities do not
// hold answers ErrUnsupported.
func (m *Machine) SetStatus(status providers.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = status
}

// SetCapabilities is SetStatus for the capabilities alone.
func (m *Machine) SetCapabilities(capabilities ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Capabilities = slices.Sorted(slices.Values(capabilities))
}

// SetConsole is what a workspace's instance said last on its console.
func (m *Machine) SetConsole(workspace, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.consoles[workspace] = text
}

// SetBoot is how long guests of this machine may take to answer.
func (m *Machine) SetBoot(boot time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boot = boot
}

// SetResizeNote makes Resize take effect at the next start only, with that
// note; with an empty one it takes effect at once.
func (m *Machine) SetResizeNote(note string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resizeNote = note
}

// SetFreezer names what halts the processes that guests started, and lets them
// go on; it is called with the machine locked. Without one a paused instance's
// link is held and its processes run.
func (m *Machine) SetFreezer(freeze func(home Home, halted bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.freeze = freeze
}

// Spec is what a workspace's instance was made of, with its limits as Resize
// left them, and whether there is one.
func (m *Machine) Spec(workspace string) (providers.Spec, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.instances[workspace]
	if i == nil {
		return providers.Spec{}, false
	}
	return i.spec, true
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
