package providertest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// fork forks origin into a new workspace that leaves open what may be left open.
func (b *bench) fork(t *testing.T, origin, workspace string, want providers.State) providers.Instance {
	t.Helper()
	made, err := optional[providers.Forker](t, b).Fork(b.ctx, origin, forkSpec(workspace))
	if err != nil {
		t.Fatalf("fork: %v%s", err, next(err))
	}
	if made.Workspace != workspace || made.Name == "" || made.Generation != 5 || made.State != want {
		t.Errorf("forked %+v, want it %s", made, want)
	}
	return made
}

func forkSpec(workspace string) providers.Spec {
	return providers.Spec{Workspace: workspace, Name: "fork-" + workspace[:4], Generation: 5}
}

// testFork goes through forks of a running and of a stopped instance, and has
// each outlive the other.
func testFork(t *testing.T, b *bench) {
	can := capable(t, b)
	memory := can(providers.CapabilityForkMemory)
	left := providers.StateStopped
	if memory {
		left = providers.StateRunning
	}
	origin, first, second, third, fourth := b.workspace(t), b.workspace(t), b.workspace(t), b.workspace(t), b.workspace(t)
	spec := b.spec(origin)
	if b.LimitsPIDs {
		spec.Resources.PIDs = forkPIDs
	}
	g := b.up(t, spec)
	b.write(t, g, "origin")
	content := b.read(t, g)
	ended := g.begin(t, "sh", "-c", "echo recorded; exit 3")
	g.attach(t, ended)
	g.begin(t, "sh", "-c", counter)
	eventually(t, "count", func() bool { return g.number(t, "cat count 2>/dev/null | wc -l") > 3 })
	if can(providers.CapabilitySnapshot) {
		b.snapshot(t, origin, "before")
	}
	state := b.inspect(t, origin)
	b.cancelForks(t, g, origin)

	made := b.fork(t, origin, first, left)
	if seen := b.inspect(t, origin); seen != state {
		t.Errorf("a fork left its origin %+v, before %+v", seen, state)
	}
	if made.Name == state.Name || made.Digest != state.Digest {
		t.Errorf("forked %+v from %+v", made, state)
	}
	if again := b.fork(t, origin, first, left); again.Name != made.Name {
		t.Errorf("forked again %+v, before %+v", again, made)
	}
	if ids, want := b.list(t), []string{origin, first}; len(ids) != 2 || !slices.Contains(ids, want[0]) || !slices.Contains(ids, want[1]) {
		t.Errorf("list %q, want %q", ids, want)
	}
	if can(providers.CapabilitySnapshot) {
		b.wantSnapshots(t, "of a fork", first)
	}
	// The origin goes on, over its link.
	at := g.number(t, "wc -l < count")
	eventually(t, "go on after the fork", func() bool { return g.number(t, "wc -l < count") > at })

	if !memory {
		b.start(t, first)
	}
	f := b.connect(t, first)
	if got := b.read(t, f); got != content {
		t.Errorf("the fork holds %q, its origin %q", got, content)
	}
	if r := f.attach(t, ended); r.output != "recorded\n" || r.code != 3 {
		t.Errorf("the record of a process: %+v", r)
	}
	if memory {
		at := f.number(t, "wc -l < count")
		eventually(t, "go on in the fork", func() bool { return f.number(t, "wc -l < count") > at })
		f.script(t, "awk '$0 != NR {exit 1}' count")
	} else if got := strings.TrimSpace(f.script(t, "hostname")); b.Isolated && got != forkSpec(first).Name {
		t.Errorf("the fork's host name is %q", got)
	}
	// From here on they are two.
	b.write(t, f, "fork")
	forked := b.read(t, f)
	if got := b.read(t, g); got != content {
		t.Errorf("what the fork wrote is in its origin: %q", got)
	}
	g.script(t, "touch tree/originals")
	f.script(t, "test ! -e tree/originals")
	g.script(t, "rm tree/originals")

	// A fork that goes takes nothing with it.
	b.fork(t, origin, second, left)
	if err := b.p.Destroy(b.ctx, second, true); err != nil {
		t.Fatalf("destroy a fork: %v", err)
	}
	if left := b.Leftovers(t, second); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if got := b.read(t, g); got != content {
		t.Errorf("its origin holds %q, before %q", got, content)
	}

	// Nor does an origin.
	if err := b.p.Stop(b.ctx, origin, 10*time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	b.fork(t, origin, third, providers.StateStopped)
	if seen := b.inspect(t, origin); seen.State != providers.StateStopped {
		t.Errorf("a fork of a stopped instance left it %+v", seen)
	}
	b.restart(t)
	if err := b.p.Destroy(b.ctx, origin, true); err != nil {
		t.Fatalf("destroy the origin: %v", err)
	}
	if left := b.Leftovers(t, origin); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	b.start(t, third)
	g = b.connect(t, third)
	if got := b.read(t, g); got != content {
		t.Errorf("the fork of a stopped instance holds %q, want %q", got, content)
	}
	if b.LimitsPIDs {
		fillPIDs(t, g, 2*forkPIDs, false)
	}
	f = b.connect(t, first)
	if got := b.read(t, f); got != forked {
		t.Errorf("without its origin the fork holds %q, before %q", got, forked)
	}
	// A fork is an origin too.
	if err := b.p.Stop(b.ctx, first, 10*time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	b.fork(t, first, fourth, providers.StateStopped)
	if err := b.p.Destroy(b.ctx, first, true); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	b.start(t, fourth)
	if got := b.read(t, b.connect(t, fourth)); got != forked {
		t.Errorf("the fork of a fork holds %q, want %q", got, forked)
	}
}

// forkPIDs is a limit that a fork must take over from its origin.
const forkPIDs = 50

// cancelForks cancels Fork at several moments of its life.
func (b *bench) cancelForks(t *testing.T, g *guest, origin string) {
	t.Helper()
	state := b.inspect(t, origin)
	for _, after := range []time.Duration{0, 3 * time.Millisecond, 50 * time.Millisecond} {
		workspace := b.workspace(t)
		ctx, cancel := context.WithTimeout(b.ctx, after)
		_, _ = optional[providers.Forker](t, b).Fork(ctx, origin, forkSpec(workspace)) // it may be quicker
		cancel()
		if seen := b.inspect(t, origin); seen != state {
			t.Errorf("a fork cancelled after %v left its origin %+v, before %+v", after, seen, state)
		}
		if got := g.script(t, "echo alive"); got != "alive\n" {
			t.Errorf("ran %q", got)
		}
		eventually(t, "remove what a cancelled fork left", func() bool {
			if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
				t.Fatalf("destroy: %v", err)
			}
			return len(b.Leftovers(t, workspace)) == 0 && !slices.Contains(b.list(t), workspace)
		})
	}
}

// testForkRefusals gives specs and origins that cannot be.
func testForkRefusals(t *testing.T, b *bench) {
	p := optional[providers.Forker](t, b)
	origin, workspace := b.workspace(t), b.workspace(t)
	_, err := p.Fork(b.ctx, origin, forkSpec(workspace))
	wantKind(t, "fork of nothing", err, providers.ErrNotFound)
	b.create(t, b.spec(origin))
	for what, change := range map[string]func(*providers.Spec){
		"workspace": func(s *providers.Spec) { s.Workspace = "../up" },
		"name":      func(s *providers.Spec) { s.Name = "a/../b" },
		"pids":      func(s *providers.Spec) { s.Resources.PIDs = -1 },
		"network":   func(s *providers.Spec) { s.Network = "everything" },
	} {
		spec := forkSpec(workspace)
		change(&spec)
		_, err := p.Fork(b.ctx, origin, spec)
		wantKind(t, "fork with a bad "+what, err, providers.ErrInvalid)
	}
	other, ok := b.open(t, "t"+random(t)).(providers.Forker)
	if !ok {
		t.Fatal("another provider of the kind forks nothing")
	}
	_, err = other.Fork(b.ctx, origin, forkSpec(workspace))
	wantKind(t, "fork another server's", err, providers.ErrNotFound)
	if ids := b.list(t); !slices.Equal(ids, []string{origin}) {
		t.Errorf("list %q", ids)
	}
	if left := b.Leftovers(t, workspace); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
