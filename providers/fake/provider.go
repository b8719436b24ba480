package fake

import (
	"cmp"
	"context"
	"errors"
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

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Forker      = (*Provider)(nil)
	_ providers.Pauser      = (*Provider)(nil)
	_ providers.Resizer     = (*Provider)(nil)
	_ providers.Consoler    = (*Provider)(nil)
)

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
	status := p.machine.status
	status.Capabilities = slices.Clone(status.Capabilities)
	return status
}

// Create implements providers.Provider.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	m := p.machine
	if err := check(spec); err != nil {
		return providers.Instance{}, err
	}
	failure := m.enter(ctx, Create, spec.Workspace)
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.make(Create, spec, failure, nil)
}

// make makes the instance of spec, unless failure says how that ends. fill puts
// what a fork begins with into the volume. The machine is locked.
func (p *Provider) make(operation Operation, spec providers.Spec, failure error, fill func(volume string) error) (providers.Instance, error) {
	m := p.machine
	if owner, taken := m.volumes[spec.Workspace]; taken && owner != p.options.ServerID {
		return providers.Instance{}, &providers.Error{Message: fmt.Sprintf("%s workspace %s: another server has one of that id", operation, spec.Workspace)}
	}
	if i := m.instances[spec.Workspace]; i != nil {
		if failure != nil {
			return providers.Instance{}, failure
		}
		return m.view(i), nil
	}
	i := &instance{server: p.options.ServerID, spec: spec, state: providers.StateStopped}
	if failure != nil {
		if m.half[operation] {
			delete(m.half, operation)
			i.state, i.message = providers.StateBroken, failure.Error()
			m.instances[spec.Workspace] = i
			m.volumes[spec.Workspace] = p.options.ServerID
		}
		return providers.Instance{}, failure
	}
	if err := m.takes(spec); err != nil {
		return providers.Instance{}, err
	}
	digest, err := m.store.resolve(spec.Image, spec.Digest)
	if err != nil {
		return providers.Instance{}, err
	}
	i.spec.Digest = digest
	if fill != nil {
		err = fill(m.volume(spec.Workspace))
	} else {
		err = m.makeVolume(spec.Workspace)
	}
	if err != nil {
		return providers.Instance{}, &providers.Error{Message: "make volume: " + err.Error(), Cause: err}
	}
	m.instances[spec.Workspace] = i
	m.volumes[spec.Workspace] = p.options.ServerID
	return m.view(i), nil
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
	default:
		p.machine.resume(i, i.run)
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
	p.machine.goOn(i, r)
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
	last.gone(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.instances, workspace)
	delete(m.consoles, workspace)
	if removeVolume {
		if err := errors.Join(os.RemoveAll(m.volume(workspace)), os.RemoveAll(m.kept(workspace))); err != nil {
			return &providers.Error{Message: "remove volume: " + err.Error(), Cause: err}
		}
		delete(m.volumes, workspace)
		delete(m.snapshots, workspace)
	}
	return nil
}

// gone waits for a guest that was killed. One here is a goroutine, which cannot
// be killed: it may still write into its volume until it has noticed.
func (r *run) gone(ctx context.Context) {
	if r == nil {
		return
	}
	patience := time.NewTimer(killPatience)
	defer patience.Stop()
	select {
	case <-r.returned:
	case <-patience.C:
	case <-ctx.Done():
	}
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
	return p.machine.view(i), nil
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
			all = append(all, p.machine.view(i))
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

// view is what i is now. The machine is locked.
func (m *Machine) view(i *instance) providers.Instance {
	return providers.Instance{
		Workspace:  i.spec.Workspace,
		Name:       "fake-" + i.spec.Workspace,
		Generation: i.spec.Generation,
		State:      i.state,
		Message:    i.message,
		StartedAt:  i.started,
		Digest:     i.spec.Digest,
		Boot:       m.boot,
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
	case r.CPUs < 0 || r.MemoryBytes < 0 || r.PIDs < 0 || r.DiskBytes < 0:
		wrong = "a limit is negative"
	case !slices.Contains([]providers.Network{"", providers.NetworkPrivate, providers.NetworkNone, providers.NetworkHost}, spec.Network):
		wrong = fmt.Sprintf("unknown network %q", spec.Network)
	default:
		return nil
	}
	return &providers.Error{Kind: providers.ErrInvalid, Message: wrong}
}

// takes refuses what this machine was not said to be able to. The machine is
// locked.
func (m *Machine) takes(spec providers.Spec) error {
	if spec.Privileged {
		return &providers.Error{
			Kind:    providers.ErrUnsupported,
			Message: fmt.Sprintf("create workspace %s: this provider makes no privileged instances", spec.Workspace),
			Next:    "leave it out, or use lxc",
		}
	}
	if spec.Resources.DiskBytes > 0 {
		return m.can(providers.CapabilityLimitDisk, "create", spec.Workspace)
	}
	return nil
}

// can is ErrUnsupported unless Probe announces a capability. The machine is locked.
func (m *Machine) can(capability string, operation Operation, workspace string) error {
	if slices.Contains(m.status.Capabilities, capability) {
		return nil
	}
	return &providers.Error{
		Kind:    providers.ErrUnsupported,
		Message: fmt.Sprintf("%s workspace %s: this machine has no %s", operation, workspace, capability),
	}
}
