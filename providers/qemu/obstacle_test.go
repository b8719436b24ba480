//go:build linux

package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// shelf is a store of one disk image.
type shelf struct {
	disk  image.Disk
	err   error
	holds []string
}

func (s *shelf) hold(holder string) error {
	if s.err == nil && !slices.Contains(s.holds, holder) {
		s.holds = append(s.holds, holder)
	}
	return s.err
}

func (s *shelf) Get(context.Context, string, string, string) (image.Image, error) {
	return image.Image{}, errors.New("there are disks only")
}
func (s *shelf) Held(string) (image.Image, error) { return image.Image{}, s.err }
func (s *shelf) GetDisk(_ context.Context, _, _, _, holder string) (image.Disk, error) {
	return s.disk, s.hold(holder)
}
func (s *shelf) HeldDisk(string) (image.Disk, error) { return s.disk, s.err }
func (s *shelf) Derived(context.Context, string, string, func(context.Context, string) error) (string, error) {
	return "", errors.New("there are disks only")
}
func (s *shelf) Hold(_, holder string) error { return s.hold(holder) }
func (s *shelf) Release(holder string) error {
	s.holds = slices.DeleteFunc(s.holds, func(h string) bool { return h == holder })
	return nil
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// stopped makes a provider with the machine abc, made and not started, and its
// snapshot s. The tools that make disks are all it takes.
func stopped(t *testing.T) (*Provider, *shelf) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		testbed.Wants(t, Name)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	must(t, os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 8<<20))
	s := &shelf{disk: image.Disk{Digest: "sha256:1", Path: disk, Format: "raw"}}
	p := New(Options{ServerID: "s", StateDir: filepath.Join(dir, "state"), Images: s})
	t.Cleanup(func() { must(t, p.Close()) })
	i, err := p.Create(t.Context(), providers.Spec{Workspace: "abc", Image: disk, Generation: 3})
	if err != nil || i.State != providers.StateStopped || i.Digest != "sha256:1" || i.Generation != 3 {
		t.Fatalf("%+v, %v", i, err)
	}
	_, err = p.Snapshot(t.Context(), "abc", "s")
	must(t, err)
	return p, s
}

// A machine that does not run is kept, restored, forked and made larger by its
// disks alone.
func TestStoppedMachine(t *testing.T) {
	p, s := stopped(t)
	ctx := t.Context()
	for range 2 {
		if _, err := p.Snapshot(ctx, "abc", "s"); err != nil {
			t.Error(err)
		}
		must(t, p.Restore(ctx, "abc", "s"), p.Stop(ctx, "abc", time.Minute))
		if i, err := p.Fork(ctx, "abc", providers.Spec{Workspace: "def"}); err != nil || i.State != providers.StateStopped {
			t.Errorf("%+v, %v", i, err)
		}
	}
	if note, err := p.Resize(ctx, "abc", providers.Resources{CPUs: 2, MemoryBytes: 1 << 29, PIDs: 9, DiskBytes: 11 << 30}); err != nil || note != "" {
		t.Errorf("%q, %v", note, err)
	}
	for _, path := range []string{filepath.Join(p.instanceDir("abc"), rootDisk), filepath.Join(p.volumeDir("abc"), volumeDisk)} {
		if size, err := ownSize(path); err != nil || size != 11<<30 {
			t.Errorf("%s: %d, %v", path, size, err)
		}
	}
	for what, wanted := range map[string]providers.Resources{
		"smaller": {DiskBytes: 1 << 30}, "negative": {CPUs: -1}, "little": {MemoryBytes: 1},
	} {
		if _, err := p.Resize(ctx, "abc", wanted); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, spec := range map[string]providers.Spec{
		"itself":  {Workspace: "abc"},
		"smaller": {Workspace: "ghi", Resources: providers.Resources{DiskBytes: 1 << 30}},
		"no id":   {Workspace: "../x"},
	} {
		if _, err := p.Fork(ctx, "abc", spec); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("fork into %s: %v", what, err)
		}
	}
	if _, err := p.Usage(ctx, "abc"); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("measured: %v", err)
	}
	for what, call := range map[string]func(context.Context, string) error{"pause": p.Pause, "resume": p.Resume} {
		if err := call(ctx, "abc"); !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := p.Restore(ctx, "abc", "absent"); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("restored: %v", err)
	}
	if all, err := p.List(ctx); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	must(t, p.Destroy(ctx, "def", false))
	if _, err := p.Fork(ctx, "abc", providers.Spec{Workspace: "def"}); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("forked over files: %v", err)
	}
	must(t, p.Destroy(ctx, "def", true), p.RemoveSnapshot(ctx, "abc", "s"), p.RemoveSnapshot(ctx, "abc", "s"), p.Destroy(ctx, "abc", true))
	if len(s.holds) != 0 {
		t.Errorf("held: %v", s.holds)
	}
}

