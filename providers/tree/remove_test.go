//go:build linux

package tree

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveClosedTrees(t *testing.T) {
	dir := t.TempDir()
	top, outside := filepath.Join(dir, "tree"), filepath.Join(dir, "outside")
	must(t, os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "f"), nil, 0o600))
	at := top
	for i := range 3 * maxDepth {
		must(t, os.Mkdir(at, 0o700), os.Symlink(outside, filepath.Join(at, "out")))
		defer func(path string) { _ = os.Chmod(path, 0o700) }(at)
		if i%3 == 0 {
			must(t, unix.Mkfifo(filepath.Join(at, "pipe"), 0))
		}
		at = filepath.Join(at, "d")
	}
	for ; at != top; at = filepath.Dir(at) {
		must(t, os.Chmod(filepath.Dir(at), 0))
	}
	must(t, Remove(t.Context(), top), Remove(t.Context(), top))
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Error(left, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "f")); err != nil {
		t.Error(err)
	}
	for _, what := range []string{"link", "file", "empty"} {
		path := filepath.Join(dir, what)
		must(t, map[string]func() error{
			"link":  func() error { return os.Symlink(outside, path) },
			"file":  func() error { return os.WriteFile(path, nil, 0o400) },
			"empty": func() error { return os.Mkdir(path, 0) },
		}[what](), Remove(t.Context(), path))
	}
	must(t, Remove(t.Context(), filepath.Join(dir, "absent", "x")))
	if err := Remove(t.Context(), filepath.Join(outside, "f", "x")); err == nil {
		t.Error("removed below a file")
	}
}

func TestTrash(t *testing.T) {
	dir := t.TempDir()
	bin := NewTrash(filepath.Join(dir, "trash"), slog.New(slog.DiscardHandler))
	must(t, bin.Empty(t.Context())) // there is none
	must(t, bin.Discard(filepath.Join(dir, "absent")))
	for _, name := range []string{"a", "b"} {
		top := filepath.Join(dir, name)
		must(t, os.Mkdir(top, 0o755))
		deep(t, top, 3*maxDepth)
		must(t, bin.Discard(top))
		if _, err := os.Lstat(top); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	bin.Wait()
	if left, err := os.ReadDir(filepath.Join(dir, "trash")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	bin.Close()
	// What comes after the end waits for the next process.
	must(t, os.MkdirAll(filepath.Join(dir, "c/d"), 0o755), bin.Discard(filepath.Join(dir, "c")))
	bin.Close()
	if left, err := os.ReadDir(filepath.Join(dir, "trash")); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := bin.Empty(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	must(t, bin.Empty(t.Context()))
	if left, err := os.ReadDir(filepath.Join(dir, "trash")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// A trash that cannot be one is told to whoever throws into it, and in the log.
func TestTrashRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600), os.Mkdir(filepath.Join(dir, "a"), 0o755))
	var log strings.Builder
	bin := NewTrash(file, slog.New(slog.NewTextHandler(&log, nil)))
	if err := bin.Discard(filepath.Join(dir, "a")); err == nil {
		t.Error("threw into a file")
	}
	if err := bin.Empty(t.Context()); err == nil {
		t.Error("emptied a file")
	}
	bin.reap()
	if !strings.Contains(log.String(), "empty trash") {
		t.Errorf("logged %q", log.String())
	}
	bin.Close()
	below := NewTrash(filepath.Join(file, "x"), slog.New(slog.DiscardHandler))
	defer below.Close()
	if err := below.Discard(filepath.Join(dir, "a")); err == nil {
		t.Error("threw below a file")
	}
}

// On a full disk a folder may be too much; the tree goes all the same.
func TestTrashOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts are root's")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,nr_inodes=4"))
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/c"), nil, 0o600))
	bin := NewTrash(filepath.Join(dir, "trash"), slog.New(slog.DiscardHandler))
	defer bin.Close()
	must(t, bin.Discard(filepath.Join(dir, "a")))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// A tree in which something is mounted stays, and the call says so; the rest of it
// goes, and all of it when that is gone.
func TestRemoveMeetsAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		return // who cannot mount
	}
	for what, file := range map[string]bool{"a folder": false, "a file": true} {
		top := filepath.Join(t.TempDir(), "top")
		at := filepath.Join(top, "a", "b")
		must(t, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(filepath.Join(top, "c"), nil, 0o644))
		from := t.TempDir()
		if file {
			from = filepath.Join(from, "from")
			must(t, os.WriteFile(from, []byte("kept"), 0o644), os.WriteFile(at, nil, 0o644))
		} else {
			must(t, os.Mkdir(at, 0o755))
		}
		must(t, unix.Mount(from, at, "", unix.MS_BIND, ""))
		err := Remove(t.Context(), top)
		must(t, unix.Unmount(at, 0))
		if !errors.Is(err, unix.EBUSY) {
			t.Errorf("removed %s that is mounted: %v", what, err)
		}
		if _, err := os.Stat(filepath.Join(top, "c")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what lies beside %s stays: %v", what, err)
		}
		if _, err := os.Stat(from); err != nil {
			t.Error(err)
		}
		must(t, Remove(t.Context(), top))
	}
}

func TestRemoveEndsWithItsContext(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	must(t, os.MkdirAll(filepath.Join(top, "a"), 0o755))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Remove(ended, top); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	must(t, os.WriteFile(filepath.Join(top, "file"), nil, 0o644))
	if err := Remove(t.Context(), filepath.Join(top, "file", "x")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}
