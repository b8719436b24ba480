//go:build linux

package native

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// one names a process of an instance by what it wrote of itself.
func (r *rig) one(ws, file string) int {
	r.t.Helper()
	var inside string
	for range 500 {
		if out, code := r.sh(ws, "cat "+file); code == 0 && out != "" {
			inside = out
			break
		}
		r.sh(ws, "sleep 0.01")
	}
	last, err := r.run(ws)
	must(r.t, err)
	all, err := members(last.PID)
	must(r.t, err)
	for _, pid := range all {
		raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); f[0] == "NSpid:" && f[len(f)-1] == inside {
				return pid
			}
		}
	}
	r.t.Fatalf("process %s of %s is not there", inside, ws)
	return 0
}

func stateOf(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	must(t, err)
	i := bytes.LastIndexByte(raw, ')')
	return string(raw[i+2 : i+3])
}

// Without control groups signals do it, and leave alone what was stopped before.
func TestPauseBySignals(t *testing.T) {
	r := newRig(t)
	r.machine.mounts = filepath.Join(r.dir, "none")
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	r.want("w1", "(sh -c 'echo $$ > /tmp/stopped; kill -STOP $$; sleep 100' >/dev/null 2>&1 &)", "")
	r.want("w1", "(sh -c 'echo $$ > /tmp/busy; while :; do :; done' >/dev/null 2>&1 &)", "")
	stopped, busy := r.one("w1", "/tmp/stopped"), r.one("w1", "/tmp/busy")
	for range 500 {
		if stateOf(t, stopped) == "T" {
			break
		}
		r.want("w1", "sleep 0.01", "")
	}
	for range 2 {
		must(t, r.Pause(t.Context(), "w1"))
		if s := r.state("w1"); s != providers.StatePaused || stateOf(t, busy) != "T" || stateOf(t, stopped) != "T" {
			t.Errorf("%s: busy is %s, stopped is %s", s, stateOf(t, busy), stateOf(t, stopped))
		}
	}
	r.renew()
	if s := r.state("w1"); s != providers.StatePaused {
		t.Error(s)
	}
	must(t, r.Resume(t.Context(), "w1"), r.Resume(t.Context(), "w1"))
	if s := r.state("w1"); s != providers.StateRunning || stateOf(t, busy) == "T" || stateOf(t, stopped) != "T" {
		t.Errorf("%s: busy is %s, stopped is %s", s, stateOf(t, busy), stateOf(t, stopped))
	}
	r.want("w1", "echo on", "on")
	must(t, r.Pause(t.Context(), "w1"), r.Stop(t.Context(), "w1", patience))
	if s := r.state("w1"); s != providers.StateStopped {
		t.Error(s)
	}
	if err := continueAll(1<<22, nil); err != nil {
		t.Error(err)
	}
	if _, err := stopAll(t.Context(), 1<<22); err == nil {
		t.Error("stopped nobody")
	}
}

// An agent that dies while it holds an instance leaves it halted; the next one,
// whatever it is asked first, lets it go on.
func TestHeldByAnAgentThatDied(t *testing.T) {
	for what, ask := range map[string]func(r *rig) error{
		"inspect": func(r *rig) error { _, err := r.Inspect(r.t.Context(), "w1"); return err },
		"start":   func(r *rig) error { return r.Start(r.t.Context(), "w1") },
		"resume":  func(r *rig) error { return r.Resume(r.t.Context(), "w1") },
		"pause":   func(r *rig) error { return errors.Join(r.Pause(r.t.Context(), "w1"), r.Resume(r.t.Context(), "w1")) },
		"snapshot": func(r *rig) error {
			_, err := r.Snapshot(r.t.Context(), "w1", "s")
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
			_, err := r.hold(t.Context(), "w1")
			must(t, err)
			if s := r.state("w1"); s != providers.StateRunning {
				t.Errorf("while it is held it is %s", s)
			}
			r.renew()
			must(t, ask(r))
			last, err := r.run("w1")
			if err != nil || last.Held || last.Paused {
				t.Errorf("%+v, %v", last, err)
			}
			r.want("w1", "echo on", "on")
		})
	}
}

