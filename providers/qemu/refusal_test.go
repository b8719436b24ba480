//go:build linux

package qemu

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// What is no workspace's id is refused by every call.
func TestBadIDs(t *testing.T) {
	p, _ := stopped(t)
	ctx := t.Context()
	for name, call := range map[string]func(string) error{
		"start": func(ws string) error { return p.Start(ctx, ws) }, "stop": func(ws string) error { return p.Stop(ctx, ws, time.Second) },
		"destroy": func(ws string) error { return p.Destroy(ctx, ws, true) }, "inspect": func(ws string) error { _, err := p.Inspect(ctx, ws); return err },
		"connect": func(ws string) error { _, err := p.Connect(ctx, ws); return err }, "usage": func(ws string) error { _, err := p.Usage(ctx, ws); return err },
		"pause": func(ws string) error { return p.Pause(ctx, ws) }, "resume": func(ws string) error { return p.Resume(ctx, ws) },
		"resize":    func(ws string) error { _, err := p.Resize(ctx, ws, providers.Resources{CPUs: 2}); return err },
		"snapshot":  func(ws string) error { _, err := p.Snapshot(ctx, ws, "s"); return err },
		"snapshots": func(ws string) error { _, err := p.Snapshots(ctx, ws); return err },
		"restore":   func(ws string) error { return p.Restore(ctx, ws, "s") }, "remove": func(ws string) error { return p.RemoveSnapshot(ctx, ws, "s") },
		"fork": func(ws string) error { _, err := p.Fork(ctx, ws, providers.Spec{Workspace: "def"}); return err },
	} {
		if err := call("../abc"); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if said := p.Console(ctx, "../abc"); said != "" {
		t.Errorf("console: %q", said)
	}
	_, err := p.Create(ctx, providers.Spec{Workspace: "def", Image: "debian:12", Checksum: "sha256:" + strings.Repeat("a", 64)})
	if !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("a checksum of a container image: %v", err)
	}
	if _, err := p.Create(ctx, providers.Spec{Workspace: "def"}); err == nil {
		t.Error("made without an image in the store")
	}
}

// What is another server's is not seen and not touched.
func TestForeignInstance(t *testing.T) {
	p, _ := stopped(t)
	ctx := t.Context()
	p.server = "another"
	for name, err := range map[string]error{
		"start": p.Start(ctx, "abc"), "stop": p.Stop(ctx, "abc", time.Second), "restore": p.Restore(ctx, "abc", "s"),
	} {
		if !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, p.Destroy(ctx, "abc", true), p.RemoveSnapshot(ctx, "abc", "s"))
	if all, err := p.Snapshots(ctx, "abc"); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := p.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	p.server = "s"
	if all, err := p.Snapshots(ctx, "abc"); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}

