package providertest

import (
	"context"
	"runtime"
	"slices"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// Cycles is how often RunCycles goes through a workspace's life.
const Cycles = 50

// RunCycles makes, starts, uses and destroys a workspace many times, one after
// the other in one process, and compares what is on the machine before and after:
// processes, mounts, interfaces, firewall rules, cgroup folders, loop devices,
// this process's open files and goroutines, and what Harness.Objects lists. The
// first cycle is not counted, so that what a driver keeps for all its instances,
// as a bridge or an unpacked image, is there by then.
//
// Other tests work on the machine meanwhile. So a thing counts when it carries
// the id of one of these workspaces or of their server, or when it is a process
// that this one began, or when half of the cycles have left one that looks alike.
func RunCycles(t *testing.T, h Harness) {
	b := &bench{Harness: h, server: "t" + random(t)}
	b.p = b.open(t, b.server)
	marks := []string{b.server}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testPatience)
		defer cancel()
		for _, workspace := range marks[1:] {
			_ = b.p.Destroy(ctx, workspace, true) // the test has failed already
		}
	})
	cycle := func() {
		ctx, cancel := context.WithTimeout(t.Context(), testPatience)
		defer cancel()
		b.ctx = ctx
		workspace := random(t)
		marks = append(marks, workspace)
		g := b.up(t, b.spec(workspace))
		if got := g.script(t, "echo "+workspace+" > mine; cat mine"); got != workspace+"\n" {
			t.Fatalf("ran %q", got)
		}
		g.close()
		if err := b.p.Destroy(ctx, workspace, true); err != nil {
			t.Fatalf("destroy: %v%s", err, next(err))
		}
	}
	cycle()
	before, goroutines := b.machine(t), runtime.NumGoroutine()
	for range Cycles {
		cycle()
	}
	// What ends on its own time, a trash being emptied or a process that was
	// killed, may be there for a while.
	var left testbed.Things
	settled := settle(func() bool {
		more := before.Diff(b.machine(t))
		left = slices.Concat(more.Of(marks...), more.Repeated(Cycles/2))
		return len(left) == 0 && runtime.NumGoroutine() < goroutines+Cycles/2
	})
	if !settled {
		t.Errorf("%d cycles left on the machine:%v\nand %d goroutines where %d were", Cycles, left, runtime.NumGoroutine(), goroutines)
	}
	for _, workspace := range marks[1:] {
		if left := b.Leftovers(t, workspace); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

// machine is what is on it now, with what only the driver can list.
func (b *bench) machine(t *testing.T) testbed.State {
	t.Helper()
	state := testbed.MachineState(t)
	if b.Objects != nil {
		state.Add("object", b.Objects(t)...)
	}
	return state
}