// What cannot be halted goes on, and says so.
func TestPauseFails(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	last, err := r.run("w1")
	must(t, err)
	real := last.Cgroups
	played := filepath.Join(r.dir, "group")
	must(t, os.Mkdir(played, 0o700), os.WriteFile(filepath.Join(played, "cgroup.freeze"), []byte("0"), 0o600),
		os.WriteFile(filepath.Join(played, "cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o600))
	last.Cgroups = []string{played}
	must(t, r.keep("w1", last))
	if err := r.Pause(ctx, "w1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := r.Snapshot(ctx, "w1", "s"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if s := r.state("w1"); s != providers.StateRunning {
		t.Error(s)
	}
	must(t, os.WriteFile(filepath.Join(played, "cgroup.events"), []byte("populated 1\nfrozen 1\n"), 0o600))
	must(t, r.Pause(t.Context(), "w1"))
	if raw, err := os.ReadFile(filepath.Join(played, "cgroup.freeze")); err != nil || string(raw) != "1" {
		t.Errorf("%q, %v", raw, err)
	}
	// The second time, when it is paused and remains so.
	must(t, os.Remove(filepath.Join(played, "cgroup.events")))
	if err := r.Pause(t.Context(), "w1"); err == nil {
		t.Error("froze a group without events")
	}
	if s := r.state("w1"); s != providers.StatePaused {
		t.Error(s)
	}
	must(t, os.RemoveAll(played), (freezer{dir: played, file: "cgroup.freeze"}).thaw())
	if err := (freezer{dir: played, file: "cgroup.freeze"}).freeze(t.Context()); err == nil {
		t.Error("froze nothing")
	}
	last, err = r.run("w1")
	must(t, err)
	last.Cgroups = real
	must(t, r.keep("w1", last), r.Resume(t.Context(), "w1"))
	r.want("w1", "echo on", "on")
}

func TestResize(t *testing.T) {
	r := newRig(t)
	if !r.machine.resizable() {
		_, err := r.Create(t.Context(), spec("w1"))
		must(t, err)
		if _, err := r.Resize(t.Context(), "w1", providers.Resources{PIDs: 5}); !errors.Is(err, providers.ErrUnsupported) {
			t.Error(err)
		}
		return
	}
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone, Resources: providers.Resources{PIDs: 50, MemoryBytes: 200 << 20, CPUs: 1}})
	r.want("w1", "dd if=/dev/zero of=/dev/shm/f bs=1M count=80 2>/dev/null", "")
	before, err := r.load("w1")
	must(t, err)
	text := func() (all []string) {
		t.Helper()
		last, err := r.run("w1")
		must(t, err)
		for _, c := range changes(last.Cgroups, providers.Resources{PIDs: 1, MemoryBytes: 1, CPUs: 1}) {
			if raw, err := os.ReadFile(filepath.Join(c.dir, c.file)); err == nil {
				all = append(all, c.file+"="+strings.TrimSpace(string(raw)))
			}
		}
		slices.Sort(all)
		return all
	}
	was := text()
	if _, err := r.Resize(t.Context(), "w1", providers.Resources{MemoryBytes: 40 << 20, CPUs: 0.5, PIDs: 30}); !errors.Is(err, providers.ErrExhausted) {
		t.Errorf("less memory than is used: %v", err)
	}
	if now := text(); !slices.Equal(now, was) {
		t.Errorf("a resize that failed left %q, before %q", now, was)
	}
	if now, err := r.load("w1"); err != nil || now.Resources != before.Resources {
		t.Errorf("%+v, %v", now, err)
	}
	// The record cannot be written.
	block := filepath.Join(r.instanceDir("w1"), recordFile+".new")
	must(t, os.Mkdir(block, 0o700))
	if _, err := r.Resize(t.Context(), "w1", providers.Resources{PIDs: 30}); err == nil {
		t.Error("resized without a record")
	}
	must(t, os.RemoveAll(block))
	if now := text(); !slices.Equal(now, was) {
		t.Errorf("a resize that failed left %q, before %q", now, was)
	}
	note, err := r.Resize(t.Context(), "w1", providers.Resources{PIDs: 30})
	if err != nil || note != "" {
		t.Error(note, err)
	}
	r.want("w1", "grep processes /proc/self/limits | tr -s ' ' | cut -d' ' -f3", "30")
	if _, err := r.Resize(t.Context(), "w1", providers.Resources{DiskBytes: 1}); !errors.Is(err, providers.ErrUnsupported) || !strings.Contains(err.(*providers.Error).Next, "qemu") { //nolint:errorlint // it is that very type
		t.Error(err)
	}
	if err := limitEach(1<<22, 1); err == nil {
		t.Error("limited nobody")
	}
	// Version 2, played: it would kill, and is not asked to.
	played := filepath.Join(r.dir, "group")
	must(t, os.Mkdir(played, 0o700))
	for file, text := range map[string]string{"memory.max": "max", "memory.current": "5000", "cpu.stat": "usage_usec 1"} {
		must(t, os.WriteFile(filepath.Join(played, file), []byte(text), 0o600))
	}
	if err := fits(played, 4000); !errors.Is(err, errInUse) {
		t.Error(err)
	}
	must(t, fits(played, 6000), fits(r.dir, 1))
}

func TestConsole(t *testing.T) {
	r := newRig(t)
	ws := "w1"
	for _, unknown := range []string{ws, "..", ""} {
		if said := r.Console(t.Context(), unknown); said != "" {
			t.Errorf("%q", said)
		}
	}
	r.up(providers.Spec{Workspace: ws, Network: providers.NetworkNone})
	path := filepath.Join(r.instanceDir(ws), consoleFile)
	line := strings.Repeat("x", 1000) + "\n"
	must(t, os.WriteFile(path, []byte(strings.Repeat(line, 3)+"torn\xff"), 0o600))
	if said := r.Console(t.Context(), ws); said != strings.Repeat(line, 3)+"torn?" {
		t.Errorf("%q", said)
	}
	// A guest that talks and talks.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	for range 8 {
		_, err = f.WriteString(strings.Repeat(line, 500))
		must(t, err)
		r.state(ws)
	}
	_, err = f.WriteString("the end\n")
	must(t, err, f.Close())
	r.state(ws)
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Blocks*512 > 3*consoleKept {
		t.Errorf("its output takes %d bytes", st.Blocks*512)
	}
	if said := r.Console(t.Context(), ws); len(said) > consoleTold || !strings.HasSuffix(said, "x\nthe end") || strings.HasPrefix(said, "\n") {
		t.Errorf("%d bytes: %q", len(said), said[max(0, len(said)-40):])
	}
	must(t, os.Remove(path), trim(path))
	if said := r.Console(t.Context(), ws); said != "" {
		t.Errorf("%q", said)
	}
	if err := trim(filepath.Join(path, "x", "y")); err != nil && !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
}

