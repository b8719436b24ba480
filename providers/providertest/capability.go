package providertest

import (
	"slices"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

// capable returns the capabilities that Probe announces.
func capable(t *testing.T, b *bench) func(capability string) bool {
	t.Helper()
	status := b.p.Probe(b.ctx)
	return func(capability string) bool { return slices.Contains(status.Capabilities, capability) }
}

// optional is a provider's optional interface, which a capability of it needs.
func optional[I any](t *testing.T, b *bench) I {
	t.Helper()
	p, ok := b.p.(I)
	if !ok {
		t.Fatalf("a capability is announced without its methods: %T is no %T", b.p, (*I)(nil))
	}
	return p
}

// testUnannounced holds a provider to it that what Probe does not announce
// answers ErrUnsupported and changes nothing.
func testUnannounced(t *testing.T, b *bench) {
	can := capable(t, b)
	workspace, another := b.workspace(t), b.workspace(t)
	made := b.create(t, b.spec(workspace))
	refused := func(what string, err error) {
		t.Helper()
		wantKind(t, what, err, providers.ErrUnsupported)
		if seen := b.inspect(t, workspace); seen != made {
			t.Errorf("%s left %+v, before %+v", what, seen, made)
		}
		if ids := b.list(t); !slices.Equal(ids, []string{workspace}) {
			t.Errorf("%s left %q", what, ids)
		}
		if left := b.Leftovers(t, another); len(left) > 0 {
			t.Errorf("%s left %q", what, left)
		}
	}
	if p, ok := b.p.(providers.Snapshotter); ok && !can(providers.CapabilitySnapshot) {
		_, err := p.Snapshot(b.ctx, workspace, "one")
		refused("snapshot", err)
		_, err = p.Snapshots(b.ctx, workspace)
		refused("list snapshots", err)
		refused("restore", p.Restore(b.ctx, workspace, "one"))
		refused("remove a snapshot", p.RemoveSnapshot(b.ctx, workspace, "one"))
	}
	if p, ok := b.p.(providers.Forker); ok && !can(providers.CapabilityFork) {
		spec := b.spec(another)
		_, err := p.Fork(b.ctx, workspace, spec)
		refused("fork", err)
	}
	if p, ok := b.p.(providers.Pauser); ok && !can(providers.CapabilityPause) {
		refused("pause", p.Pause(b.ctx, workspace))
		refused("resume", p.Resume(b.ctx, workspace))
	}
	resizer, resizes := b.p.(providers.Resizer)
	if resizes && !can(providers.CapabilityResize) {
		_, err := resizer.Resize(b.ctx, workspace, providers.Resources{PIDs: 200})
		refused("resize", err)
	}
	if !can(providers.CapabilityLimitDisk) {
		spec := b.spec(another)
		spec.Resources.DiskBytes = 1 << 30
		_, err := b.p.Create(b.ctx, spec)
		refused("create with a limit of the disk", err)
		if can(providers.CapabilityResize) {
			_, err := resizer.Resize(b.ctx, workspace, spec.Resources)
			refused("resize of the disk", err)
		}
	}
	if !b.Privileged {
		spec := b.spec(another)
		spec.Privileged = true
		_, err := b.p.Create(b.ctx, spec)
		refused("create a privileged instance", err)
	}
	for memory, needs := range map[string]string{
		providers.CapabilitySnapshotMemory: providers.CapabilitySnapshot,
		providers.CapabilityForkMemory:     providers.CapabilityFork,
	} {
		if can(memory) && !can(needs) {
			t.Errorf("%s is announced without %s", memory, needs)
		}
	}
}

// testPrivileged looks whether root inside is root of the machine.
func testPrivileged(t *testing.T, b *bench) {
	spec := b.spec(b.workspace(t))
	spec.Privileged = true
	g := b.up(t, spec)
	if got := g.script(t, "awk '{print $1, $2}' /proc/self/uid_map"); got != "0 0\n" {
		t.Errorf("ids are mapped: %q", got)
	}
}

// testConsole looks that what is told of a console is bounded.
func testConsole(t *testing.T, b *bench) {
	p, ok := b.p.(providers.Consoler)
	if !ok {
		return
	}
	if said := p.Console(b.ctx, b.workspace(t)); said != "" {
		t.Errorf("the console of nothing: %q", said)
	}
	_, spec := b.shown(t)
	p = optional[providers.Consoler](t, b.show.b)
	const most = 4 << 10
	if said := p.Console(b.ctx, spec.Workspace); len(said) > most {
		t.Errorf("%d bytes of console", len(said))
	}
}
