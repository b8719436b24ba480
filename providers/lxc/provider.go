//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/link"
	"github.com/vendetta-dev/vendetta/providers/network"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

// Name is how a user selects this provider.
const Name = "lxc"

// DefaultImage is the image of a workspace that names none.
const DefaultImage = "debian:12"

// DefaultPIDs is the limit on processes and threads of an instance whose spec
// names none. Its memory is then half the machine's; CPU is not limited.
const DefaultPIDs = 4096

// Images is what the provider needs of a store of images.
type Images interface {
	Get(ctx context.Context, ref, digest, holder string) (image.Image, error)
	Held(digest string) (image.Image, error)
	Hold(digest, holder string) error
	Release(holder string) error
}

// Options of a Provider.
type Options struct {
	// ServerID is the server that the instances belong to; others' are not seen.
	ServerID string
	// StateDir holds instances, volumes and snapshots. It is made 0700 when missing.
	StateDir string
	// GuestProgram is the guest's static binary on this machine.
	GuestProgram string
	// Helper is the program vendetta-lxc on this machine.
	Helper string
	// Images is the node's store.
	Images Images
	// Bridge is one of the machine's that instances join, and stays as it is;
	// empty means one of the provider's own, made with the first instance and
	// removed with the last.
	Bridge string
	// Subnet is where instances get their addresses from; the zero value means
	// 10.232.0.0/16, or with Bridge all of that bridge's network.
	Subnet netip.Prefix
	// Logger of the provider; nil is silent.
	Logger *slog.Logger
}

// Provider drives the instances of one server on this machine. Close it.
type Provider struct {
	server  string
	dir     string
	guest   string
	helper  string
	images  Images
	bridge  string
	subnet  netip.Prefix
	log     *slog.Logger
	machine machine
	trash   *tree.Trash
	// overlay is image.Overlay.
	overlay func(image.OverlayOptions) (int, error)

	mu        sync.Mutex
	listeners map[string]*link.Listener

	wayMu  sync.Mutex
	wayAt  time.Time
	wayNow func() time.Time
}

var _ providers.Provider = (*Provider)(nil)

// machine is what this process may do here.
type machine struct {
	root     bool
	ids      host.IDs
	mapped   bool // this root can map the ids
	memory   int64
	iptables string
	mounts   string // the file that lists them
	// Files and folders of the distribution's and the kernel's, by their places.
	seccomp  string
	apparmor string
	sysctl   string
}

func thisMachine() machine {
	m := machine{
		root: os.Geteuid() == 0, mounts: "/proc/self/mounts",
		seccomp:  "/usr/share/lxc/config/common.seccomp",
		apparmor: "/sys/kernel/security/apparmor/profiles",
		sysctl:   "/proc/sys",
		memory:   host.Memory(),
	}
	if m.root {
		m.ids, m.mapped = host.RootIDs()
		m.iptables = network.FindIPTables()
	}
	return m
}

// New makes the provider. It does not touch the machine; Probe says whether it
// can work here.
func New(opts Options) *Provider {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if !opts.Subnet.IsValid() && opts.Bridge == "" {
		opts.Subnet = netip.MustParsePrefix("10.232.0.0/16")
	}
	log := opts.Logger.With("provider", Name)
	return &Provider{
		server:    opts.ServerID,
		dir:       opts.StateDir,
		guest:     opts.GuestProgram,
		helper:    opts.Helper,
		images:    opts.Images,
		bridge:    opts.Bridge,
		subnet:    opts.Subnet.Masked(),
		log:       log,
		machine:   thisMachine(),
		trash:     tree.NewTrash(filepath.Join(opts.StateDir, "trash"), log),
		overlay:   image.Overlay,
		listeners: map[string]*link.Listener{},
		wayNow:    time.Now,
	}
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

// Name is "lxc".
func (p *Provider) Name() string { return Name }

func (p *Provider) instancesDir() string          { return filepath.Join(p.dir, "instances") }
func (p *Provider) instanceDir(ws string) string  { return filepath.Join(p.instancesDir(), ws) }
func (p *Provider) volumeDir(ws string) string    { return filepath.Join(p.dir, "volumes", ws) }
func (p *Provider) snapshotsDir(ws string) string { return filepath.Join(p.dir, "snapshots", ws) }

func instanceName(ws string) string { return "vendetta-" + ws }

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
