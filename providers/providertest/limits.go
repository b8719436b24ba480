package providertest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// Limits that the tests exceed.
const (
	limitPIDs   = 40
	limitMemory = 96 << 20
	// hog needs some 300 MiB at once.
	hog = "dd if=/dev/zero of=/dev/null bs=300M count=1"
)

// testLimits exceeds each limit: the workspace suffers and answers again, and one
// beside it has noticed nothing.
func testLimits(t *testing.T, b *bench) {
	spec := b.spec(b.workspace(t))
	if b.LimitsPIDs {
		spec.Resources.PIDs = limitPIDs
	}
	if b.LimitsMemory {
		spec.Resources.MemoryBytes = limitMemory
	}
	if b.LimitsCPU {
		spec.Resources.CPUs = 1
	}
	g := b.up(t, spec)
	beside := b.up(t, b.spec(b.workspace(t)))
	unharmed := func(what string) {
		t.Helper()
		if got := beside.script(t, "sleep 0 & wait; echo alive"); got != "alive\n" {
			t.Errorf("beside an excess of %s: %q", what, got)
		}
	}
	if b.LimitsMemory {
		if r := g.run(t, "sh", "-c", hog); r.code == 0 {
			t.Errorf("300 MiB were used under a limit of %d bytes", limitMemory)
		}
		unharmed("memory")
		if got := g.script(t, "echo alive"); got != "alive\n" {
			t.Errorf("ran %q", got)
		}
	}
	if b.LimitsCPU {
		b.burn(t, g, spec.Workspace, unharmed)
	}
	if b.LimitsPIDs {
		fillPIDs(t, g, 2*limitPIDs, false)
		unharmed("pids")
		// While the sleeps last, the guest itself may be refused a process or a thread.
		eventually(t, "recover", func() bool { return g.starts(t, "true") })
	}
}

// fillPIDs starts many processes at once and says whether all must run, or some
// must not.
func fillPIDs(t *testing.T, g *guest, many int, fits bool) {
	t.Helper()
	r := g.run(t, "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do sleep 15 & p=\"$p $!\"; i=$((i+1)); done; kill $p", many))
	if (r.code == 0) != fits {
		t.Errorf("%d processes: status %d, want them to fit: %v: %s", many, r.code, fits, r.output)
	}
}

// burn wants more than one processor. However long that takes, what it gets is no
// more than one; another workload on the machine only lessens it.
func (b *bench) burn(t *testing.T, g *guest, workspace string, unharmed func(string)) {
	t.Helper()
	used := func() (time.Duration, time.Time) {
		t.Helper()
		usage, err := b.p.Usage(b.ctx, workspace)
		if err != nil {
			t.Fatalf("usage: %v", err)
		}
		return usage.CPU, time.Now()
	}
	before, began := used()
	burning := g.follow(t, g.begin(t, "sh", "-c", `for n in 1 2 3 4; do while [ ! -e cool ]; do :; done & done; wait`))
	// A few measurements bound what one moment between two periods may add.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for range 20 {
		<-again.C
	}
	unharmed("processors")
	after, now := used()
	g.script(t, "touch cool")
	burning()
	const slack = 1.35
	if share := (after - before).Seconds() / now.Sub(began).Seconds(); share > slack {
		t.Errorf("%.2f processors were used under a limit of 1", share)
	}
}

// Disks that the tests fill.
const (
	smallDisk = 192 << 20
	largeDisk = 512 << 20
	// Between the two, so that it fits the one and not the other.
	mebibytes = 256
)