// A call that died in the middle of a restore left what a repeat mends.
func TestRestoreByHalf(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	r.want("w1", "echo old > /workspace/f; echo old > /root/f; echo old > /etc/f", "")
	_, err := r.Snapshot(t.Context(), "w1", "s")
	must(t, err)
	r.want("w1", "echo new > /workspace/f; echo new > /root/f; rm /etc/f", "")
	must(t, r.Stop(t.Context(), "w1", patience))
	delete(r.conns, "w1")
	rec, err := r.load("w1")
	must(t, err)
	rec.Restoring = "s"
	dir := r.instanceDir("w1")
	must(t, host.Write(filepath.Join(dir, recordFile), rec),
		os.MkdirAll(filepath.Join(dir, "restore", "root"), 0o700),
		os.Rename(filepath.Join(dir, "root"), filepath.Join(dir, "restore", "old")))
	if i, err := r.Inspect(t.Context(), "w1"); err != nil || i.State != providers.StateBroken || !strings.Contains(i.Message, "snapshot s") {
		t.Errorf("%+v, %v", i, err)
	}
	if err := r.Start(t.Context(), "w1"); err == nil {
		t.Error("started half of one and half of another")
	}
	if _, err := r.Snapshot(t.Context(), "w1", "t"); err == nil {
		t.Error("kept half of one and half of another")
	}
	must(t, r.Restore(t.Context(), "w1", "s"), r.Start(t.Context(), "w1"))
	r.want("w1", "cat /workspace/f /root/f /etc/f", "old\nold\nold")
	if _, err := os.Lstat(filepath.Join(dir, "restore")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// Its volume is gone with the snapshots left.
	must(t, r.Stop(t.Context(), "w1", patience), r.trash.Discard(r.volumeDir("w1")))
	delete(r.conns, "w1")
	must(t, r.Restore(t.Context(), "w1", "s"), r.Start(t.Context(), "w1"))
	r.want("w1", "cat /workspace/f; stat -c %u /workspace/f", "old\n0")
}

// What cannot be copied leaves nothing of the copy and everything of the instance.
func TestCopiesThatFail(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	r.want("w1", "echo here > /workspace/f", "")
	_, err := r.Snapshot(ctx, "w1", "good")
	must(t, err)
	state := filepath.Join(r.volumeDir("w1"), "state")
	snapshots := r.snapshotsDir("w1")
	// What a call left that died goes with the next.
	must(t, os.Mkdir(filepath.Join(snapshots, ".new-dead"), 0o700))
	blocked := filepath.Join(r.instanceDir("w1"), runFile+".new")
	must(t, os.Mkdir(blocked, 0o700))
	if _, err := r.Snapshot(ctx, "w1", "bad"); err == nil {
		t.Error("kept without halting it")
	}
	if _, err := r.Fork(ctx, "w1", spec("w2")); err == nil {
		t.Error("forked without halting it")
	}
	must(t, os.RemoveAll(blocked))
	moved := filepath.Join(r.dir, "moved")
	must(t, os.Rename(filepath.Join(r.volumeDir("w1"), "workspace"), moved))
	if _, err := r.Snapshot(ctx, "w1", "bad"); err == nil {
		t.Error("kept what is not there")
	}
	if _, err := r.Fork(ctx, "w1", spec("w2")); err == nil {
		t.Error("forked what is not there")
	}
	must(t, os.Rename(moved, filepath.Join(r.volumeDir("w1"), "workspace")))
	entries, err := os.ReadDir(snapshots)
	if err != nil || len(entries) != 1 || entries[0].Name() != "good" {
		t.Error(entries, err)
	}
	for _, dir := range []string{r.instanceDir("w2"), r.volumeDir("w2")} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	r.want("w1", "cat /workspace/f", "here")
	// A restore that finds less than a snapshot.
	must(t, os.Rename(filepath.Join(snapshots, "good", "root"), moved))
	if err := r.Restore(ctx, "w1", "good"); err == nil {
		t.Error("restored half a snapshot")
	}
	if s := r.state("w1"); s != providers.StateRunning {
		t.Error(s)
	}
	must(t, os.Rename(moved, filepath.Join(snapshots, "good", "root")))
	// A record that makes no sense.
	must(t, os.Mkdir(filepath.Join(snapshots, "torn"), 0o700), os.WriteFile(filepath.Join(snapshots, "torn", snapshotFile), []byte("{"), 0o600))
	if _, err := r.Snapshots(ctx, "w1"); err == nil {
		t.Error("listed nonsense")
	}
	if _, err := r.Snapshot(ctx, "w1", "torn"); err == nil {
		t.Error("took nonsense for a snapshot")
	}
	if err := r.Restore(ctx, "w1", "torn"); err == nil {
		t.Error("restored nonsense")
	}
	must(t, r.RemoveSnapshot(ctx, "w1", "torn"))
	// A fork of a workspace that has files.
	_, err = r.Create(ctx, spec("w2"))
	must(t, err, r.Destroy(ctx, "w2", false))
	if _, err := r.Fork(ctx, "w1", spec("w2")); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.Fork(ctx, "w1", providers.Spec{Workspace: "w3", Digest: "sha256:other"}); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.Fork(ctx, "..", spec("w3")); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	// One that died half-made is made anew, volume and all.
	_, err = r.Fork(ctx, "w1", providers.Spec{Workspace: "w3"})
	must(t, err)
	rec, err := r.load("w3")
	must(t, err)
	rec.Ready = false
	must(t, host.Write(filepath.Join(r.instanceDir("w3"), recordFile), rec))
	i, err := r.Fork(ctx, "w1", providers.Spec{Workspace: "w3", Generation: 9, Resources: providers.Resources{PIDs: 77}})
	if err != nil || i.Generation != 9 || i.State != providers.StateStopped {
		t.Errorf("%+v, %v", i, err)
	}
	if rec, err = r.load("w3"); err != nil || rec.Resources.PIDs != 77 {
		t.Errorf("%+v, %v", rec, err)
	}
	if _, err := os.Stat(state); err != nil {
		t.Error(err)
	}
}

func TestExchange(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, exchange(a, b), os.Mkdir(a, 0o700), exchange(a, b))
	if _, err := os.Lstat(b); err != nil {
		t.Error(err)
	}
	must(t, exchange(a, b))
	if _, err := os.Lstat(a); err != nil {
		t.Error(err)
	}
	must(t, os.WriteFile(b, nil, 0o600), exchange(a, b))
	if info, err := os.Lstat(b); err != nil || !info.IsDir() {
		t.Error(info, err)
	}
	if err := exchange(filepath.Join(dir, "."), b); err == nil {
		t.Error("exchanged a folder with one in it")
	}
	if err := tree.Flush(filepath.Join(dir, "absent")); err == nil {
		t.Error("flushed nothing")
	}
}

