package providertest

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/conc/pool"

	"github.com/vendetta-dev/vendetta/providers"
)

func testName(t *testing.T, b *bench) {
	if !regexp.MustCompile(`^[a-z]+$`).MatchString(b.p.Name()) {
		t.Errorf("name %q", b.p.Name())
	}
}

func testProbe(t *testing.T, b *bench) {
	status := b.p.Probe(b.ctx)
	if !status.Usable {
		t.Fatalf("not usable: %s (%s)", status.Reason, status.Fix)
	}
	if !slices.IsSorted(status.Capabilities) {
		t.Errorf("capabilities are not sorted: %q", status.Capabilities)
	}
	ended, cancel := context.WithCancel(b.ctx)
	cancel()
	// It answers and does not hang; a provider that asks nobody may still be usable.
	if status := b.p.Probe(ended); !status.Usable && status.Reason == "" {
		t.Error("not usable without a reason")
	}
}

func testLife(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	made := b.create(t, b.spec(workspace))
	if made.Workspace != workspace || made.Name == "" || made.Generation != 3 || made.State != providers.StateStopped {
		t.Errorf("created %+v", made)
	}
	if seen := b.inspect(t, workspace); seen.Name != made.Name || seen.Generation != 3 || seen.State != providers.StateStopped {
		t.Errorf("inspected %+v", seen)
	}
	before := time.Now().Add(-time.Minute)
	b.start(t, workspace)
	if seen := b.inspect(t, workspace); seen.State != providers.StateRunning || seen.StartedAt.Before(before) {
		t.Errorf("started %+v", seen)
	}
	b.connect(t, workspace)
	if err := b.p.Stop(b.ctx, workspace, patience); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StateStopped || seen.Workspace != workspace {
		t.Errorf("stopped %+v", seen)
	}
	if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	_, err := b.p.Inspect(b.ctx, workspace)
	wantKind(t, "inspect after destroy", err, providers.ErrNotFound)
	if left := b.Leftovers(t, workspace); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func testRepeats(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	first := b.create(t, b.spec(workspace))
	other := b.spec(workspace)
	other.Name, other.Generation = "another", 9
	if again := b.create(t, other); again.Name != first.Name || again.Generation != first.Generation {
		t.Errorf("created again %+v, first %+v", again, first)
	}
	b.start(t, workspace)
	running := b.inspect(t, workspace)
	b.start(t, workspace)
	if again := b.create(t, other); again.State != providers.StateRunning || !again.StartedAt.Equal(running.StartedAt) {
		t.Errorf("created while running %+v, was %+v", again, running)
	}
	b.connect(t, workspace)
	for range 2 {
		if err := b.p.Stop(b.ctx, workspace, patience); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	for _, removeVolume := range []bool{false, false, true, true, false} {
		if err := b.p.Destroy(b.ctx, workspace, removeVolume); err != nil {
			t.Errorf("destroy: %v", err)
		}
	}
}

func testAbsent(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	_, inspected := b.p.Inspect(b.ctx, workspace)
	_, connected := b.p.Connect(b.ctx, workspace)
	_, measured := b.p.Usage(b.ctx, workspace)
	for what, err := range map[string]error{
		"inspect": inspected,
		"connect": connected,
		"usage":   measured,
		"start":   b.p.Start(b.ctx, workspace),
		"stop":    b.p.Stop(b.ctx, workspace, time.Second),
	} {
		wantKind(t, what, err, providers.ErrNotFound)
	}
	for _, removeVolume := range []bool{false, true} {
		if err := b.p.Destroy(b.ctx, workspace, removeVolume); err != nil {
			t.Errorf("destroy: %v", err)
		}
	}
	if ids := b.list(t); len(ids) != 0 {
		t.Errorf("list: %q", ids)
	}
}

func testNameIsDerived(t *testing.T, b *bench) {
	workspace, another := b.workspace(t), b.workspace(t)
	first := b.create(t, b.spec(workspace))
	if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	spec := b.spec(workspace)
	spec.Name = "renamed"
	if again := b.create(t, spec); again.Name != first.Name {
		t.Errorf("name %q, before %q", again.Name, first.Name)
	}
	if other := b.create(t, b.spec(another)); other.Name == first.Name {
		t.Errorf("two workspaces are named %q", other.Name)
	}
}

func testList(t *testing.T, b *bench) {
	want := []string{b.workspace(t), b.workspace(t)}
	slices.Sort(want)
	for _, workspace := range want {
		b.create(t, b.spec(workspace))
	}
	b.start(t, want[0])
	if got := b.list(t); !slices.Equal(got, want) {
		t.Errorf("list %q, want %q", got, want)
	}
	all, err := b.p.List(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if seen := b.inspect(t, i.Workspace); seen != i {
			t.Errorf("listed %+v, inspected %+v", i, seen)
		}
	}
}

func testNewProcess(t *testing.T, b *bench) {
	running, stopped := b.workspace(t), b.workspace(t)
	made := b.create(t, b.spec(running))
	b.create(t, b.spec(stopped))
	b.start(t, running)
	b.restart(t)
	want := []string{running, stopped}
	slices.Sort(want)
	if got := b.list(t); !slices.Equal(got, want) {
		t.Errorf("list %q, want %q", got, want)
	}
	if seen := b.inspect(t, running); seen.State != providers.StateRunning || seen.Name != made.Name || seen.Generation != made.Generation {
		t.Errorf("found %+v, made %+v", seen, made)
	}
	if got := b.connect(t, running).script(t, "echo here"); got != "here\n" {
		t.Errorf("ran %q", got)
	}
	b.start(t, stopped)
	b.connect(t, stopped)
	b.restart(t)
	for _, workspace := range want {
		if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
			t.Errorf("destroy: %v", err)
		}
	}
}

func testServersApart(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	g := b.up(t, b.spec(workspace))
	another := b.open(t, "t"+random(t))
	if all, err := another.List(b.ctx); err != nil || len(all) != 0 {
		t.Errorf("another server lists %+v, %v", all, err)
	}
	_, err := another.Inspect(b.ctx, workspace)
	wantKind(t, "inspect", err, providers.ErrNotFound)
	_, err = another.Connect(b.ctx, workspace)
	wantKind(t, "connect", err, providers.ErrNotFound)
	_, err = another.Usage(b.ctx, workspace)
	wantKind(t, "usage", err, providers.ErrNotFound)
	wantKind(t, "start", another.Start(b.ctx, workspace), providers.ErrNotFound)
	wantKind(t, "stop", another.Stop(b.ctx, workspace, time.Second), providers.ErrNotFound)
	if err := another.Destroy(b.ctx, workspace, true); err != nil {
		t.Errorf("destroy: %v", err)
	}
	if got := g.script(t, "echo alive"); got != "alive\n" {
		t.Errorf("ran %q", got)
	}
	mine := b.workspace(t)
	if _, err := another.Create(b.ctx, b.spec(mine)); err != nil {
		t.Fatalf("create: %v", err)
	}
	if got := b.list(t); !slices.Equal(got, []string{workspace}) {
		t.Errorf("list %q", got)
	}
	if err := another.Destroy(b.ctx, mine, true); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

func testStopGrace(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	g := b.up(t, b.spec(workspace))
	g.begin(t, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	began := time.Now()
	if err := b.p.Stop(b.ctx, workspace, time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("stop with a second of grace took %v", took)
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StateStopped {
		t.Errorf("after stop %+v", seen)
	}
}

func testStartAgain(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	g := b.up(t, b.spec(workspace))
	g.script(t, "echo one > kept")
	for range 2 {
		if err := b.p.Stop(b.ctx, workspace, 10*time.Second); err != nil {
			t.Fatalf("stop: %v", err)
		}
		b.start(t, workspace)
		if got := b.connect(t, workspace).script(t, "cat kept"); got != "one\n" {
			t.Errorf("kept %q", got)
		}
	}
}

func testKilled(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	// A virtual machine that is killed has lost its power.
	b.up(t, b.spec(workspace)).script(t, "echo one > kept; sync")
	b.Kill(t, b.p, workspace)
	eventually(t, "notice the death", func() bool { return b.inspect(t, workspace).State == providers.StateStopped })
	if b.inspect(t, workspace).Message == "" {
		t.Error("nothing says how it ended")
	}
	if _, err := b.p.Connect(b.ctx, workspace); err == nil {
		t.Error("connected to a dead instance")
	}
	_, err := b.p.Usage(b.ctx, workspace)
	wantKind(t, "usage", err, providers.ErrNotFound)
	b.start(t, workspace)
	if got := b.connect(t, workspace).script(t, "cat kept"); got != "one\n" {
		t.Errorf("kept %q", got)
	}
}

// testCancelled cancels Create at several moments of its life.
func testCancelled(t *testing.T, b *bench) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 15 * time.Millisecond, 40 * time.Millisecond, 120 * time.Millisecond} {
		workspace := b.workspace(t)
		ctx, cancel := context.WithTimeout(b.ctx, after)
		_, err := b.p.Create(ctx, b.spec(workspace))
		cancel()
		if err == nil {
			continue // it was quicker
		}
		// A backend may still be at what it was asked for.
		eventually(t, "remove what a cancelled create left", func() bool {
			if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
				t.Fatalf("destroy: %v", err)
			}
			return len(b.Leftovers(t, workspace)) == 0 && !slices.Contains(b.list(t), workspace)
		})
		// And the workspace can be made after all.
		b.create(t, b.spec(workspace))
	}
}

func testConcurrent(t *testing.T, b *bench) {
	const many = 4
	outputs := make([]string, many)
	ids := make([]string, many)
	for i := range ids {
		ids[i] = b.workspace(t)
	}
	work := pool.New().WithErrors()
	for i, workspace := range ids {
		work.Go(func() error {
			if _, err := b.p.Create(b.ctx, b.spec(workspace)); err != nil {
				return err
			}
			return b.p.Start(b.ctx, workspace)
		})
		_ = i
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, workspace := range ids {
		g := b.connect(t, workspace)
		g.script(t, "echo "+workspace+" > mine")
		outputs[i] = workspace
	}
	for i, workspace := range ids {
		if got := strings.TrimSpace(b.connect(t, workspace).script(t, "cat mine")); got != outputs[i] {
			t.Errorf("workspace %s holds %q", workspace, got)
		}
	}
	ending := pool.New().WithErrors()
	for _, workspace := range ids {
		ending.Go(func() error { return b.p.Destroy(b.ctx, workspace, true) })
	}
	if err := ending.Wait(); err != nil {
		t.Fatal(err)
	}
	if ids := b.list(t); len(ids) != 0 {
		t.Errorf("list: %q", ids)
	}
}

func testUsage(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	b.create(t, b.spec(workspace))
	_, err := b.p.Usage(b.ctx, workspace)
	wantKind(t, "usage of a stopped instance", err, providers.ErrNotFound)
	b.start(t, workspace)
	g := b.connect(t, workspace)
	g.script(t, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	usage, err := b.p.Usage(b.ctx, workspace)
	if err != nil {
		t.Fatalf("usage: %v", err)
	}
	if usage.CPU <= 0 || usage.MemoryBytes <= 0 || usage.DiskBytes < -1 {
		t.Errorf("usage %+v", usage)
	}
}

func testBadSpecs(t *testing.T, b *bench) {
	for _, id := range []string{"", "../up", "a/b", ".", "Upper", "with space", "-dash", strings.Repeat("a", 33)} {
		spec := b.spec("abcdefghijkl")
		spec.Workspace = id
		_, err := b.p.Create(b.ctx, spec)
		wantKind(t, "create workspace "+id, err, providers.ErrInvalid)
	}
	for what, change := range map[string]func(*providers.Spec){
		"cpus":    func(s *providers.Spec) { s.Resources.CPUs = -1 },
		"memory":  func(s *providers.Spec) { s.Resources.MemoryBytes = -1 },
		"pids":    func(s *providers.Spec) { s.Resources.PIDs = -1 },
		"disk":    func(s *providers.Spec) { s.Resources.DiskBytes = -1 },
		"network": func(s *providers.Spec) { s.Network = "everything" },
		"name":    func(s *providers.Spec) { s.Name = "a/../b" },
	} {
		workspace := b.workspace(t)
		spec := b.spec(workspace)
		change(&spec)
		_, err := b.p.Create(b.ctx, spec)
		wantKind(t, "create with a bad "+what, err, providers.ErrInvalid)
		if ids := b.list(t); len(ids) != 0 {
			t.Errorf("bad %s left %q", what, ids)
		}
		if left := b.Leftovers(t, workspace); len(left) > 0 {
			t.Errorf("bad %s left %q", what, left)
		}
	}
}

// malformed references are refused without asking a registry.
var malformed = []string{"no such/../image", "-flag"}

// wantNoImage fails unless err says that there is no such image, or that this is
// no reference.
func wantNoImage(t *testing.T, what, ref string, err error) {
	t.Helper()
	kind := providers.ErrImage
	if slices.Contains(malformed, ref) && errors.Is(err, providers.ErrInvalid) {
		kind = providers.ErrInvalid
	}
	wantKind(t, what, err, kind)
}

func testMissingImage(t *testing.T, b *bench) {
	for _, ref := range append(malformed, b.MissingImage) {
		workspace := b.workspace(t)
		spec := b.spec(workspace)
		spec.Image = ref
		_, err := b.p.Create(b.ctx, spec)
		wantNoImage(t, "create from "+ref, ref, err)
		if err != nil && (next(err) == "" || !strings.Contains(err.Error(), ref)) {
			t.Errorf("error does not name the image or a next step: %v%s", err, next(err))
		}
		if ids := b.list(t); len(ids) != 0 {
			t.Errorf("%s left %q", ref, ids)
		}
		if left := b.Leftovers(t, workspace); len(left) > 0 {
			t.Errorf("%s left %q", ref, left)
		}
	}
}

// testDigest looks that an image stays what it was when a workspace was made.
func testDigest(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	made := b.create(t, b.spec(workspace))
	if made.Digest == "" {
		t.Fatalf("created %+v, which does not tell what %s meant", made, b.Image)
	}
	if seen := b.inspect(t, workspace); seen.Digest != made.Digest {
		t.Errorf("inspected %+v, created %+v", seen, made)
	}
	if err := b.p.Destroy(b.ctx, workspace, false); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	unknown := b.spec(b.workspace(t))
	unknown.Digest = "sha256:" + strings.Repeat("0", 64)
	_, err := b.p.Create(b.ctx, unknown)
	wantKind(t, "create from a digest that nothing has", err, providers.ErrImage)
	if ids := b.list(t); len(ids) != 0 {
		t.Errorf("list %q", ids)
	}
	spec := b.spec(workspace)
	spec.Digest = made.Digest
	if b.UserImage != "" {
		spec.Image = b.UserImage // as if the reference had come to mean that
	}
	again := b.create(t, spec)
	if again.Digest != made.Digest {
		t.Errorf("created again %+v, before %+v", again, made)
	}
	if b.Isolated && b.UserImage != "" {
		b.start(t, workspace)
		if got := strings.TrimSpace(b.connect(t, workspace).script(t, "id -u")); got == b.UserImageUID {
			t.Error("the reference counted and not the digest")
		}
	}
}

func testNoImages(t *testing.T, b *bench) {
	spec := b.spec(b.workspace(t))
	spec.Image = "debian:12"
	_, err := b.p.Create(b.ctx, spec)
	wantKind(t, "create from an image", err, providers.ErrInvalid)
}
