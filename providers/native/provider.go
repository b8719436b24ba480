//go:build linux

package native

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/link"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

// Name is how a user selects this provider.
const Name = "native"

// DefaultPIDs is the limit on processes and threads of an instance whose spec
// names none. CPU and memory are not limited unless the spec says so.
const DefaultPIDs = 4096

// Options of a Provider.
type Options struct {
	// ServerID is the server that the instances belong to; others' are not seen.
	ServerID string
	// StateDir holds instances and volumes. It is made 0700 when missing.
	StateDir string
	// GuestProgram is the guest's static binary on this machine.
	GuestProgram string
	// InitCommand runs a program that calls [Init], usually this very binary with
	// a hidden subcommand. Its first element is an absolute path.
	InitCommand []string
	// Subnet is where private networks get their addresses from, four each;
	// the zero value means 10.231.0.0/16.
	Subnet netip.Prefix
	// Images is the machine's store; without one no image is taken.
	Images Images
	// Logger of the provider; nil is silent.
	Logger *slog.Logger
}

// Provider drives the instances of one server on this machine. Close it.
type Provider struct {
	server  string
	dir     string
	guest   string
	init    []string
	subnet  netip.Prefix
	log     *slog.Logger
	machine machine

	mu        sync.Mutex
	listeners map[string]*link.Listener
	held      map[string]bool // halted for a call of this process

	images Images

	trash *tree.Trash
}

var _ providers.Provider = (*Provider)(nil)

// New makes the provider. It does not touch the machine; Probe says whether it
// can work here.
func New(opts Options) *Provider {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if !opts.Subnet.IsValid() {
		opts.Subnet = netip.MustParsePrefix("10.231.0.0/16")
	}
	p := &Provider{
		server:    opts.ServerID,
		dir:       opts.StateDir,
		guest:     opts.GuestProgram,
		init:      opts.InitCommand,
		subnet:    opts.Subnet.Masked(),
		log:       opts.Logger.With("provider", Name),
		machine:   thisMachine(),
		listeners: map[string]*link.Listener{},
		held:      map[string]bool{},
		images:    opts.Images,
	}
	p.trash = tree.NewTrash(filepath.Join(p.dir, "trash"), p.log)
	return p
}

// Close ends what this process holds: sockets that guests dial and the removal
// of deleted files, which a later Destroy takes up again. Instances run on.
func (p *Provider) Close() error {
	p.trash.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for ws, l := range p.listeners {
		errs = append(errs, l.Close())
		delete(p.listeners, ws)
	}
	return errors.Join(errs...)
}

// Name is "native".
func (p *Provider) Name() string { return Name }

func (p *Provider) instanceDir(ws string) string { return filepath.Join(p.dir, "instances", ws) }
func (p *Provider) volumeDir(ws string) string   { return filepath.Join(p.dir, "volumes", ws) }
func (p *Provider) snapshotsDir(ws string) string {
	return filepath.Join(p.dir, "snapshots", ws)
}

var workspaceID = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

// checkID keeps anything but an id out of paths.
func checkID(op, ws string) error {
	if workspaceID.MatchString(ws) {
		return nil
	}
	return &providers.Error{Kind: providers.ErrInvalid, Message: fmt.Sprintf("%s: %q is no workspace id", op, ws)}
}

// lock holds the state folder against other processes and goroutines.
func (p *Provider) lock() (release func(), err error) {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	return host.Lock(filepath.Join(p.dir, "lock"))
}
