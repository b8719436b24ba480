package fake

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

var (
	workspaceID = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
	hostName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// Options of a Provider.
type Options struct {
	// ServerID is the server whose instances these are.
	ServerID string
	Machine  *Machine
	// Name is what Name returns; empty means fake. A test of how providers are
	// chosen calls it docker.
	Name string
}

// Provider is one process's view of a Machine.
type Provider struct {
	options Options
	machine *Machine

	mu   sync.Mutex
	held map[*run]net.Conn // streams handed out, which end with the process
}

var _ providers.Provider = (*Provider)(nil)

// New makes a provider on a machine.
func New(options Options) *Provider {
	options.Name = cmp.Or(options.Name, "fake")
	return &Provider{options: options, machine: options.Machine, held: map[*run]net.Conn{}}
}

// Close ends the streams that were handed out, as the end of a process does.
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r, conn := range p.held {
		_ = conn.Close() // a pipe
		delete(p.held, r)
	}
	return nil
}

// Name implements providers.Provider.
func (p *Provider) Name() string { return p.options.Name }

// Probe implements providers.Provider.
func (p *Provider) Probe(context.Context) providers.Status {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	return p.machine.status
}

// Create implements providers.Provider.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	if err := check(spec); err != nil {
		return providers.Instance{}, err
	}
	m := p.machine
	failure := m.enter(ctx, Create, spec.Workspace)
	m.mu.Lock()
	defer m.mu.Unlock()
	if owner, taken := m.volumes[spec.Workspace]; taken && owner != p.options.ServerID {
		return providers.Instance{}, &providers.Error{Message: fmt.Sprintf("create workspace %s: another server has one of that id", spec.Workspace)}
	}
	if i := m.instances[spec.Workspace]; i != nil {
		if failure != nil {
			return providers.Instance{}, failure
		}
		return view(i), nil
	}
	i := &instance{server: p.options.ServerID, spec: spec, state: providers.StateStopped}
	if failure != nil {
		if m.half {
			m.half = false
			i.state, i.message = providers.StateBroken, failure.Error()
			m.instances[spec.Workspace] = i
			m.volumes[spec.Workspace] = p.options.ServerID
		}
		return providers.Instance{}, failure
	}
	if m.images != nil && !m.images[spec.Image] {
		return providers.Instance{}, &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("image %s does not exist", spec.Image),
			Next:    "check the name and tag",
		}
	}
	if err := m.makeVolume(spec.Workspace); err != nil {
		return providers.Instance{}, &providers.Error{Message: "make volume: " + err.Error(), Cause: err}
	}
	m.instances[spec.Workspace] = i
	m.volumes[spec.Workspace] = p.options.ServerID
	return view(i), nil
}

// Start implements providers.Provider.
func (p *Provider) Start(ctx context.Context, workspace string) error {
	if err := p.machine.enter(ctx, Start, workspace); err != nil {
		return err
	}
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	i, err := p.find(workspace)
	switch {
	case err != nil:
		return err
	case i.state == providers.StateBroken:
		return &providers.Error{Message: fmt.Sprintf("start workspace %s: it is broken: %s", workspace, i.message)}
	case i.run == nil:
		p.machine.begin(ctx, i)
	}
	return nil
}

// Stop implements providers.Provider.
func (p *Provider) Stop(ctx context.Context, workspace string, grace time.Duration) error {
	if err := p.machine.enter(ctx, Stop, workspace); err != nil {
		return err
	}
	p.machine.mu.Lock()
	i, err := p.find(workspace)
	var r *run
	if err == nil {
		r = i.run
	}
	p.machine.mu.Unlock()
	if r == nil {
		return err
	}
	r.stop()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-r.ended:
	case <-timer.C:
	case <-ctx.Done():
		return &providers.Error{Message: fmt.Sprintf("stop workspace %s: %v", workspace, ctx.Err()), Cause: ctx.Err()}
	}
	p.machine.end(i, r, "stopped")
	return nil
}

// killPatience is how long a killed guest may take to return.
const killPatience = 3 * time.Second

