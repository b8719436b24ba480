package providertest

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// patience bounds everything that the suite waits for.
const patience = 60 * time.Second

// Harness is what a driver brings.
type Harness struct {
	// New returns the provider for a server's id, as a process that was just
	// started would make it: it shares with earlier values only what lies on the
	// machine. A provider with a Close method is closed before the test ends and
	// before a New that stands for its restart.
	New func(t *testing.T, server string) providers.Provider
	// Leftovers names all that is on the machine of a workspace: instances,
	// volumes, folders, mounts. After Destroy with the volume it must be nothing.
	Leftovers func(t *testing.T, workspace string) []string
	// Objects names all that the driver has on this machine, of whatever workspace
	// and server, where RunCycles cannot see it by itself: folders, containers,
	// volumes, images. Nil for a driver that has no such thing.
	Objects func(t *testing.T) []string
	// Kill ends an instance behind the provider's back. Nil leaves that test out.
	Kill func(t *testing.T, p providers.Provider, workspace string)

	// Image is one with a shell and the usual commands. Empty is the provider's
	// default, the machine's own system, and a driver that has both joins twice;
	// without MissingImage too it takes no image at all, and must refuse one.
	Image string
	// MissingImage is a reference that nothing answers to.
	MissingImage string
	// ImageVariable is a variable that Image sets to its own name; empty leaves that out.
	ImageVariable string
	// UserImage is one whose user is UserImageUID; empty leaves that out.
	UserImage    string
	UserImageUID string

	// Isolated: an instance has process ids, a host name and files of its own,
	// with /workspace and the folders of package providers where they belong.
	Isolated bool
	// Hardened: the capabilities and no-new-privileges of the design.
	Hardened bool
	// Privileged: Spec.Privileged is taken here. Elsewhere it must be refused.
	Privileged bool
	// LimitsPIDs, LimitsMemory and LimitsCPU: those limits are enforced. That of
	// the disk is, where Probe announces it.
	LimitsPIDs   bool
	LimitsMemory bool
	LimitsCPU    bool
	// Networks: NetworkNone leaves loopback alone.
	Networks bool
}

// Run runs the suite. What a driver can do beyond the contract is tested where
// Probe announces it; elsewhere it is held to its refusal.
func Run(t *testing.T, h Harness) {
	show := newShowroom(t, h)
	can := capable(t, show.b)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *bench)
		when bool
	}{
		{"Name", testName, true},
		{"Probe", testProbe, true},
		{"Life", testLife, true},
		{"Repeats", testRepeats, true},
		{"Absent", testAbsent, true},
		{"NameIsDerived", testNameIsDerived, true},
		{"List", testList, true},
		{"NewProcessFindsAll", testNewProcess, true},
		{"ServersApart", testServersApart, true},
		{"VolumeIsKept", testVolumeIsKept, true},
		{"VolumeIsRemoved", testVolumeIsRemoved, true},
		{"Guest", testGuest, true},
		{"ConnectReplaces", testConnectReplaces, true},
		{"ConnectEnds", testConnectEnds, true},
		{"CommandOutlivesProcess", testCommandOutlivesProcess, true},
		{"StopGrace", testStopGrace, true},
		{"StartAgain", testStartAgain, true},
		{"Killed", testKilled, h.Kill != nil},
		{"Cancelled", testCancelled, true},
		{"Concurrent", testConcurrent, true},
		{"Usage", testUsage, true},
		{"Console", testConsole, true},
		{"BadSpecs", testBadSpecs, true},
		{"MissingImage", testMissingImage, h.MissingImage != ""},
		{"NoImages", testNoImages, h.Image == "" && h.MissingImage == ""},
		{"Digest", testDigest, h.Image != ""},
		{"ImageEnvironment", testImageEnvironment, h.ImageVariable != ""},
		{"ImageUser", testImageUser, h.UserImage != ""},
		{"Isolation", testIsolation, h.Isolated},
		{"ReadOnlyParts", testReadOnlyParts, h.Isolated},
		{"Capabilities", testCapabilities, h.Hardened},
		{"Limits", testLimits, h.LimitsPIDs || h.LimitsMemory || h.LimitsCPU},
		{"NetworkNone", testNetworkNone, h.Networks},
		{"Privileged", testPrivileged, h.Privileged},
		{"Unannounced", testUnannounced, true},
		{"Snapshots", testSnapshots, can(providers.CapabilitySnapshot)},
		{"SnapshotRefusals", testSnapshotRefusals, can(providers.CapabilitySnapshot)},
		{"Fork", testFork, can(providers.CapabilityFork)},
		{"ForkRefusals", testForkRefusals, can(providers.CapabilityFork)},
		{"Pause", testPause, can(providers.CapabilityPause)},
		{"Resize", testResize, can(providers.CapabilityResize)},
		{"LimitDisk", testLimitDisk, can(providers.CapabilityLimitDisk)},
	} {
		if c.when {
			t.Run(c.name, func(t *testing.T) {
				b := newBench(t, h)
				b.show = show
				c.run(t, b)
			})
		}
	}
}