// shelf is a store of one image that lies in a folder.
type shelf struct {
	img   image.Image
	err   error
	holds map[string]string
}

func (s *shelf) Get(_ context.Context, _, _, holder string) (image.Image, error) {
	if s.err == nil {
		s.holds[holder] = s.img.Digest
	}
	return s.img, s.err
}
func (s *shelf) Held(string) (image.Image, error) { return s.img, s.err }
func (s *shelf) Hold(digest, holder string) error {
	if s.err == nil {
		s.holds[holder] = digest
	}
	return s.err
}
func (s *shelf) Release(holder string) error { delete(s.holds, holder); return nil }

// newShelf has an image that is nothing but a few folders, without a shell.
func (r *rig) newShelf() *shelf {
	r.t.Helper()
	root := filepath.Join(r.dir, "image, a:b")
	must(r.t, os.MkdirAll(filepath.Join(root, "etc"), 0o755),
		os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte("root:x:0:0::/:\ndev:x:7:8::/:\n"), 0o644))
	r.t.Cleanup(func() { _ = tree.Remove(context.Background(), root) })
	s := &shelf{img: image.Image{Digest: "sha256:1", Root: root, Flat: true, Env: []string{"A=1", "PATH=/x", "nonsense", providers.EnvGuestUser + "=evil"}}, holds: map[string]string{}}
	r.images = s
	r.guest = realGuest(r.t) // a static program
	return s
}