func fillDisk(g *guest, t *testing.T, path string) result {
	t.Helper()
	return g.run(t, "sh", "-c", fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=%d conv=fsync; status=$?; rm -f %[1]s; sync; exit $status", path, mebibytes))
}

func wantFull(t *testing.T, r result) {
	t.Helper()
	said := strings.ToLower(r.output)
	if r.code == 0 || !strings.Contains(said, "no space left") && !strings.Contains(said, "quota exceeded") {
		t.Errorf("%d MiB on a disk of %d: status %d: %s", mebibytes, smallDisk>>20, r.code, r.output)
	}
}

// testLimitDisk fills a disk, in /workspace and beside it.
func testLimitDisk(t *testing.T, b *bench) {
	resizes := capable(t, b)(providers.CapabilityResize)
	workspace := b.workspace(t)
	spec := b.spec(workspace)
	spec.Resources.DiskBytes = smallDisk
	g := b.up(t, spec)
	g.script(t, "echo mine > kept")
	wantFull(t, fillDisk(g, t, "full"))
	if b.ownRoot() {
		wantFull(t, fillDisk(g, t, "/full"))
	}
	if got := g.script(t, "echo alive > after; cat after kept"); got != "alive\nmine\n" {
		t.Errorf("ran %q", got)
	}
	beside := b.up(t, b.spec(b.workspace(t)))
	if r := fillDisk(beside, t, "full"); r.code != 0 {
		t.Errorf("beside a full disk: status %d: %s", r.code, r.output)
	}
	if !resizes {
		return
	}
	p := optional[providers.Resizer](t, b)
	_, err := p.Resize(b.ctx, workspace, providers.Resources{DiskBytes: smallDisk / 2})
	wantKind(t, "make a disk smaller", err, providers.ErrInvalid)
	note, err := p.Resize(b.ctx, workspace, providers.Resources{DiskBytes: largeDisk})
	if err != nil {
		t.Fatalf("make a disk larger: %v%s", err, next(err))
	}
	if note != "" {
		g = b.again(t, workspace)
	}
	if r := fillDisk(g, t, "full"); r.code != 0 {
		t.Errorf("%d MiB on a disk of %d: status %d: %s", mebibytes, largeDisk>>20, r.code, r.output)
	}
	if got := g.script(t, "cat kept"); got != "mine\n" {
		t.Errorf("kept %q", got)
	}
}

// again stops and starts an instance.
func (b *bench) again(t *testing.T, workspace string) *guest {
	t.Helper()
	if err := b.p.Stop(b.ctx, workspace, 10*time.Second); err != nil {
		t.Fatalf("stop: %v", err)
	}
	b.start(t, workspace)
	return b.connect(t, workspace)
}

// testResize changes limits while they are in use.
func testResize(t *testing.T, b *bench) {
	p := optional[providers.Resizer](t, b)
	workspace := b.workspace(t)
	_, err := p.Resize(b.ctx, workspace, providers.Resources{PIDs: 100})
	wantKind(t, "resize nothing", err, providers.ErrNotFound)
	spec := b.spec(workspace)
	if b.LimitsPIDs {
		spec.Resources.PIDs = limitPIDs
	}
	if b.LimitsMemory {
		spec.Resources.MemoryBytes = limitMemory
	}
	g := b.up(t, spec)
	for what, r := range map[string]providers.Resources{
		"cpus": {CPUs: -1}, "memory": {MemoryBytes: -1}, "pids": {PIDs: -1}, "disk": {DiskBytes: -1},
	} {
		_, err := p.Resize(b.ctx, workspace, r)
		wantKind(t, "resize to bad "+what, err, providers.ErrInvalid)
	}
	resize := func(r providers.Resources) {
		t.Helper()
		was := b.inspect(t, workspace)
		var notes []string
		for range 2 {
			note, err := p.Resize(b.ctx, workspace, r)
			if err != nil {
				t.Fatalf("resize: %v%s", err, next(err))
			}
			notes = append(notes, note)
		}
		if seen := b.inspect(t, workspace); seen != was {
			t.Errorf("resize left %+v, before %+v", seen, was)
		}
		if notes[0] != "" {
			g = b.again(t, workspace)
		}
	}
	roomy := func(when string, memory bool) {
		t.Helper()
		if r := g.run(t, "sh", "-c", hog); b.LimitsMemory && (r.code == 0) != memory {
			t.Errorf("300 MiB %s: status %d: %s", when, r.code, r.output)
		}
		if b.LimitsPIDs {
			fillPIDs(t, g, 2*limitPIDs, true)
		}
	}
	// One limit alone leaves the others.
	resize(providers.Resources{PIDs: 4 * limitPIDs})
	roomy("with more pids", false)
	resize(providers.Resources{MemoryBytes: 640 << 20, CPUs: 1})
	roomy("with more memory", true)
	// And they are kept, whoever starts the instance next.
	b.restart(t)
	g = b.again(t, workspace)
	roomy("after a restart", true)
}