// testPatience bounds each test.
const testPatience = 3 * patience

func newBench(t *testing.T, h Harness) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	t.Cleanup(cancel)
	b := &bench{Harness: h, ctx: ctx, server: "t" + random(t)}
	b.p = b.open(t, b.server)
	return b
}

// bench is one test's: a provider and the workspaces made with it.
type bench struct {
	Harness
	ctx    context.Context //nolint:containedctx // bounds one test
	server string
	p      providers.Provider
	show   *showroom
}

// showroom is an instance for the tests that only look inside one, since to boot
// a virtual machine takes seconds.
type showroom struct {
	b    *bench
	t    *testing.T
	spec providers.Spec // made when its workspace is set
}

func newShowroom(t *testing.T, h Harness) *showroom {
	t.Helper()
	b := &bench{Harness: h, ctx: t.Context(), server: "t" + random(t)}
	b.p = b.open(t, b.server)
	return &showroom{b: b, t: t}
}

// shown returns the guest of an instance that runs, and what it was made of.
func (b *bench) shown(t *testing.T) (*guest, providers.Spec) {
	t.Helper()
	s := b.show
	if s.spec.Workspace == "" {
		s.spec = s.b.spec(s.b.workspace(s.t))
	}
	here := *s.b
	here.ctx = b.ctx
	here.create(t, s.spec) // or finds it
	here.start(t, s.spec.Workspace)
	return here.connect(t, s.spec.Workspace), s.spec
}

func (b *bench) open(t *testing.T, server string) providers.Provider {
	t.Helper()
	p := b.New(t, server)
	t.Cleanup(func() { closeProvider(t, p) })
	return p
}

func closeProvider(t *testing.T, p providers.Provider) {
	t.Helper()
	if c, ok := p.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Errorf("close provider: %v", err)
		}
	}
}

// restart ends the provider and makes it anew, as a restart of the agent does.
func (b *bench) restart(t *testing.T) {
	t.Helper()
	closeProvider(t, b.p)
	b.p = b.open(t, b.server)
}

// workspace returns a new id; what it leaves on the machine after a last Destroy
// fails the test.
func (b *bench) workspace(t *testing.T) string {
	t.Helper()
	workspace := random(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		p := b.New(t, b.server)
		defer closeProvider(t, p)
		if err := p.Destroy(ctx, workspace, true); err != nil {
			t.Errorf("destroy: %v", err)
		}
		if left := b.Leftovers(t, workspace); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	return workspace
}

func (b *bench) spec(workspace string) providers.Spec {
	return providers.Spec{Workspace: workspace, Name: "box-" + workspace[:4], Generation: 3, Image: b.Image}
}

func (b *bench) create(t *testing.T, spec providers.Spec) providers.Instance {
	t.Helper()
	i, err := b.p.Create(b.ctx, spec)
	if err != nil {
		t.Fatalf("create: %v%s", err, next(err))
	}
	return i
}

func (b *bench) start(t *testing.T, workspace string) {
	t.Helper()
	if err := b.p.Start(b.ctx, workspace); err != nil {
		t.Fatalf("start: %v%s", err, next(err))
	}
}

// up makes and starts an instance and returns its guest.
func (b *bench) up(t *testing.T, spec providers.Spec) *guest {
	t.Helper()
	b.create(t, spec)
	b.start(t, spec.Workspace)
	return b.connect(t, spec.Workspace)
}

func (b *bench) inspect(t *testing.T, workspace string) providers.Instance {
	t.Helper()
	i, err := b.p.Inspect(b.ctx, workspace)
	if err != nil {
		t.Fatalf("inspect: %v", err)
	}
	return i
}

func (b *bench) list(t *testing.T) []string {
	t.Helper()
	all, err := b.p.List(b.ctx)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	ids := []string{}
	for _, i := range all {
		ids = append(ids, i.Workspace)
	}
	slices.Sort(ids)
	return ids
}

// wantKind fails unless err is one of the contract's with that kind.
func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	var own *providers.Error
	if !errors.Is(err, kind) || !errors.As(err, &own) {
		t.Errorf("%s: %v (%T), want one of kind %q", what, err, err, kind)
	}
}

func next(err error) string {
	var own *providers.Error
	if errors.As(err, &own) && own.Next != "" {
		return " (" + own.Next + ")"
	}
	return ""
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !settle(done) {
		t.Fatalf("%s: not within %v", what, patience)
	}
}

// settle waits for a condition and says whether it came.
func settle(done func() bool) bool {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(patience); !done(); <-again.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func random(t *testing.T) string {
	t.Helper()
	return strings.ToLower(rand.Text()[:12])
}