// An image without a shell, and without a folder for anything.
func TestBareImage(t *testing.T) {
	r := newRig(t)
	s := r.newShelf()
	ctx := t.Context()
	with := providers.Spec{Workspace: "w1", Image: "bare", Network: providers.NetworkNone}
	r.up(with)
	conn, err := r.Connect(ctx, "w1")
	must(t, err, conn.Close())
	i, err := r.Inspect(ctx, "w1")
	if err != nil || i.Digest != "sha256:1" || len(s.holds) != 1 {
		t.Errorf("%+v, %v, %v", i, s.holds, err)
	}
	if u, err := r.Usage(ctx, "w1"); err != nil || u.MemoryBytes <= 0 {
		t.Errorf("%+v, %v", u, err)
	}
	_, err = r.Snapshot(ctx, "w1", "s")
	must(t, err, r.Stop(ctx, "w1", patience))
	if len(s.holds) != 2 {
		t.Error(s.holds)
	}
	// What was written into it is in its own layer alone.
	for path, want := range map[string]string{"hostname": "box-w1\n"} {
		raw, err := os.ReadFile(filepath.Join(r.instanceDir("w1"), "upper", "etc", path))
		if err != nil || string(raw) != want {
			t.Errorf("%q, %v", raw, err)
		}
	}
	if entries, err := os.ReadDir(s.img.Root); err != nil || len(entries) != 1 {
		t.Error(entries, err)
	}
	// Back to the machine's own system, and to the image again.
	must(t, r.Destroy(ctx, "w1", false))
	_, err = r.Create(ctx, providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	must(t, err)
	if len(s.holds) != 1 {
		t.Error(s.holds)
	}
	_, err = r.Snapshot(ctx, "w1", "own")
	must(t, err, r.Restore(ctx, "w1", "s"))
	if i, err := r.Inspect(ctx, "w1"); err != nil || i.Digest != "sha256:1" || len(s.holds) != 2 {
		t.Errorf("%+v, %v, %v", i, s.holds, err)
	}
	must(t, r.Start(ctx, "w1"), r.Restore(ctx, "w1", "own"))
	if i, err := r.Inspect(ctx, "w1"); err != nil || i.Digest != "" || len(s.holds) != 1 {
		t.Errorf("%+v, %v, %v", i, s.holds, err)
	}
	must(t, r.Start(ctx, "w1"))
	conn, err = r.Connect(ctx, "w1")
	must(t, err, conn.Close(), r.RemoveSnapshot(ctx, "w1", "own"), r.Destroy(ctx, "w1", true))
	if len(s.holds) != 0 {
		t.Error(s.holds)
	}
}

// A workspace controls its root: what it leaves there leads nowhere.
func TestHostileImageRoot(t *testing.T) {
	r := newRig(t)
	r.newShelf()
	_, err := r.Create(t.Context(), providers.Spec{Workspace: "w1", Name: "box", Image: "bare", Network: providers.NetworkNone})
	must(t, err)
	marker := filepath.Join(r.dir, "marker")
	must(t, os.WriteFile(marker, []byte("untouched"), 0o666))
	upper := filepath.Join(r.instanceDir("w1"), "upper")
	for path, to := range map[string]string{
		"etc": r.dir, "proc": "/etc", "dev": marker, "run": "../../..", "workspace": "/proc/1/root", "sys": "etc", ".vendetta": r.dir, "tmp": "/absent",
	} {
		must(t, os.Symlink(to, filepath.Join(upper, path)))
	}
	must(t, r.Start(t.Context(), "w1"))
	conn, err := r.Connect(t.Context(), "w1")
	must(t, err, conn.Close(), r.Stop(t.Context(), "w1", patience))
	if raw, err := os.ReadFile(marker); err != nil || string(raw) != "untouched" {
		t.Errorf("%q, %v", raw, err)
	}
	if entries, err := filepath.Glob(filepath.Join(r.dir, "hos*")); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
	v, err := r.volume("w1")
	must(t, err, os.RemoveAll(filepath.Join(upper, "etc")))
	for _, dir := range []string{"etc", "etc/hosts", "etc/hosts/x"} {
		must(t, r.makeDir(filepath.Join(upper, dir), 0o755, v, true))
	}
	must(t, r.Start(t.Context(), "w1"))
}

// Images that cannot be had.
func TestImageFailures(t *testing.T) {
	r := newRig(t)
	s := r.newShelf()
	ctx := t.Context()
	with := providers.Spec{Workspace: "w1", Image: "bare", Network: providers.NetworkNone}
	s.err = &providers.Error{Kind: providers.ErrInvalid, Message: "no reference"}
	if _, err := r.Create(ctx, with); !errors.Is(err, providers.ErrImage) {
		t.Error(err)
	}
	s.err = nil
	s.img.User = "nobody-there"
	if _, err := r.Create(ctx, with); r.machine.root && !errors.Is(err, providers.ErrImage) {
		t.Error(err)
	}
	must(t, r.Destroy(ctx, "w1", true))
	if len(s.holds) != 0 {
		t.Error(s.holds)
	}
	s.img.User = "dev"
	_, err := r.Create(ctx, with)
	must(t, err)
	if r.machine.root {
		v, err := r.volume("w1")
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(r.volumeDir("w1"), "workspace"), &st))
		if st.Uid != v.IDBase+7 || st.Gid != v.IDBase+8 {
			t.Errorf("%d:%d", st.Uid-v.IDBase, st.Gid-v.IDBase)
		}
		must(t, r.giveProject("w1", s.img, v)) // not root's any more
	}
	s.err = errors.New("lost")
	for what, call := range map[string]func() error{
		"start":    func() error { return r.Start(ctx, "w1") },
		"snapshot": func() error { _, err := r.Snapshot(ctx, "w1", "s"); return err },
		"fork":     func() error { _, err := r.Fork(ctx, "w1", spec("w2")); return err },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "lost") {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.err = nil
	_, err = r.Snapshot(ctx, "w1", "s")
	must(t, err)
	s.err = errors.New("lost")
	if err := r.Restore(ctx, "w1", "s"); err == nil {
		t.Error("restored without its image")
	}
	s.err = nil
	s.img.Root = filepath.Join(r.dir, "gone")
	if err := r.Start(ctx, "w1"); err == nil {
		t.Error("started on nothing")
	}
	r.images = nil
	if err := r.Start(ctx, "w1"); err == nil {
		t.Error("started without a store")
	}
	for what, change := range map[string]func(*providers.Spec){
		"disk image": func(s *providers.Spec) { s.Image = "https://example.com/a.qcow2" },
		"checksum":   func(s *providers.Spec) { s.Image, s.Checksum = "", "sha256:1" },
	} {
		r.images = s
		bad := providers.Spec{Workspace: "w4", Image: "bare"}
		change(&bad)
		if _, err := r.Create(ctx, bad); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, r.Destroy(ctx, "w1", true))
}

