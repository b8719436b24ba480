//go:build linux

package tree

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	trash := NewTrash(filepath.Join(dir, "trash"), slog.New(slog.DiscardHandler))
	defer trash.Close()
	fresh, old := filepath.Join(dir, "fresh"), filepath.Join(dir, "old")
	put := func(path, content string) {
		t.Helper()
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "file"), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(content string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(old, "file")); err != nil || string(got) != content {
			t.Errorf("%q, %v; want %q", got, err, content)
		}
		if _, err := os.Lstat(fresh); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the fresh one: %v", err)
		}
	}
	put(fresh, "one")
	if err := trash.Replace(fresh, old); err != nil { // nothing
		t.Fatal(err)
	}
	want("one")
	put(fresh, "two")
	if err := errors.Join(Flush(fresh), trash.Replace(fresh, old)); err != nil {
		t.Fatal(err)
	}
	want("two")
	// Without a fresh one the old one stays.
	if err := trash.Replace(fresh, old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("replaced by nothing: %v", err)
	}
	want("two")
	if err := Flush(fresh); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("flushed nothing: %v", err)
	}
}