// Destroy implements providers.Provider.
func (p *Provider) Destroy(ctx context.Context, workspace string, removeVolume bool) error {
	m := p.machine
	if err := m.enter(ctx, Destroy, workspace); err != nil {
		return err
	}
	m.mu.Lock()
	owner, there := m.volumes[workspace]
	var last *run
	if i := m.instances[workspace]; i != nil {
		last = i.run
	}
	m.mu.Unlock()
	if !there || owner != p.options.ServerID {
		return nil // not there, for this server
	}
	m.Kill(workspace)
	if last != nil {
		// A guest here is a goroutine, which cannot be killed: it may still write
		// into its volume until it has noticed.
		patience := time.NewTimer(killPatience)
		defer patience.Stop()
		select {
		case <-last.returned:
		case <-patience.C:
		case <-ctx.Done():
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.instances, workspace)
	if removeVolume {
		if err := os.RemoveAll(m.volume(workspace)); err != nil {
			return &providers.Error{Message: "remove volume: " + err.Error(), Cause: err}
		}
		delete(m.volumes, workspace)
	}
	return nil
}

// Inspect implements providers.Provider.
func (p *Provider) Inspect(ctx context.Context, workspace string) (providers.Instance, error) {
	if err := p.machine.enter(ctx, Inspect, workspace); err != nil {
		return providers.Instance{}, err
	}
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	i, err := p.find(workspace)
	if err != nil {
		return providers.Instance{}, err
	}
	return view(i), nil
}

// List implements providers.Provider, in the order of ids.
func (p *Provider) List(ctx context.Context) ([]providers.Instance, error) {
	if err := p.machine.enter(ctx, List, ""); err != nil {
		return nil, err
	}
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	all := []providers.Instance{}
	for _, i := range p.machine.instances {
		if i.server == p.options.ServerID {
			all = append(all, view(i))
		}
	}
	slices.SortFunc(all, func(a, b providers.Instance) int { return cmp.Compare(a.Workspace, b.Workspace) })
	return all, nil
}

// Connect implements providers.Provider.
func (p *Provider) Connect(ctx context.Context, workspace string) (net.Conn, error) {
	if err := p.machine.enter(ctx, Connect, workspace); err != nil {
		return nil, err
	}
	p.machine.mu.Lock()
	i, err := p.find(workspace)
	var r *run
	if err == nil {
		r = i.run
	}
	p.machine.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, &providers.Error{Message: fmt.Sprintf("workspace %s is not running", workspace), Next: "start it"}
	}
	conn, err := p.machine.meet(ctx, r)
	if err != nil {
		return nil, &providers.Error{Message: fmt.Sprintf("connect to the guest of workspace %s: %v", workspace, err), Cause: err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[r] = conn
	return conn, nil
}

// Usage implements providers.Provider. Its numbers are made up.
func (p *Provider) Usage(ctx context.Context, workspace string) (providers.Usage, error) {
	if err := p.machine.enter(ctx, Usage, workspace); err != nil {
		return providers.Usage{}, err
	}
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	i, err := p.find(workspace)
	if err != nil {
		return providers.Usage{}, err
	}
	if i.run == nil {
		return providers.Usage{}, &providers.Error{Kind: providers.ErrNotFound, Message: fmt.Sprintf("workspace %s is not running", workspace)}
	}
	return providers.Usage{CPU: max(1, time.Since(i.started)), MemoryBytes: 1 << 20, DiskBytes: -1}, nil
}

// find returns this server's instance. The machine is locked.
func (p *Provider) find(workspace string) (*instance, error) {
	i := p.machine.instances[workspace]
	if i == nil || i.server != p.options.ServerID {
		return nil, &providers.Error{Kind: providers.ErrNotFound, Message: fmt.Sprintf("workspace %s has no instance here", workspace)}
	}
	return i, nil
}

func view(i *instance) providers.Instance {
	return providers.Instance{
		Workspace:  i.spec.Workspace,
		Name:       "fake-" + i.spec.Workspace,
		Generation: i.spec.Generation,
		State:      i.state,
		Message:    i.message,
		StartedAt:  i.started,
	}
}

func check(spec providers.Spec) error {
	r := spec.Resources
	var wrong string
	switch {
	case !workspaceID.MatchString(spec.Workspace):
		wrong = fmt.Sprintf("invalid workspace id %q", spec.Workspace)
	case spec.Name != "" && !hostName.MatchString(spec.Name):
		wrong = fmt.Sprintf("invalid workspace name %q", spec.Name)
	case r.CPUs < 0 || r.MemoryBytes < 0 || r.PIDs < 0:
		wrong = "a limit is negative"
	case !slices.Contains([]providers.Network{"", providers.NetworkPrivate, providers.NetworkNone, providers.NetworkHost}, spec.Network):
		wrong = fmt.Sprintf("unknown network %q", spec.Network)
	default:
		return nil
	}
	return &providers.Error{Kind: providers.ErrInvalid, Message: wrong}
}