func TestEnvironment(t *testing.T) {
	env := environment(&image.Image{Env: []string{"PATH=/a", "X=1", "X=2", "bad", "HOME=/h", "=y", providers.EnvGuestUser + "=evil", "N=a\x00b"}}, "dev")
	if want := []string{"PATH=/a", "X=2", "HOME=/h", providers.EnvGuestUser + "=dev"}; !slices.Equal(env, want) {
		t.Errorf("%q", env)
	}
	if env := environment(nil, "root"); !slices.Contains(env, "LANG=C.UTF-8") || !slices.Contains(env, providers.EnvGuestUser+"=root") {
		t.Errorf("%q", env)
	}
}

// A cancelled copy ends soon and lets the instance go on.
func TestHoldEndsWithItsCall(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if _, err := r.Snapshot(ctx, "w1", "s"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if s := r.state("w1"); s != providers.StateRunning {
		t.Error(s)
	}
	r.want("w1", "echo on", "on")
}

// A folder of snapshots that cannot be one is told by every call.
func TestBadSnapshotsFolder(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	_, err := r.Create(ctx, spec("w1"))
	must(t, err, os.Mkdir(filepath.Join(r.dir, "snapshots"), 0o700))
	file := r.snapshotsDir("w1")
	must(t, os.WriteFile(file, nil, 0o600))
	for what, call := range map[string]func() error{
		"snapshot": func() error { _, err := r.Snapshot(ctx, "w1", "s"); return err },
		"list":     func() error { _, err := r.Snapshots(ctx, "w1"); return err },
		"restore":  func() error { return r.Restore(ctx, "w1", "s") },
		"remove":   func() error { return r.RemoveSnapshot(ctx, "w1", "s") },
		"destroy":  func() error { return r.Destroy(ctx, "w1", true) },
	} {
		var own *providers.Error
		if err := call(); what != "remove" && !errors.As(err, &own) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, os.Remove(file))
	_, err = r.Create(ctx, spec("w1"))
	must(t, err)
	if _, err := r.Snapshots(ctx, ".."); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	// A record that cannot be replaced: a restore then says that it is by half.
	_, err = r.Snapshot(ctx, "w1", "s")
	must(t, err)
	block := filepath.Join(r.instanceDir("w1"), recordFile+".new")
	must(t, os.Mkdir(block, 0o700))
	if err := r.Restore(ctx, "w1", "s"); err == nil {
		t.Error("restored without a record")
	}
	must(t, os.RemoveAll(block))
	if s := r.state("w1"); s != providers.StateStopped {
		t.Error(s)
	}
	must(t, os.WriteFile(filepath.Join(r.instanceDir("w1"), runFile), []byte("{"), 0o600))
	if err := r.Restore(ctx, "w1", "s"); err == nil {
		t.Error("restored beside an unreadable record")
	}
	if _, err := r.Snapshot(ctx, "w1", "t"); err == nil {
		t.Error("kept beside an unreadable record")
	}
	if _, err := r.Resize(ctx, "w1", providers.Resources{PIDs: 9}); err == nil {
		t.Error("resized beside an unreadable record")
	}
	must(t, os.Remove(filepath.Join(r.instanceDir("w1"), runFile)))
}
