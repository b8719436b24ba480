//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/network"
)

// Name is how a user selects this provider.
const Name = "qemu"

// What a machine gets when its spec leaves it open.
const (
	DefaultCPUs        = 1
	DefaultMemoryBytes = 1 << 30
	DefaultPIDs        = 4096
	DefaultDiskBytes   = 10 << 30
)

// Images is what the provider needs of a store of images.
type Images interface {
	Get(ctx context.Context, ref, digest, holder string) (image.Image, error)
	Held(digest string) (image.Image, error)
	GetDisk(ctx context.Context, ref, checksum, digest, holder string) (image.Disk, error)
	HeldDisk(digest string) (image.Disk, error)
	Derived(ctx context.Context, digest, name string, make func(ctx context.Context, path string) error) (string, error)
	Hold(digest, holder string) error
	Release(holder string) error
}

// Options of a Provider.
type Options struct {
	// ServerID is the server that the instances belong to; others' are not seen.
	ServerID string
	// StateDir holds instances and volumes. It is made 0700 when missing.
	StateDir string
	// GuestProgram is the guest's static binary on this machine.
	GuestProgram string
	// Images is the node's store.
	Images Images
	// Kernel is a bzImage to boot container images with; empty means the newest
	// of KernelDir, then of /boot.
	Kernel string
	// Modules is the kernel's folder of modules; empty means where the
	// distributions put it, beside the kernel or in /lib/modules.
	Modules string
	// KernelDir may hold a kernel that nobody has to name.
	KernelDir string
	// Program is QEMU; empty means qemu-system-x86_64 in PATH.
	Program string
	// NoKVM leaves hardware acceleration alone.
	NoKVM bool
	// Logger of the provider; nil is silent.
	Logger *slog.Logger
}

// Provider drives the instances of one server on this machine. Close it.
type Provider struct {
	opts   Options
	server string
	dir    string
	log    *slog.Logger
	root   bool
	// iptables of the machine, "" for none.
	iptables string

	probes prober

	mu    sync.Mutex
	links map[string]net.Conn

	life    context.Context //nolint:containedctx // the provider's own, for what goes on beside calls
	endLife context.CancelFunc
	work    conc.WaitGroup
}

var _ providers.Provider = (*Provider)(nil)

// New makes the provider. It does not touch the machine; Probe says whether it
// can work here.
func New(opts Options) *Provider {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Provider{
		opts:   opts,
		server: opts.ServerID,
		dir:    opts.StateDir,
		log:    opts.Logger.With("provider", Name),
		root:   os.Geteuid() == 0,
		links:  map[string]net.Conn{},
	}
	if p.root {
		p.iptables = network.FindIPTables()
	}
	p.life, p.endLife = context.WithCancel(context.Background()) //nolint:forbidigo // ends with Close
	return p
}

// Close ends what this process holds: the streams to guests. Machines run on.
func (p *Provider) Close() error {
	p.endLife()
	p.mu.Lock()
	for ws, conn := range p.links {
		_ = conn.Close() // its holder may have closed it
		delete(p.links, ws)
	}
	p.mu.Unlock()
	p.work.Wait()
	return nil
}

// Name is "qemu".
func (p *Provider) Name() string { return Name }

func (p *Provider) instanceDir(ws string) string { return filepath.Join(p.dir, "instances", ws) }
func (p *Provider) volumeDir(ws string) string   { return filepath.Join(p.dir, "volumes", ws) }
func (p *Provider) bootDir() string              { return filepath.Join(p.dir, "boot") }

// holder is the name under which an instance keeps its image.
func (p *Provider) holder(ws string) string { return "qemu-" + p.server + "-" + ws }

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

// discard removes a folder of the agent's own. No workspace can change what is in
// it, other than through QEMU's open files.
func discard(path string) error {
	err := os.RemoveAll(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
