package helper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

func TestNeedless(t *testing.T) {
	table := `22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw - proc proc rw
24 22 0:6 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 22 8:2 / /home rw - ext4 /dev/sda2 rw
26 25 8:3 / /home/a\040b rw - ext4 /dev/sda3 rw
27 22 8:4 / /var rw - ext4 /dev/sda4 rw
28 27 8:5 / /var/lib/other rw - ext4 /dev/sda5 rw
29 22 8:6 / /usr/share rw - ext4 /dev/sda6 rw
short
`
	want := []string{"/var/lib/other", "/home/a b", "/home"}
	if got := needless(table, []string{"/var/lib/vendetta/state"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := unescape(`a\134b\0x\04`); got != `a\b\0x\04` {
		t.Errorf("%q", got)
	}
}

func TestStageOf(t *testing.T) {
	if got := StageOf("/var/lib/vendetta"); got != "/mnt" {
		t.Errorf("%q", got)
	}
	if got := StageOf("/mnt/state"); got == "/mnt" {
		t.Errorf("%q", got)
	}
}

// aside runs f in a thread with a mount and a network namespace of its own, which
// is thrown away.
func aside(t *testing.T, f func() error) error {
	t.Helper()
	testbed.Wants(t, "lxc")
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "program"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	stage := filepath.Join(t.TempDir(), "stage")
	if err := os.Mkdir(stage, 0o700); err != nil {
		t.Fatal(err)
	}
	err := aside(t, func() error {
		open := func(path string) int {
			fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				t.Error(err)
			}
			return fd
		}
		r := Request{Stage: stage, Keep: []string{dir}, Mounts: []Mount{
			{Name: "folder", FD: open(dir)}, {Name: "../file", FD: open(filepath.Join(dir, "program")), File: true},
		}}
		if err := Prepare(r); err != nil {
			return err
		}
		for _, path := range []string{"folder/program", "file"} {
			// Paths of this thread, not of the process.
			raw, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/root%s/%s", stage, path))
			if err != nil || string(raw) != "text" {
				t.Errorf("%s: %q, %v", path, raw, err)
			}
		}
		if err := attach(stage, Mount{Name: "folder", FD: -1}); err == nil {
			t.Error("made a folder twice")
		}
		if err := attach(stage, Mount{Name: "other", FD: -1}); !errors.Is(err, unix.EBADF) {
			t.Errorf("attached nothing: %v", err)
		}
		r.Mounts = []Mount{{Name: "other", FD: -1}}
		if err := Prepare(r); !errors.Is(err, unix.EBADF) {
			t.Errorf("attached nothing: %v", err)
		}
		r.Stage = filepath.Join(stage, "absent")
		if err := Prepare(r); !errors.Is(err, unix.ENOENT) {
			t.Errorf("staged nowhere: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(stage); err != nil || len(left) != 0 {
		t.Errorf("on the machine itself: %v, %v", left, err)
	}
}

func TestFinish(t *testing.T) {
	err := aside(t, func() error {
		if err := Finish(Request{Pingers: [2]uint32{5, 9}}, unix.Gettid()); err != nil {
			return err
		}
		raw, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
		if err == nil && string(raw) != "5\t9\n" {
			err = fmt.Errorf("it is %q", raw)
		}
		if err := Finish(Request{Pingers: [2]uint32{^uint32(0), ^uint32(0)}}, unix.Gettid()); err == nil {
			t.Error("took a range that is none")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := Finish(Request{}, 1<<22+1); err == nil {
		t.Error("finished nobody")
	}
}