// Records say what there is of an instance, whatever became of the rest.
func TestInspected(t *testing.T) {
	p, _ := stopped(t)
	ctx := t.Context()
	whole, err := p.load("abc")
	must(t, err)
	half, restoring := whole, whole
	half.Ready, restoring.Restoring = false, "s"
	for what, c := range map[string]struct {
		record record
		run    run
		state  providers.State
		says   string
	}{
		"half-made":       {half, run{}, providers.StateBroken, "half-made"},
		"being restored":  {restoring, run{}, providers.StateBroken, "snapshot s"},
		"before a reboot": {whole, run{Process: host.Process{PID: 1, Start: 1, BootID: "another"}}, providers.StateStopped, "restarted"},
		"killed":          {whole, run{Process: host.Process{PID: 1, Start: 1, BootID: host.BootID()}}, providers.StateStopped, ""},
	} {
		must(t, p.save("abc", c.record), host.Write(filepath.Join(p.instanceDir("abc"), runFile), c.run))
		if i, err := p.Inspect(ctx, "abc"); err != nil || i.State != c.state || !strings.Contains(i.Message, c.says) {
			t.Errorf("%s: %+v, %v", what, i, err)
		}
	}
	for what, r := range map[string]record{"half-made": half, "did not end": restoring} {
		must(t, p.save("abc", r))
		if err := p.Start(ctx, "abc"); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("started what is %s: %v", what, err)
		}
	}
	if _, err := p.Snapshot(ctx, "abc", "t"); err == nil {
		t.Error("kept in the middle of a restore")
	}
	// A restore that was cut off is repeated; what is not an instance is passed over.
	must(t, p.save("abc", restoring), os.Remove(filepath.Join(p.instanceDir("abc"), runFile)), p.Restore(ctx, "abc", "s"),
		os.Mkdir(filepath.Join(p.dir, "instances", "No Instance"), 0o700), os.Mkdir(filepath.Join(p.dir, "instances", "empty"), 0o700),
		os.Mkdir(filepath.Join(p.snapshotsDir("abc"), "No Snapshot"), 0o700))
	torn := filepath.Join(p.dir, "instances", "torn")
	must(t, os.Mkdir(torn, 0o700), os.WriteFile(filepath.Join(torn, recordFile), []byte("{"), 0o600))
	all, err := p.List(ctx)
	if err != nil || len(all) != 2 || all[0].State != providers.StateStopped || all[1].State != providers.StateBroken {
		t.Errorf("%+v, %v", all, err)
	}
	if kept, err := p.Snapshots(ctx, "abc"); err != nil || len(kept) != 1 {
		t.Errorf("%+v, %v", kept, err)
	}
	must(t, p.save("abc", half))
	if i, err := p.Create(ctx, providers.Spec{Workspace: "abc", Image: whole.Image}); err != nil || i.State != providers.StateStopped {
		t.Errorf("made over what was half-made: %+v, %v", i, err)
	}
}

// A process that is no QEMU stands for one that answers nothing: it is said so,
// and it is ended all the same.
func TestDeafMachine(t *testing.T) {
	p, _ := stopped(t)
	ctx := t.Context()
	deaf := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command("sleep", "300")
		must(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		process, err := host.Identify(cmd.Process.Pid)
		must(t, err, host.Write(filepath.Join(p.instanceDir("abc"), runFile), run{Process: process, Started: time.Now()}))
		return cmd
	}
	cmd := deaf()
	if i, err := p.Inspect(ctx, "abc"); err != nil || !strings.Contains(i.Message, "does not answer") {
		t.Errorf("%+v, %v", i, err)
	}
	for name, err := range map[string]error{"start": p.Start(ctx, "abc"), "pause": p.Pause(ctx, "abc"), "resume": p.Resume(ctx, "abc")} {
		if err == nil {
			t.Errorf("%s succeeded", name)
		}
	}
	if _, err := p.Snapshot(ctx, "abc", "t"); err == nil {
		t.Error("kept")
	}
	if _, err := p.Connect(ctx, "abc"); err == nil {
		t.Error("connected")
	}
	p.tellTime(ctx, "abc") // says so in the log alone
	ended := func(cmd *exec.Cmd) {
		t.Helper()
		if err := unix.Kill(cmd.Process.Pid, 0); err == nil {
			t.Error("it runs on")
		}
		if _, err := os.Lstat(filepath.Join(p.instanceDir("abc"), runFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a record of its run is left: %v", err)
		}
	}
	must(t, p.Stop(ctx, "abc", time.Second))
	ended(cmd)
	cmd = deaf()
	must(t, p.Restore(ctx, "abc", "s"))
	ended(cmd)
	cmd = deaf()
	must(t, p.Destroy(ctx, "abc", false))
	if err := unix.Kill(cmd.Process.Pid, 0); err == nil {
		t.Error("it runs on")
	}
}

// The tools that make disks may be missing, fail, or be called off.
func TestDiskTools(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	must(t, os.WriteFile(there, []byte("x"), 0o600))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := qemuImg(t.Context(), "no-such-command"); err == nil || !strings.Contains(err.Error(), "qemu-img") {
		t.Errorf("qemu-img: %v", err)
	}
	if err := qemuImg(ended, "--version"); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	if err := formatExt4(t.Context(), there, 64<<20, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over a file: %v", err)
	}
	for what, c := range map[string]struct{ from, to string }{
		"absent": {filepath.Join(dir, "absent"), filepath.Join(dir, "a")}, "taken": {there, there}, "folder": {dir, filepath.Join(dir, "b")},
	} {
		if err := copyFile(t.Context(), c.from, c.to); err == nil {
			t.Errorf("copied what is %s", what)
		}
	}
	if err := copyFile(ended, there, filepath.Join(dir, "c")); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("copied after the context's end: %v", err)
	}
	if _, _, err := measure(filepath.Join(dir, "absent")); err == nil {
		t.Error("measured what is absent")
	}
	t.Setenv("PATH", dir)
	for _, program := range []string{"no-such-program"} {
		if _, err := lookProgram(program); err == nil {
			t.Errorf("found %s", program)
		}
		if err := tool(t.Context(), nil, program); err == nil {
			t.Errorf("ran %s", program)
		}
	}
}

