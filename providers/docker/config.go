package docker

import (
	"log/slog"
	"time"
)

// Options of the provider.
type Options struct {
	// ServerID is the server whose instances these are: [a-z0-9-]{1,64}.
	ServerID string
	// StateDir is a folder of the agent's own for the guests' links.
	StateDir string
	// GuestProgram is the path of the static guest program on this machine. It is
	// mounted into instances, so it must stay there.
	GuestProgram string
	// Host is the engine's address. Empty means what DOCKER_HOST says, else the
	// engine's default socket.
	Host string
	// Logger is told of image pulls and of clean-up that did not work.
	Logger *slog.Logger
	// CreateTimeout bounds Create, the fetching of the image aside; 0 means 20 s.
	CreateTimeout time.Duration
	// PullTimeout bounds the fetching of an image; 0 means 15 minutes.
	PullTimeout time.Duration
	// KeepFree is how many bytes of the engine's disk a snapshot, a restore or a
	// fork leaves; 0 means 1 GiB.
	KeepFree int64
}

const (
	createTimeout = 20 * time.Second
	pullTimeout   = 15 * time.Minute
	// cleanupTimeout bounds the removal of what a failed Create left.
	cleanupTimeout = 10 * time.Second
	// engineTimeout bounds what the engine does alone and cannot be stopped at: an
	// image of a large root, the removal of a large volume.
	engineTimeout = 15 * time.Minute
	keepFree      = 1 << 30
)

// Defaults of an instance's resources; memory is a share of the machine's.
const (
	defaultPIDs        = 4096
	defaultMemoryShare = 2
	// minMemory is the least that the engine takes.
	minMemory = 6 << 20
)

// Bounds of the log of the guest program itself, which the engine keeps.
const (
	logSize  = "1m"
	logFiles = "1"
	// logLimit is the most that is read of it.
	logLimit = 2 << 20
	// logTail is how many of its last lines an error quotes.
	logTail  = "5"
	logQuote = 2000
	// consoleTail and consoleQuote bound what Console returns.
	consoleTail  = "100"
	consoleQuote = 4 << 10
)

func (o Options) withDefaults() Options {
	if o.CreateTimeout <= 0 {
		o.CreateTimeout = createTimeout
	}
	if o.PullTimeout <= 0 {
		o.PullTimeout = pullTimeout
	}
	if o.KeepFree <= 0 {
		o.KeepFree = keepFree
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}
