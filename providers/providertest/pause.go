package providertest

import (
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// testPause goes through the life of an instance that is paused now and then.
func testPause(t *testing.T, b *bench) {
	p := optional[providers.Pauser](t, b)
	workspace := b.workspace(t)
	both := func(what string, kind error) {
		t.Helper()
		wantKind(t, "pause "+what, p.Pause(b.ctx, workspace), kind)
		wantKind(t, "resume "+what, p.Resume(b.ctx, workspace), kind)
	}
	both("nothing", providers.ErrNotFound)
	b.create(t, b.spec(workspace))
	both("a stopped instance", providers.ErrNotFound)

	b.start(t, workspace)
	g := b.connect(t, workspace)
	if err := p.Resume(b.ctx, workspace); err != nil {
		t.Errorf("resume a running instance: %v", err)
	}
	counting := g.begin(t, "sh", "-c", "echo $$ > pid; "+counter)
	eventually(t, "count", func() bool { return g.number(t, "cat count 2>/dev/null | wc -l") > 3 })
	before := g.number(t, "wc -l < count")
	b.pause(t, workspace)
	b.pause(t, workspace)
	// In the time of a hundred of its steps the counter takes none. A few it may
	// take before the pause begins and after it ends.
	clock := time.NewTicker(50 * time.Millisecond)
	defer clock.Stop()
	for range 100 {
		<-clock.C
	}
	b.restart(t)
	p = optional[providers.Pauser](t, b)
	if seen := b.inspect(t, workspace); seen.State != providers.StatePaused {
		t.Errorf("a new process finds %+v", seen)
	}
	for range 2 {
		if err := p.Resume(b.ctx, workspace); err != nil {
			t.Fatalf("resume: %v", err)
		}
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StateRunning {
		t.Errorf("after resume %+v", seen)
	}
	g = b.connect(t, workspace)
	at := g.number(t, "wc -l < count")
	if at-before > 50 {
		t.Errorf("the counter went from %d to %d while paused", before, at)
	}
	eventually(t, "count on", func() bool { return g.number(t, "wc -l < count") > at })

	// The link is held: what is asked meanwhile is answered afterwards.
	b.pause(t, workspace)
	waiting := g.follow(t, counting)
	if capable(t, b)(providers.CapabilitySnapshot) {
		b.snapshot(t, workspace, "paused")
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StatePaused {
		t.Errorf("after a snapshot %+v", seen)
	}
	b.start(t, workspace)
	if seen := b.inspect(t, workspace); seen.State != providers.StateRunning {
		t.Errorf("after start %+v", seen)
	}
	g.script(t, "kill -9 $(cat pid)")
	waiting()

	b.pause(t, workspace)
	if err := b.p.Stop(b.ctx, workspace, 10*time.Second); err != nil {
		t.Fatalf("stop a paused instance: %v", err)
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StateStopped {
		t.Errorf("after stop %+v", seen)
	}
	both("a stopped instance", providers.ErrNotFound)

	b.start(t, workspace)
	b.connect(t, workspace)
	b.pause(t, workspace)
	if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
		t.Fatalf("destroy a paused instance: %v", err)
	}
	if left := b.Leftovers(t, workspace); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func (b *bench) pause(t *testing.T, workspace string) {
	t.Helper()
	if err := optional[providers.Pauser](t, b).Pause(b.ctx, workspace); err != nil {
		t.Fatalf("pause: %v%s", err, next(err))
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StatePaused {
		t.Errorf("paused %+v", seen)
	}
}
