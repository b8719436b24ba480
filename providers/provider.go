package providers

import (
	"context"
	"net"
	"time"
)

// Provider drives one kind of instance on this machine.
//
// The life of an instance: Create makes it, with the workspace's volume mounted
// at /workspace and the guest's program in place; Start runs the guest as its
// first process; Connect is the stream to that guest; Stop ends it and keeps
// the instance; Destroy removes the instance and, only when told to, the volume.
//
// Every call may be repeated, and may come from a new process that knows nothing
// of the earlier ones: what exists is found by its labels (vendetta.server,
// vendetta.workspace, vendetta.generation), never by memory. Instances outlive
// the process that made them. A call that fails or is cancelled leaves either
// nothing or something that List shows and Destroy removes. Calls for different
// workspaces run at the same time; calls for one workspace are serialised by
// the caller, Connect and Inspect aside. Objects of another server's id are
// never seen and never touched.
//
// Errors are *Error with one of the codes of this package.
type Provider interface {
	// Name is the word a user selects the provider by: docker, native, fake.
	Name() string

	// Probe says whether the provider is usable here and now, and if not, why
	// and which command fixes it. It changes nothing, returns within ctx, and
	// never fails: trouble is part of the answer.
	Probe(ctx context.Context) Status

	// Create makes the instance of spec, stopped. It fetches the image when the
	// machine does not have it. Repeated for a workspace that has an instance it
	// returns that instance unchanged, whatever the rest of spec says. The
	// instance's name is derived from the workspace id alone. The volume is
	// made when there is none and kept as it is when there is one. After an
	// error no instance exists, or List shows it.
	Create(ctx context.Context, spec Spec) (Instance, error)

	// Start runs the guest; a paused instance is resumed. A running instance is
	// success. ErrNotFound when there is no instance.
	Start(ctx context.Context, workspace string) error

	// Stop asks the guest to end (SIGTERM) and kills it after grace; a paused one
	// too. A stopped instance is success; ErrNotFound when there is none.
	Stop(ctx context.Context, workspace string, grace time.Duration) error

	// Destroy kills and removes the instance, its network and its records; with
	// removeVolume also /workspace, the guest's state and the workspace's
	// snapshots. An absent instance is success, and the volume is then still
	// removed when asked for. After an error a repeat goes on where it ended.
	Destroy(ctx context.Context, workspace string, removeVolume bool) error

	// Inspect returns the instance as it is now, ErrNotFound when there is none.
	Inspect(ctx context.Context, workspace string) (Instance, error)

	// List returns all instances of this server, half-made ones included.
	List(ctx context.Context) ([]Instance, error)

	// Connect waits until the instance's guest is there and returns a stream on
	// which it serves its API, before any byte was exchanged. A guest holds one
	// stream: a later Connect takes its place. It ends with ctx. A process that
	// was restarted calls it anew for each running instance.
	Connect(ctx context.Context, workspace string) (net.Conn, error)

	// Usage returns what the instance uses now. ErrNotFound when it is not running.
	Usage(ctx context.Context, workspace string) (Usage, error)
}

// Spec is what Create needs to know.
type Spec struct {
	// Workspace is the workspace's id: [a-z0-9]{1,32}, unique over all servers.
	Workspace string
	// Name is what the user calls it; it becomes the host name inside.
	Name string
	// Generation is recorded in the label vendetta.generation.
	Generation int64
	// Image is the user's reference. Empty means the provider's default, which
	// for native is the machine's own system.
	Image string
	// Digest is what Image meant when the workspace was first made, as Instance
	// told it; empty the first time. Where it is set it is what counts, so that a
	// workspace that comes back has the image it had.
	Digest string
	// Checksum, sha256:HEX or sha512:HEX, is what a disk image that is fetched by
	// its address must have.
	Checksum string
	// Privileged wants an instance whose root is the machine's root, where the
	// provider has such (lxc). The others refuse it.
	Privileged bool
	Resources  Resources
	Network    Network
}

// Resources bound an instance. Zero means the provider's default, which its
// documentation names.
type Resources struct {
	// CPUs in processors; fractions allowed.
	CPUs float64
	// MemoryBytes of memory.
	MemoryBytes int64
	// PIDs is the most processes and threads.
	PIDs int64
	// DiskBytes bounds what the instance writes, /workspace included. A provider
	// that cannot hold an instance to it refuses it with ErrUnsupported.
	DiskBytes int64
}

// Network says what an instance reaches.
type Network string

// The kinds of network.
const (
	// NetworkPrivate is the default: the instance's own addresses and, where the
	// provider can, a way out.
	NetworkPrivate Network = "private"
	// NetworkNone is loopback alone.
	NetworkNone Network = "none"
	// NetworkHost is the machine's own network, by the user's explicit wish.
	NetworkHost Network = "host"
)

// State of an instance.
type State string

// The states.
const (
	StateStopped State = "stopped"
	StateRunning State = "running"
	// StatePaused keeps its processes and memory and gets no processor time.
	StatePaused State = "paused"
	// StateBroken is half-made or damaged: only Destroy helps.
	StateBroken State = "broken"
)

// Instance is what a provider made for a workspace.
type Instance struct {
	// Workspace is the id it was made for.
	Workspace string
	// Name is the provider's own, for people who look with its tools.
	Name       string
	Generation int64
	State      State
	// Message says why it is broken or how it ended.
	Message   string
	StartedAt time.Time
	// Digest is what the spec's image was resolved to, for Spec.Digest; empty
	// where there is no image.
	Digest string
	// Boot is how long the guest may take to answer after a start; 0 where it is
	// the instance's first process and answers at once.
	Boot time.Duration
}

// Status is what a probe found.
type Status struct {
	Usable  bool
	Version string
	// Capabilities beyond the contract, sorted.
	Capabilities []string
	// Reason says why it is not usable, or what is restricted here.
	Reason string
	// Fix is the command that helps.
	Fix string
}

// Usage of an instance.
type Usage struct {
	// CPU is processor time since the start.
	CPU time.Duration
	// MemoryBytes now, page cache aside where the provider can tell.
	MemoryBytes int64
	// DiskBytes the instance wrote, its volume included, where the provider can
	// tell; else -1.
	DiskBytes int64
}

// Labels that every object of ours carries.
const (
	LabelServer     = "vendetta.server"
	LabelWorkspace  = "vendetta.workspace"
	LabelGeneration = "vendetta.generation"
)

// Paths inside an instance, the same for all providers.
const (
	// GuestProgram is where the guest's program lies, read-only.
	GuestProgram = "/.vendetta/bin/vendetta-guest"
	// GuestLink is the folder with the socket that the guest dials, read-only.
	GuestLink = "/.vendetta/link"
	// GuestSocket lies in GuestLink.
	GuestSocket = "guest.sock"
	// GuestState is the guest's own folder: process records and output. It lives
	// with the volume, so it survives the instance.
	GuestState = "/.vendetta/state"
	// Project is the workspace's folder.
	Project = "/workspace"
)

// Variables by which a provider tells the guest its circumstances.
const (
	// EnvGuestUser is the user that commands run as unless told otherwise.
	EnvGuestUser = "VENDETTA_GUEST_USER"
)
