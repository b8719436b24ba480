package docker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/link"
)

var (
	workspaceID = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
	serverID    = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	hostName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// Provider is the driver; see the package's comment.
type Provider struct {
	options Options
	engine  *engine

	mu    sync.Mutex
	known *machine                  // what the engine said of itself
	links map[string]*link.Listener // by workspace
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Forker      = (*Provider)(nil)
	_ providers.Pauser      = (*Provider)(nil)
	_ providers.Resizer     = (*Provider)(nil)
	_ providers.Consoler    = (*Provider)(nil)
)

// New makes the driver. It does not talk to the engine: whether that is there is
// Probe's answer.
func New(options Options) (*Provider, error) {
	options = options.withDefaults()
	if !serverID.MatchString(options.ServerID) {
		return nil, fmt.Errorf("docker provider: invalid server id %q", options.ServerID)
	}
	for name, path := range map[string]string{"state folder": options.StateDir, "guest program": options.GuestProgram} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("docker provider: %s %q is not an absolute path", name, path)
		}
	}
	e, err := dial(options.Host, options.Logger, options.PullTimeout)
	if err != nil {
		return nil, fmt.Errorf("docker provider: %w", err)
	}
	return &Provider{options: options, engine: e, links: map[string]*link.Listener{}}, nil
}

// Name implements providers.Provider.
func (p *Provider) Name() string { return "docker" }

// Close lets go of the guests' links and the engine's connections. Instances go on.
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	errs := []error{p.engine.Close()}
	for workspace, l := range p.links {
		errs = append(errs, l.Close())
		delete(p.links, workspace)
	}
	return errors.Join(errs...)
}

// instanceName is the container's, derived from the workspace's id alone.
func instanceName(workspace string) string { return "vendetta-" + workspace }

// folder holds what this machine keeps for one workspace beside the engine.
func (p *Provider) folder(workspace string) string {
	return filepath.Join(p.options.StateDir, workspace)
}

func checkWorkspace(workspace string) error {
	if !workspaceID.MatchString(workspace) {
		return &providers.Error{Kind: providers.ErrInvalid, Message: fmt.Sprintf("invalid workspace id %q", workspace)}
	}
	return nil
}

// Labels beside the contract's.
const (
	// labelImage on a container and a snapshot: what the spec's image was.
	labelImage = "vendetta.image"
	// labelRoot on a container that was made from a snapshot or as a fork: the name
	// of the image that its root came from.
	labelRoot = "vendetta.root"
	// labelSnapshot on a snapshot's image and volumes: its name.
	labelSnapshot = "vendetta.snapshot"
	// labelCreated on a snapshot's image: when, by RFC 3339.
	labelCreated = "vendetta.created"
	// labelExtra on a snapshot's image: what its volumes take less what the image
	// shares with the one below it, so that both together are its size.
	labelExtra = "vendetta.extra-bytes"
	// labelTurn on the volumes that a restore made: the number of it.
	labelTurn = "vendetta.turn"
)

// labels are what every object of a workspace carries.
func (p *Provider) labels(workspace string, generation int64) map[string]string {
	return map[string]string{
		providers.LabelServer:     p.options.ServerID,
		providers.LabelWorkspace:  workspace,
		providers.LabelGeneration: fmt.Sprint(generation),
	}
}

// checkGuestProgram says whether the guest's program can be mounted.
func (p *Provider) checkGuestProgram() error {
	info, err := os.Stat(p.options.GuestProgram)
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0) {
		err = errors.New("not an executable file")
	}
	if err != nil {
		return &providers.Error{
			Kind:    providers.ErrUnusable,
			Message: fmt.Sprintf("guest program %s is not usable: %v", p.options.GuestProgram, err),
			Next:    "install the node agent again, its guest program is missing or damaged",
			Cause:   err,
		}
	}
	return nil
}
