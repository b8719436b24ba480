package providertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// content is what a snapshot or a fork must hold: files with their modes and
// owners, links, and a file outside of /workspace where the root is the
// instance's own.
func (b *bench) write(t *testing.T, g *guest, word string) {
	t.Helper()
	g.script(t, "rm -rf tree; mkdir -p tree/sub; cd tree; echo "+word+` > sub/file; chmod 640 sub/file
		ln -s sub/file link; ln sub/file hard; mkdir empty; printf '#!/bin/sh\necho ran\n' > run; chmod 755 run`)
	if b.ownRoot() {
		g.script(t, "echo "+word+" > /outside")
		// Where there are several ids.
		g.script(t, "[ $(awk '{n += $3} END {print n}' /proc/self/uid_map) -lt 2 ] || chown 1000:1000 tree/sub/file")
	}
}

// read is all of what write wrote, in words.
func (b *bench) read(t *testing.T, g *guest) string {
	t.Helper()
	script := "cd tree; find . | sort; cat sub/file hard link; readlink link; ./run; stat -c '%n %a %u %g' sub/file run empty"
	if b.ownRoot() {
		script += "; cat /outside"
	}
	return g.script(t, script)
}

// ownRoot: the root is a file system of the instance's own, which its root writes.
func (b *bench) ownRoot() bool { return b.Isolated && b.Image != "" }

// database is a program that keeps a journal as databases do: each number goes to
// the journal, and only when the disk has it to the table. In any one moment the
// table is never ahead.
const database = `i=0; printf %08d 0 > table; while :; do i=$((i+1))
	echo $i | dd of=journal oflag=append conv=notrunc,fsync 2>/dev/null
	printf %08d $i | dd of=table conv=notrunc,fsync 2>/dev/null; done`

// consistent fails when the table is ahead of the journal, when the journal has a
// hole, or when what the database had told to be safe is gone.
func consistent(t *testing.T, g *guest, safe int) {
	t.Helper()
	g.script(t, fmt.Sprintf(`t=$(cat table | sed 's/^0*//'); j=$(tail -n 1 journal)
		[ "$t" -ge %d ] && [ "$t" -le "$j" ] || { echo "table $t, journal $j"; exit 1; }
		head -n $t journal | awk '$0 != NR {print "line " NR ": " $0; bad = 1} END {exit bad}'`, safe))
}

// counter is a program whose memory can be told from its file: each line is the
// next number, in one life.
const counter = `i=0; while :; do i=$((i+1)); echo $i >> count; sleep 0.05; done`

func names(all []providers.Snapshot) []string {
	list := []string{}
	for _, s := range all {
		list = append(list, s.Name)
	}
	return list
}

func (b *bench) wantSnapshots(t *testing.T, when, workspace string, want ...string) {
	t.Helper()
	all, err := optional[providers.Snapshotter](t, b).Snapshots(b.ctx, workspace)
	if got := names(all); err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("snapshots %s: %q, %v, want %q", when, got, err, want)
	}
}

func (b *bench) snapshot(t *testing.T, workspace, name string) providers.Snapshot {
	t.Helper()
	s, err := optional[providers.Snapshotter](t, b).Snapshot(b.ctx, workspace, name)
	if err != nil {
		t.Fatalf("snapshot %s: %v%s", name, err, next(err))
	}
	if s.Name != name || s.CreatedAt.IsZero() || s.Bytes < -1 {
		t.Errorf("snapshot %+v", s)
	}
	return s
}

func (b *bench) restore(t *testing.T, workspace, name string, want providers.State) {
	t.Helper()
	if err := optional[providers.Snapshotter](t, b).Restore(b.ctx, workspace, name); err != nil {
		t.Fatalf("restore %s: %v%s", name, err, next(err))
	}
	if seen := b.inspect(t, workspace); seen.State != want {
		t.Errorf("restored %s and found %+v, want it %s", name, seen, want)
	}
}

