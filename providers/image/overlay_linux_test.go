package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	shift = 500_000
	count = 65536
)

// attach mounts an overlay on a folder of the test's.
func attach(t *testing.T, fd int) string {
	t.Helper()
	at := t.TempDir()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// as runs do on a thread with another user's file system ids.
func as(t *testing.T, id int, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread ends with its ids: it is never unlocked.
		runtime.LockOSThread()
		_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(id), 0, 0)
		_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(id), 0, 0)
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for name, byDescriptor := range map[string]bool{"descriptors": true, "paths": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := OverlayOptions{
				Lower:   filepath.Join(dir, "lo:wer"),
				Between: []string{filepath.Join(dir, "snap:two"), filepath.Join(dir, "snap1")},
				IDBase:  shift, IDCount: count,
				Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
			}
			put(t, filepath.Join(o.Lower, "etc/passwd"), "root")
			put(t, filepath.Join(o.Lower, "etc/shadow"), "secret")
			put(t, filepath.Join(o.Lower, "home/dev/file"), "dev's")
			if err := os.Lchown(filepath.Join(o.Lower, "home/dev/file"), 1000, 1000); err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Join(o.Between[1], "layer"), "one")
			put(t, filepath.Join(o.Between[0], "layer"), "two")
			for _, path := range []string{o.Upper, o.Work} {
				if err := os.Mkdir(path, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(path, shift, shift); err != nil {
					t.Fatal(err)
				}
			}
			fd, err := o.mount(byDescriptor)
			if err != nil {
				t.Fatal(err)
			}
			at := attach(t, fd)
			if got := owner(t, filepath.Join(at, "etc/passwd")); got != shift {
				t.Errorf("a file of root belongs to %d, want %d", got, shift)
			}
			if got := owner(t, filepath.Join(at, "home/dev/file")); got != shift+1000 {
				t.Errorf("a file of 1000 belongs to %d, want %d", got, shift+1000)
			}
			if got, err := os.ReadFile(filepath.Join(at, "layer")); string(got) != "two" {
				t.Errorf("the topmost layer is %q, %v", got, err)
			}
			inside, err := os.OpenRoot(at) // what leads there is closed to others
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = inside.Close() }()
			as(t, shift, func() error {
				return errors.Join(
					inside.WriteFile("etc/passwd", []byte("changed"), 0o644),
					inside.WriteFile("etc/new", []byte("new"), 0o644),
					inside.Remove("etc/shadow"),
				)
			})
			for _, name := range []string{"etc/passwd", "etc/new"} {
				if got := owner(t, filepath.Join(o.Upper, name)); got != shift {
					t.Errorf("%s in the upper layer belongs to %d, want %d", name, got, shift)
				}
			}
			if got, err := os.ReadFile(filepath.Join(o.Lower, "etc/passwd")); string(got) != "root" {
				t.Errorf("the base was changed: %q, %v", got, err)
			}
			if got := owner(t, filepath.Join(o.Lower, "etc/passwd")); got != 0 {
				t.Errorf("the base's owner was changed to %d", got)
			}
			if _, err := os.Stat(filepath.Join(at, "etc/shadow")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a removed file is there: %v", err)
			}
			if _, err := os.Stat(filepath.Join(o.Lower, "etc/shadow")); err != nil {
				t.Error(err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(o.Upper, "etc/shadow"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
				t.Errorf("no whiteout: mode %o, %v", st.Mode, err)
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil || strings.Contains(string(mounts), " "+dir+"/base.") {
				t.Errorf("the base stayed mounted: %v", err)
			}
			if left, err := filepath.Glob(filepath.Join(dir, "base.*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestOverlayWithoutShift(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	o := OverlayOptions{Lower: filepath.Join(dir, "lower"), Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	put(t, filepath.Join(o.Lower, "file"), "base")
	if _, err := Overlay(o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without an upper layer: %v", err)
	}
	for _, path := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := Overlay(o)
	if err != nil {
		t.Fatal(err)
	}
	at := attach(t, fd)
	if got := owner(t, filepath.Join(at, "file")); got != 0 {
		t.Errorf("owner %d, want 0", got)
	}
	o.Lower = filepath.Join(dir, "missing")
	if _, err := Overlay(o); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), o.Lower) {
		t.Errorf("without a base: %v", err)
	}
}

func TestIdmapped(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := Idmapped(filepath.Join(dir, "not", "made", "yet"), shift, count); err != nil {
		t.Error(err)
	}
	if err := Idmapped("/proc", shift, count); err == nil {
		t.Error("/proc shows its files under other ids")
	}
}
