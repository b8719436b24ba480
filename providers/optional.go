package providers

import (
	"context"
	"io"
	"time"
)

// The interfaces below are what some providers can do beyond Provider. One that
// has the methods may still be unable to on this machine: Probe announces what
// works by the capability of the same name, and what is not announced answers
// ErrUnsupported and changes nothing.
const (
	// CapabilitySnapshot: Snapshotter.
	CapabilitySnapshot = "snapshot"
	// CapabilitySnapshotMemory: a snapshot of a running instance holds its
	// processes and memory, and a restore goes on with them.
	CapabilitySnapshotMemory = "snapshot-memory"
	// CapabilityFork: Forker.
	CapabilityFork = "fork"
	// CapabilityForkMemory: a fork of a running instance runs on with its
	// processes and memory.
	CapabilityForkMemory = "fork-memory"
	// CapabilityPause: Pauser.
	CapabilityPause = "pause"
	// CapabilityResize: Resizer.
	CapabilityResize = "resize"
	// CapabilityLimitDisk: Resources.DiskBytes is taken.
	CapabilityLimitDisk = "limit-disk"
)

// Snapshotter keeps named states of an instance: its root, /workspace and the
// guest's own folder together, as they were in one moment. An instance that runs
// is halted for that moment and runs on. Snapshots belong to the workspace: they
// outlive Destroy without removeVolume and end with it otherwise.
//
// A name is [a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?; another is ErrInvalid.
// ErrNotFound says that there is no such instance, or no such snapshot.
type Snapshotter interface {
	// Snapshot keeps the state under name. Repeated with a name that is kept it
	// returns that snapshot unchanged. After an error or a cancelled ctx there
	// is none of that name, and the instance is in the state that it was in.
	Snapshot(ctx context.Context, workspace, name string) (Snapshot, error)

	// Snapshots returns those of a workspace, the oldest first. A workspace
	// without an instance may have some; one that is unknown has none.
	Snapshots(ctx context.Context, workspace string) ([]Snapshot, error)

	// Restore puts the state back; what came after it is gone. An instance that
	// runs is ended for it. It is left running when the snapshot has Memory, else
	// stopped. The snapshot stays. After an error the instance is as it was, or
	// StateBroken, which a repeat mends.
	Restore(ctx context.Context, workspace, name string) error

	// RemoveSnapshot of an absent one is success.
	RemoveSnapshot(ctx context.Context, workspace, name string) error
}

// Snapshot is one kept state.
type Snapshot struct {
	Name      string
	CreatedAt time.Time
	// Bytes that it takes on disk, -1 where the provider cannot tell.
	Bytes int64
	// Memory: it holds running processes.
	Memory bool
}

// Forker makes an instance from another one.
type Forker interface {
	// Fork makes the instance of spec as Create does, with root, /workspace and
	// the guest's folder as origin has them now. What spec leaves open is
	// origin's. The origin is halted for that moment and is then as it was. The
	// fork is left stopped, or running where Probe announces fork-memory and the
	// origin runs. Repeated for a workspace that has an instance it returns that
	// one. After an error nothing of the fork exists, or List shows it.
	Fork(ctx context.Context, origin string, spec Spec) (Instance, error)
}

// Pauser halts an instance with all its processes and lets it go on. The guest's
// link stays as it is meanwhile and carries nothing.
type Pauser interface {
	// Pause halts a running instance; a paused one is success. One that is
	// stopped, or not there, is ErrNotFound.
	Pause(ctx context.Context, workspace string) error
	// Resume lets a paused instance go on; a running one is success. One that is
	// stopped, or not there, is ErrNotFound.
	Resume(ctx context.Context, workspace string) error
}

// Resizer changes an instance's limits.
type Resizer interface {
	// Resize makes r the instance's limits; zero in a field leaves that one as it
	// is. The note says what comes into effect at the next start only, and is
	// empty when all of it is in effect now. A disk only grows: less is
	// ErrInvalid. After an error the limits are what they were. Repeating it is
	// harmless.
	Resize(ctx context.Context, workspace string, r Resources) (note string, err error)
}

// Consoler tells what an instance last said on its console, for people who want
// to know why its guest does not answer.
type Consoler interface {
	// Console returns the last lines, at most 4 KiB, "" when there are none.
	Console(ctx context.Context, workspace string) string
}

// Images is a store of images on this machine. Several providers may share one.
type Images interface {
	// Name of the store: node for the one that native, lxc and qemu share,
	// docker for the engine's.
	Name() string
	// List returns what is there, by reference.
	List(ctx context.Context) ([]Image, error)
	// Pull fetches an image and unpacks it. An image that is there already is
	// looked up again, as a tag may have moved. said is told of the progress, in
	// a line for people, and may be nil.
	Pull(ctx context.Context, ref string, said func(string)) (Image, error)
	// Import takes an OCI layout as a tar, or what docker save writes, and gives
	// it the name ref; an empty ref leaves it the name that the archive has.
	Import(ctx context.Context, ref string, archive io.Reader) (Image, error)
	// Prune removes the images that no instance and no snapshot uses, and
	// returns them. Those that it cannot tell to be unused stay.
	Prune(ctx context.Context) ([]Image, error)
}

// Image is one image in a store.
type Image struct {
	// Ref is the name that it was fetched by.
	Ref string
	// Digest of its manifest (or of the disk image's bytes).
	Digest string
	// Bytes that it takes on disk, -1 where the store cannot tell.
	Bytes int64
	// Used is the number of instances and snapshots made from it, -1 where the
	// store cannot tell.
	Used      int
	CreatedAt time.Time
}
