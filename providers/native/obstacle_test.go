//go:build linux

package native

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// With something else in a path's place, every call that needs it fails, and with
// the old thing back the instance is what it was.
func TestObstacles(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	r.want("w1", "echo here > /workspace/f", "")
	_, err := r.Snapshot(ctx, "w1", "s")
	must(t, err)
	dir, volume, snapshots := r.instanceDir("w1"), r.volumeDir("w1"), r.snapshotsDir("w1")

	inspect := func() error { _, err := r.Inspect(ctx, "w1"); return err }
	pause := func() error { return r.Pause(ctx, "w1") }
	resize := func() error { _, err := r.Resize(ctx, "w1", providers.Resources{PIDs: 50}); return err }
	usage := func() error { _, err := r.Usage(ctx, "w1"); return err }
	snapshot := func() error { _, err := r.Snapshot(ctx, "w1", "t"); return err }
	list := func() error { _, err := r.Snapshots(ctx, "w1"); return err }
	remove := func() error { return r.discardSnapshots("w1") }
	restore := func() error { return r.Restore(ctx, "w1", "s") }
	stop := func() error { return r.Stop(ctx, "w1", 0) }
	destroy := func() error { return r.Destroy(ctx, "w1", true) }
	connect := func() error { _, err := r.Connect(ctx, "w1"); return err }
	fork := func() error { _, err := r.Fork(ctx, "w1", providers.Spec{Workspace: "w2"}); return err }

	folder := func(path string) error { return os.Mkdir(path, 0o700) }
	plain := func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }
	nothing := func(string) error { return nil }
	for _, c := range []struct {
		what, path string
		put        func(path string) error
		calls      map[string]func() error
	}{
		{"a torn record of the run", filepath.Join(dir, runFile), plain, map[string]func() error{
			"pause": pause, "usage": usage, "snapshot": snapshot, "restore": restore, "stop": stop, "connect": connect, "fork": fork,
		}},
		{"an unreadable record of the run", filepath.Join(dir, runFile), folder, map[string]func() error{"destroy": destroy}},
		{"a record of the run that cannot be written", filepath.Join(dir, runFile+".new"), folder, map[string]func() error{
			"pause": pause, "snapshot": snapshot, "fork": fork,
		}},
		{"a torn record", filepath.Join(dir, recordFile), plain, map[string]func() error{
			"inspect": inspect, "restore": restore, "fork": fork, "resize": resize,
		}},
		{"no volume", volume, nothing, map[string]func() error{"connect": connect, "fork": fork}},
		{"no state in the volume", filepath.Join(volume, "state"), nothing, map[string]func() error{"connect": connect, "fork": fork}},
		{"a file for the snapshots", snapshots, plain, map[string]func() error{
			"snapshot": snapshot, "list": list, "remove": remove, "restore": restore,
		}},
		{"no state in the snapshot", filepath.Join(snapshots, "s", "state"), nothing, map[string]func() error{"restore": restore}},
		{"no workspace in the snapshot", filepath.Join(snapshots, "s", "workspace"), nothing, map[string]func() error{"restore": restore}},
		{"a torn record of the fork", filepath.Join(filepath.Dir(dir), "w2"), func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), plain(filepath.Join(path, recordFile)))
		}, map[string]func() error{"fork": fork}},
		{"a file for the volumes", filepath.Dir(volume), plain, map[string]func() error{"fork": fork, "connect": connect}},
	} {
		for name, call := range c.calls {
			aside := filepath.Join(r.dir, "aside")
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
			if s := r.state("w1"); s != providers.StateRunning {
				t.Fatalf("%s: after %s it is %s", c.what, name, s)
			}
			for _, left := range []string{r.instanceDir("w2"), r.volumeDir("w2")} {
				if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %s left %s: %v", c.what, name, left, err)
				}
			}
		}
	}
	r.want("w1", "cat /workspace/f", "here")
	// With its console a folder, nothing is told.
	console := filepath.Join(dir, consoleFile)
	must(t, os.Rename(console, console+".aside"), os.Mkdir(console, 0o700))
	if said := r.Console(ctx, "w1"); said != "" {
		t.Errorf("a folder says %q", said)
	}
	must(t, os.Remove(console), os.Rename(console+".aside", console))
}

func TestEndedContexts(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for what, call := range map[string]func() error{
		"create": func() error { _, err := r.Create(ended, spec("w2")); return err },
		"fork":   func() error { _, err := r.Fork(ended, "w1", spec("w2")); return err },
		"stop":   func() error { return r.Stop(ended, "w1", patience) },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, r.Stop(t.Context(), "w1", 0))
	if _, err := r.Usage(t.Context(), "w1"); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("measured what does not run: %v", err)
	}
}

// A store of images that fails is told by each call that needs it.
func TestStoreFails(t *testing.T) {
	r := newRig(t)
	s := r.newShelf()
	ctx := t.Context()
	_, err := r.Create(ctx, providers.Spec{Workspace: "w1", Image: "bare", Network: providers.NetworkNone})
	must(t, err)
	_, err = r.Snapshot(ctx, "w1", "s")
	must(t, err)
	s.err = errors.New("the store is broken")
	for what, call := range map[string]func() error{
		"snapshot": func() error { _, err := r.Snapshot(ctx, "w1", "t"); return err },
		"restore":  func() error { return r.Restore(ctx, "w1", "s") },
		"fork":     func() error { _, err := r.Fork(ctx, "w1", providers.Spec{Workspace: "w2"}); return err },
		"start":    func() error { return r.Start(ctx, "w1") },
	} {
		if err := call(); !errors.Is(err, s.err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(s.holds) != 2 {
		t.Errorf("held: %v", s.holds)
	}
	s.err = nil
	must(t, r.Destroy(ctx, "w1", true))
}

// What is the image user's own is said by the image; nothing else is given away.
func TestGiveProjectFails(t *testing.T) {
	r := newRig(t)
	if !r.machine.root {
		return // there is one user
	}
	img := image.Image{Root: r.dir, User: "nobody-there"}
	v := volume{IDBase: uint32(os.Getuid())}
	if err := r.giveProject("w1", img, v); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	dir := r.parts("w1", true)[0].path
	must(t, os.MkdirAll(dir, 0o700))
	if err := r.giveProject("w1", img, v); err == nil {
		t.Error("gave it to nobody")
	}
	must(t, os.Chown(dir, 7, 7), r.giveProject("w1", img, v))
}