// With something else in a path's place, every call that needs it fails, and with
// the old thing back the machine is what it was.
func TestObstacles(t *testing.T) {
	p, s := stopped(t)
	ctx := t.Context()
	dir, volume, snapshots := p.instanceDir("abc"), p.volumeDir("abc"), p.snapshotsDir("abc")

	create := func() error {
		_, err := p.Create(ctx, providers.Spec{Workspace: "abc", Image: s.disk.Path})
		return err
	}
	inspect := func() error { _, err := p.Inspect(ctx, "abc"); return err }
	resize := func() error { _, err := p.Resize(ctx, "abc", providers.Resources{DiskBytes: 11 << 30}); return err }
	usage := func() error { _, err := p.Usage(ctx, "abc"); return err }
	snapshot := func() error { _, err := p.Snapshot(ctx, "abc", "t"); return err }
	list := func() error { _, err := p.Snapshots(ctx, "abc"); return err }
	remove := func() error { return p.RemoveSnapshot(ctx, "abc", "s") }
	restore := func() error { return p.Restore(ctx, "abc", "s") }
	start := func() error { return p.Start(ctx, "abc") }
	stop := func() error { return p.Stop(ctx, "abc", time.Minute) }
	destroy := func() error { return p.Destroy(ctx, "abc", true) }
	connect := func() error { _, err := p.Connect(ctx, "abc"); return err }
	fork := func() error { _, err := p.Fork(ctx, "abc", providers.Spec{Workspace: "def"}); return err }
	broken := func() error {
		if i, err := p.Inspect(ctx, "abc"); err != nil || i.State != providers.StateBroken {
			return err
		}
		return errors.New("it is broken")
	}

	folder := func(path string) error { return os.Mkdir(path, 0o700) }
	plain := func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }
	nothing := func(string) error { return nil }
	type calls map[string]func() error
	for _, c := range []struct {
		what, path string
		put        func(path string) error
		calls      calls
	}{
		{"a torn record of the run", filepath.Join(dir, runFile), plain, calls{
			"snapshot": snapshot, "restore": restore, "stop": stop, "connect": connect, "fork": fork, "resize": resize,
			"start": start, "usage": usage, "inspect": broken,
		}},
		{"an unreadable record of the run", filepath.Join(dir, runFile), folder, calls{"destroy": destroy}},
		{"a torn record", filepath.Join(dir, recordFile), plain, calls{
			"create": create, "inspect": inspect, "snapshot": snapshot, "restore": restore, "start": start, "stop": stop, "fork": fork, "resize": resize,
		}},
		{"a record that cannot be written", filepath.Join(dir, recordFile+".new"), folder, calls{"restore": restore}},
		{"no root disk", filepath.Join(dir, rootDisk), nothing, calls{"snapshot": snapshot, "fork": fork, "start": start, "resize": resize}},
		{"no disk of the volume", filepath.Join(volume, volumeDisk), nothing, calls{"snapshot": snapshot, "fork": fork, "start": start}},
		{"a torn record of the volume", filepath.Join(volume, volumeFile), plain, calls{"start": start, "inspect": broken}},
		{"a file for the snapshots", snapshots, plain, calls{"snapshot": snapshot, "list": list, "restore": restore, "remove": remove}},
		{"a torn snapshot", filepath.Join(snapshots, "s", snapshotFile), plain, calls{"list": list, "restore": restore}},
		{"no root disk in the snapshot", filepath.Join(snapshots, "s", rootDisk), nothing, calls{"restore": restore}},
		{"no volume in the snapshot", filepath.Join(snapshots, "s", volumeDisk), nothing, calls{"restore": restore}},
		{"a folder for the restored disk", filepath.Join(dir, "restored-"+rootDisk, "x"), func(path string) error { return os.MkdirAll(path, 0o700) }, calls{"restore": restore}},
		{"a file for the next snapshot's folder", filepath.Join(snapshots, "t"), plain, calls{"snapshot": snapshot}},
		{"a disk image that is none", s.disk.Path, nothing, calls{"fork": fork, "start": start}},
	} {
		for name, call := range c.calls {
			aside := filepath.Join(p.dir, "aside")
			had := true
			if err := os.Rename(c.path, aside); errors.Is(err, fs.ErrNotExist) {
				had = false
			} else {
				must(t, err)
			}
			must(t, c.put(c.path))
			if err := call(); err == nil {
				t.Errorf("%s: %s succeeded", c.what, name)
			}
			must(t, os.RemoveAll(c.path))
			if had {
				must(t, os.Rename(aside, c.path))
			}
			if filepath.Base(c.path) == "x" {
				must(t, os.RemoveAll(filepath.Dir(c.path)))
			}
			if i, err := p.Inspect(ctx, "abc"); err != nil || i.State != providers.StateStopped {
				t.Fatalf("%s: after %s it is %+v, %v", c.what, name, i, err)
			}
			for _, left := range []string{p.instanceDir("def"), p.volumeDir("def"), filepath.Join(snapshots, ".new")} {
				if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %s left %s: %v", c.what, name, left, err)
				}
			}
		}
	}
	s.err = errors.New("the store is broken")
	for name, call := range (calls{"snapshot": snapshot, "restore": restore, "fork": fork, "start": start}) {
		if err := call(); !errors.Is(err, s.err) {
			t.Errorf("%s with a broken store: %v", name, err)
		}
	}
	s.err = nil
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, createErr := p.Create(ended, providers.Spec{Workspace: "def", Image: s.disk.Path})
	_, forkErr := p.Fork(ended, "abc", providers.Spec{Workspace: "def"})
	_, snapshotErr := p.Snapshot(ended, "abc", "t")
	for what, err := range map[string]error{"create": createErr, "fork": forkErr, "snapshot": snapshotErr} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s after the context's end: %v", what, err)
		}
	}
	must(t, destroy())
	if len(s.holds) != 0 {
		t.Errorf("held: %v", s.holds)
	}
}