// testSnapshots goes through the life of a workspace's snapshots.
func testSnapshots(t *testing.T, b *bench) {
	memory := capable(t, b)(providers.CapabilitySnapshotMemory)
	workspace := b.workspace(t)
	b.create(t, b.spec(workspace))
	b.wantSnapshots(t, "of a new workspace", workspace)
	if s := b.snapshot(t, workspace, "new"); s.Memory {
		t.Errorf("a stopped instance's memory was kept: %+v", s)
	}
	if seen := b.inspect(t, workspace); seen.State != providers.StateStopped {
		t.Errorf("a snapshot left %+v", seen)
	}

	b.start(t, workspace)
	g := b.connect(t, workspace)
	b.write(t, g, "first")
	first := b.read(t, g)
	ended := g.begin(t, "sh", "-c", "echo recorded; exit 3")
	g.attach(t, ended)
	g.begin(t, "sh", "-c", counter)
	g.begin(t, "sh", "-c", database)
	waiting := g.follow(t, g.begin(t, "sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; echo through"))
	eventually(t, "run the programs", func() bool {
		return g.number(t, "cat journal count 2>/dev/null | wc -l") > 6 && g.number(t, "sed 's/^0*//' table") > 2
	})
	safe := g.number(t, "sed 's/^0*//' table")
	running := b.inspect(t, workspace)
	kept := b.snapshot(t, workspace, "first")
	if kept.Memory != memory {
		t.Errorf("snapshot %+v, announced: %v", kept, memory)
	}
	if seen := b.inspect(t, workspace); seen != running {
		t.Errorf("a snapshot left %+v, before %+v", seen, running)
	}
	if again := b.snapshot(t, workspace, "first"); !again.CreatedAt.Equal(kept.CreatedAt) || again.Memory != kept.Memory {
		t.Errorf("repeated %+v, before %+v", again, kept)
	}
	// What ran goes on, over the same link.
	before := g.number(t, "wc -l < count")
	g.script(t, "touch go")
	if r := waiting(); r.output != "through\n" {
		t.Errorf("a command during the snapshot ended with %+v", r)
	}
	eventually(t, "go on after the snapshot", func() bool { return g.number(t, "wc -l < count") > before })

	b.write(t, g, "second")
	second := b.read(t, g)
	g.script(t, "touch tree/later")
	after := g.begin(t, "true")
	g.attach(t, after)
	b.cancelSnapshots(t, g, workspace)
	b.restart(t)
	b.wantSnapshots(t, "in a new process", workspace, "new", "first")

	left := providers.StateStopped
	if memory {
		left = providers.StateRunning
	}
	b.restore(t, workspace, "first", left)
	if !memory {
		b.start(t, workspace)
	}
	g = b.connect(t, workspace)
	if got := b.read(t, g); got != first {
		t.Errorf("restored %q, want %q", got, first)
	}
	if g.knows(t, after) {
		t.Error("a process that came after the snapshot is known")
	}
	if r := g.attach(t, ended); r.output != "recorded\n" || r.code != 3 {
		t.Errorf("the record of a process: %+v", r)
	}
	consistent(t, g, safe)
	if at := g.number(t, "wc -l < count"); memory {
		eventually(t, "go on with the memory", func() bool { return g.number(t, "wc -l < count") > at })
		g.script(t, "awk '$0 != NR {exit 1}' count")
	}
	g.script(t, "test ! -e go")

	// Into an instance that was made anew.
	b.write(t, g, "second")
	b.snapshot(t, workspace, "second")
	b.wantSnapshots(t, "of both", workspace, "new", "first", "second")
	if err := b.p.Destroy(b.ctx, workspace, false); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	b.wantSnapshots(t, "without an instance", workspace, "new", "first", "second")
	_, err := optional[providers.Snapshotter](t, b).Snapshot(b.ctx, workspace, "third")
	wantKind(t, "snapshot without an instance", err, providers.ErrNotFound)
	b.create(t, b.spec(workspace))
	b.restore(t, workspace, "second", left)
	if !memory {
		b.start(t, workspace)
	}
	if got := b.read(t, b.connect(t, workspace)); got != second {
		t.Errorf("restored %q, want %q", got, second)
	}
	for range 2 {
		if err := optional[providers.Snapshotter](t, b).RemoveSnapshot(b.ctx, workspace, "first"); err != nil {
			t.Errorf("remove a snapshot: %v", err)
		}
	}
	b.wantSnapshots(t, "after removal", workspace, "new", "second")
	b.restore(t, workspace, "new", providers.StateStopped)
	b.start(t, workspace)
	b.connect(t, workspace).script(t, "test ! -e tree && test ! -e /outside")
	if err := b.p.Destroy(b.ctx, workspace, true); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	b.wantSnapshots(t, "after all was destroyed", workspace)
	if left := b.Leftovers(t, workspace); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// cancelSnapshots cancels Snapshot at several moments of its life.
func (b *bench) cancelSnapshots(t *testing.T, g *guest, workspace string) {
	t.Helper()
	p := optional[providers.Snapshotter](t, b)
	state := b.inspect(t, workspace)
	for _, after := range []time.Duration{0, 2 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(b.ctx, after)
		_, err := p.Snapshot(ctx, workspace, "cancelled")
		cancel()
		if seen := b.inspect(t, workspace); seen != state {
			t.Errorf("a snapshot cancelled after %v left %+v, before %+v", after, seen, state)
		}
		all, listed := p.Snapshots(b.ctx, workspace)
		if listed != nil || slices.Contains(names(all), "cancelled") != (err == nil) {
			t.Errorf("a snapshot that ended with %v left %q, %v", err, names(all), listed)
		}
		if got := g.script(t, "echo alive"); got != "alive\n" {
			t.Errorf("ran %q", got)
		}
		if err := p.RemoveSnapshot(b.ctx, workspace, "cancelled"); err != nil {
			t.Errorf("remove a snapshot: %v", err)
		}
	}
}

// testSnapshotRefusals gives names and workspaces that are not there.
func testSnapshotRefusals(t *testing.T, b *bench) {
	p := optional[providers.Snapshotter](t, b)
	workspace, absent := b.workspace(t), b.workspace(t)
	b.create(t, b.spec(workspace))
	for _, name := range []string{"", "-a", "a-", "A", "a_b", "../a", "a/b", "a b", ".", strings.Repeat("a", 41)} {
		_, err := p.Snapshot(b.ctx, workspace, name)
		wantKind(t, "snapshot "+name, err, providers.ErrInvalid)
		wantKind(t, "restore "+name, p.Restore(b.ctx, workspace, name), providers.ErrInvalid)
		wantKind(t, "remove "+name, p.RemoveSnapshot(b.ctx, workspace, name), providers.ErrInvalid)
	}
	longest := strings.Repeat("a", 40)
	b.snapshot(t, workspace, longest)
	b.snapshot(t, workspace, "0")
	b.wantSnapshots(t, "of good names", workspace, longest, "0")
	_, err := p.Snapshot(b.ctx, absent, "one")
	wantKind(t, "snapshot of nothing", err, providers.ErrNotFound)
	wantKind(t, "restore of nothing", p.Restore(b.ctx, absent, "one"), providers.ErrNotFound)
	wantKind(t, "restore what is not kept", p.Restore(b.ctx, workspace, "one"), providers.ErrNotFound)
	if err := p.RemoveSnapshot(b.ctx, absent, "one"); err != nil {
		t.Errorf("remove a snapshot of nothing: %v", err)
	}
	b.wantSnapshots(t, "of nothing", absent)

	// Another server's workspace has none, for this one.
	mine := b.p
	b.p = b.open(t, "t"+random(t))
	other := optional[providers.Snapshotter](t, b)
	b.wantSnapshots(t, "of another server's", workspace)
	_, err = other.Snapshot(b.ctx, workspace, "one")
	wantKind(t, "snapshot another server's", err, providers.ErrNotFound)
	wantKind(t, "restore another server's", other.Restore(b.ctx, workspace, longest), providers.ErrNotFound)
	if err := other.RemoveSnapshot(b.ctx, workspace, longest); err != nil {
		t.Errorf("remove another server's: %v", err)
	}
	b.p = mine
	b.wantSnapshots(t, "that another server saw", workspace, longest, "0")
}
