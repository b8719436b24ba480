package fake

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/providers"
)

// Home is what an instance gives its guest.
type Home struct {
	Workspace string
	// Project is the folder that stands for /workspace, State the one for the
	// guest's own state. Both live with the volume.
	Project, State string
	// Spec is what the instance was made of.
	Spec providers.Spec
	// Dial reaches the node agent, as dialling the guest's socket does.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Guest runs a guest until ctx ends, which stands for SIGTERM. It may return
// earlier: the instance has then ended by itself.
type Guest func(ctx context.Context, home Home)

// Machine holds instances and volumes, and outlives the Providers on it.
type Machine struct {
	dir    string
	guest  Guest
	guests conc.WaitGroup

	mu        sync.Mutex
	instances map[string]*instance
	volumes   map[string]string // the server that each is of
	snapshots map[string][]*snapshot
	store     *Images
	consoles  map[string]string
	boot      time.Duration
	freeze    func(home Home, halted bool)
	// resizeNote is not empty when limits change at the next start.
	resizeNote string
	status     providers.Status
	faults     map[Operation][]error
	gates      map[Operation]chan struct{}
	waiting    map[Operation]int
	half       map[Operation]bool
	calls      []Call
}

// instance of one workspace. Its fields are guarded by the machine.
type instance struct {
	server  string
	spec    providers.Spec
	state   providers.State
	message string
	started time.Time
	// next is the limits of the next start, where they differ.
	next *providers.Resources
	run  *run // while running or paused
}

// run is one life of an instance.
type run struct {
	home     Home
	stop     context.CancelFunc
	halted   chan struct{}           // while paused; closed when it goes on
	ended    chan struct{}           // closed when the guest has returned or was given up
	returned chan struct{}           // closed when the guest has returned
	finish   sync.Once               // closes ended
	dialled  chan struct{}           // gets a token when pending has grown
	pending  []net.Conn              // dialled, not handed out
	current  net.Conn                // handed out last
	replaced context.CancelCauseFunc // ends the Connect that waits
}

// NewMachine makes a machine that keeps its volumes in dir and runs guest in
// its instances.
func NewMachine(dir string, guest Guest) *Machine {
	m := &Machine{
		dir:       dir,
		guest:     guest,
		instances: map[string]*instance{},
		volumes:   map[string]string{},
		snapshots: map[string][]*snapshot{},
		consoles:  map[string]string{},
		status: providers.Status{Usable: true, Version: "1", Capabilities: []string{
			providers.CapabilityFork, "images", "network", providers.CapabilityPause,
			providers.CapabilityResize, providers.CapabilitySnapshot,
		}},
		faults:  map[Operation][]error{},
		gates:   map[Operation]chan struct{}{},
		waiting: map[Operation]int{},
		half:    map[Operation]bool{},
	}
	m.store = &Images{machine: m, kept: map[string]*kept{}, moved: map[string]int{}}
	return m
}

// Close ends all instances and waits for their guests.
func (m *Machine) Close() {
	m.Reboot()
	m.guests.Wait()
}

func (m *Machine) volume(workspace string) string { return filepath.Join(m.dir, workspace) }

// begin starts an instance's guest. The machine is locked.
func (m *Machine) begin(ctx context.Context, i *instance) {
	// A guest belongs to the machine: it goes on when the caller is gone.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &run{stop: stop, ended: make(chan struct{}), returned: make(chan struct{}), dialled: make(chan struct{}, 1)}
	i.run, i.state, i.message, i.started = r, providers.StateRunning, "", time.Now()
	if i.next != nil {
		i.spec.Resources, i.next = *i.next, nil
	}
	r.home = Home{
		Workspace: i.spec.Workspace,
		Project:   filepath.Join(m.volume(i.spec.Workspace), "workspace"),
		State:     filepath.Join(m.volume(i.spec.Workspace), "state"),
		Spec:      i.spec,
		Dial:      func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, r) },
	}
	m.guests.Go(func() {
		defer close(r.returned)
		m.guest(ctx, r.home)
		m.end(i, r, "ended by itself")
	})
}

// end makes i stopped when r is still its life.
func (m *Machine) end(i *instance, r *run, message string) {
	m.goOn(i, r)
	r.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	r.finish.Do(func() { close(r.ended) })
	for _, conn := range append(r.pending, r.current) {
		if conn != nil {
			_ = conn.Close() // a pipe
		}
	}
	r.pending, r.current = nil, nil
	if i.run == r {
		i.run, i.state, i.message = nil, providers.StateStopped, message
	}
}

var errEnded = errors.New("the instance has ended")

// dial is the guest's side of the meeting point.
func (m *Machine) dial(ctx context.Context, r *run) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-r.ended:
		return nil, errEnded
	default:
	}
	agent, guest := net.Pipe()
	r.pending = append(r.pending, agent)
	select {
	case r.dialled <- struct{}{}:
	default:
	}
	return &held{Conn: guest, machine: m, run: r, closed: make(chan struct{})}, nil
}

// meet is the agent's side: the newest stream, waited for until ctx ends.
func (m *Machine) meet(ctx context.Context, r *run) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.mu.Lock()
	if r.replaced != nil {
		r.replaced(errors.New("a later connect took its place"))
	}
	r.replaced = cancel
	if r.current != nil {
		_ = r.current.Close() // a pipe
		r.current = nil
	}
	m.mu.Unlock()
	for {
		if conn := m.take(ctx, r); conn != nil {
			return conn, nil
		}
		select {
		case <-r.dialled:
		case <-r.ended:
			return nil, errEnded
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// take returns the newest stream that waits and closes those before it.
func (m *Machine) take(ctx context.Context, r *run) net.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(r.pending) == 0 || ctx.Err() != nil {
		return nil
	}
	newest := len(r.pending) - 1
	for _, older := range r.pending[:newest] {
		_ = older.Close() // a pipe
	}
	r.current, r.pending = r.pending[newest], nil
	return r.current
}

// makeVolume makes a workspace's folders where they are missing.
func (m *Machine) makeVolume(workspace string) error {
	return errors.Join(
		os.MkdirAll(filepath.Join(m.volume(workspace), "workspace"), 0o755),
		os.MkdirAll(filepath.Join(m.volume(workspace), "state"), 0o700),
	)
}