// Without a folder to be in nothing is made, and nothing is left.
func TestNoRoom(t *testing.T) {
	p, s := stopped(t)
	for _, name := range []string{"instances", "volumes"} {
		path := filepath.Join(p.dir, name)
		must(t, os.Rename(path, path+".aside"), os.WriteFile(path, nil, 0o600))
		if _, err := p.Create(t.Context(), providers.Spec{Workspace: "def", Image: s.disk.Path}); err == nil {
			t.Errorf("made without %s", name)
		}
		if _, err := p.List(t.Context()); name == "instances" && err == nil {
			t.Error("listed without a folder")
		}
		must(t, os.Remove(path), os.Rename(path+".aside", path))
	}
	if len(s.holds) == 0 {
		t.Error("the machine that is there lets its image go")
	}
	if err := p.writeSeed("abc", record{Env: []string{strings.Repeat("x", seedMost)}}); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("a seed that is too large: %v", err)
	}
	p.root = false
	if c := p.credential(7); c != nil {
		t.Errorf("an ordinary user's machine runs as %+v", c)
	}
	for _, spec := range []providers.Spec{{Workspace: "def", Image: s.disk.Path, Resources: providers.Resources{DiskBytes: leastDisk}}} {
		must(t, os.Truncate(s.disk.Path, 2*leastDisk))
		if _, err := p.Create(t.Context(), spec); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("a disk smaller than its image: %v", err)
		}
	}
}

// What the guest answers on its control port is taken for what it is.
func TestAnswers(t *testing.T) {
	for what, c := range map[string]struct {
		says string
		want string
	}{
		"done":    {"done 7\n", ""},
		"earlier": {"failed 6 old\ndone 7\n", ""},
		"failed":  {"failed 7 no room\n", "no room"},
		"nothing": {"", "does not answer"},
		"endless": {strings.Repeat("x", 8192), "does not answer"},
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = io.WriteString(theirs, c.says) // who has heard enough hangs up
			_ = theirs.Close()
		}()
		w := &words{Conn: ours, number: "7"}
		err := w.answer(t.Context())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
		must(t, w.Close())
	}
	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w := &words{Conn: ours, number: "7"}
	if err := w.answer(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
	must(t, w.Close())
}

// A node without the tools says which package brings them.
func TestProbeWithoutTools(t *testing.T) {
	p, _ := stopped(t)
	t.Setenv("PATH", t.TempDir())
	if s := p.Probe(t.Context()); s.Usable || s.Reason == "" || s.Fix == "" {
		t.Errorf("%+v", s)
	}
}

