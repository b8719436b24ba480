//go:build linux

package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	must(t, Write(path, limits))
	var got providers.Resources
	if err := Read(path, &got); err != nil || got != limits {
		t.Errorf("%+v, %v", got, err)
	}
	if err := Read(path, new(int)); !Spoilt(err) {
		t.Errorf("another kind: %v", err)
	}
	if err := Write(path, func() {}); err == nil {
		t.Error("wrote a function")
	}
	below := filepath.Join(path, "below")
	if err := Write(below, 1); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if err := Read(below, &got); err == nil || Spoilt(err) {
		t.Errorf("below a file: %v", err)
	}
	if _, err := Lock(below); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	folder := t.TempDir()
	if err := Write(folder, 1); err == nil {
		t.Error("replaced a folder")
	}
	if _, err := os.Stat(folder + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what failed is left: %v", err)
	}
	release, err := Lock(path)
	must(t, err)
	release()
}