// A file that all machines share is made once, whole or not at all.
func TestCached(t *testing.T) {
	p, _ := stopped(t)
	ctx := t.Context()
	failure := errors.New("no")
	if _, err := p.cached(ctx, "a-1", "a-*", 1, func(context.Context, string) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("made: %v", err)
	}
	if _, err := p.cached(ctx, "a-1", "a-*", 1, func(context.Context, string) error { return nil }); err == nil {
		t.Error("made of nothing")
	}
	write := func(_ context.Context, path string) error { return os.WriteFile(path, nil, 0o600) }
	for _, name := range []string{"a-1", "a-2", "a-2"} {
		path, err := p.cached(ctx, name, "a-*", 1, write)
		if err != nil || filepath.Base(path) != name {
			t.Errorf("%s, %v", path, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(p.bootDir(), "a-*")); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	must(t, os.RemoveAll(p.bootDir()), os.WriteFile(p.bootDir(), nil, 0o600))
	if _, err := p.cached(ctx, "b-1", "b-*", 1, write); err == nil {
		t.Error("made without a folder")
	}
	if _, err := p.initramfs(ctx, kernel{path: filepath.Join(p.dir, "absent")}); err == nil {
		t.Error("made an initramfs for no kernel")
	}
	c := &cpio{err: failure}
	c.entry("a", 0, 0, nil)
	if c.inode != 0 {
		t.Error("wrote after a failure")
	}
}

// Seeds, kernels and consoles that cannot be read or written are told.
func TestFilesOfABoot(t *testing.T) {
	p, _ := stopped(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	sealed, err := os.Open(path)
	must(t, err)
	defer func() { _ = sealed.Close() }()
	many := make([]fatFile, fatRootFiles)
	for i := range many {
		many[i] = fatFile{name: "n", content: nil}
	}
	for what, files := range map[string][]fatFile{"no file": nil, "one": {{"a name of 13!", []byte("x")}}, "many": many} {
		if err := writeFAT(sealed, files); err == nil {
			t.Errorf("wrote a seed of %s into what can be read only", what)
		}
	}
	scratch, err := os.Create(filepath.Join(dir, "scratch"))
	must(t, err)
	defer func() { _ = scratch.Close() }()
	if err := writeFAT(scratch, many); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("many files: %v", err)
	}
	if err := p.writeCloudSeed("abc", record{}); err == nil {
		t.Error("wrote a seed without a guest")
	}
	p.opts.GuestProgram = path
	seed := filepath.Join(p.instanceDir("abc"), seedFile)
	must(t, os.RemoveAll(seed), os.Mkdir(seed, 0o700))
	if err := p.writeCloudSeed("abc", record{}); err == nil {
		t.Error("wrote a seed over a folder")
	}
	if err := p.writeSeed("abc", record{}); err == nil {
		t.Error("wrote a small seed over a folder")
	}
	must(t, os.RemoveAll(filepath.Join(p.instanceDir("abc"), consoleFile)), os.Mkdir(filepath.Join(p.instanceDir("abc"), consoleFile), 0o700))
	if said := p.Console(t.Context(), "abc"); said != "" {
		t.Errorf("read %q from a folder", said)
	}
	// A header without a version, and one whose version leads elsewhere.
	for what, version := range map[string]string{"no version": "\x00", "a path": "../../etc x"} {
		head := make([]byte, 0x410)
		copy(head[0x202:], "HdrS")
		head[0x20e], head[0x20f] = 0x10, 0x00
		copy(head[0x210:], version)
		must(t, os.WriteFile(path, head, 0o600))
		if got, err := kernelVersion(path); err == nil {
			t.Errorf("%s: %q", what, got)
		}
	}
	if _, err := (kernel{modules: path}).modulePlan(t.Context()); err == nil {
		t.Error("planned modules of a file")
	}
	if _, err := p.say(t.Context(), "absent", "off"); err == nil {
		t.Error("said something to nobody")
	}
	if err := p.dismiss(t.Context(), "absent"); err != nil {
		t.Errorf("dismiss nobody: %v", err)
	}
	p.dir = path
	if _, err := p.lock(); err == nil {
		t.Error("locked a folder that is a file")
	}
	if _, err := p.freeID("abc"); err == nil {
		t.Error("picked a user without a folder")
	}
}
