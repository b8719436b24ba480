//go:build linux

package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStatus(t *testing.T) {
	s, err := parseStatus([]byte("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"))
	if err != nil || s.state != 'S' || s.start != 4242 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) S 1", "7 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20"} {
		if _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

func TestProcess(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("%+v, %v", self, err)
	}
	must(t, self.Signal(0))
	if parent, err := Parent(self.PID); err != nil || parent != os.Getppid() {
		t.Errorf("parent %d, %v", parent, err)
	}
	// Another process has its id by now: it is not signalled, and nobody waits.
	other := self
	other.Start++
	if gone, err := other.Gone(t.Context(), 0); !gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
	must(t, other.Signal(unix.SIGKILL))
	if gone, err := self.Gone(t.Context(), 0); gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if gone, err := self.Gone(ended, time.Minute); gone || !errors.Is(err, context.Canceled) {
		t.Errorf("gone %v, %v", gone, err)
	}
	// Ids end below 1<<22.
	absent := Process{PID: 1 << 30, BootID: BootID()}
	must(t, absent.Signal(unix.SIGKILL))
	if absent.Alive() {
		t.Error("nobody is alive")
	}
	if _, err := Parent(absent.PID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("parent of nobody: %v", err)
	}
	if err := self.Signal(1 << 20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a signal that is none: %v", err)
	}
}

// A child that ended is reaped by whoever asks for it.
func TestDeadChild(t *testing.T) {
	cmd := exec.Command("sleep", "3600")
	must(t, cmd.Start())
	child, err := Identify(cmd.Process.Pid)
	must(t, err)
	if !child.Alive() {
		t.Error("a child that sleeps is not alive")
	}
	must(t, child.Signal(unix.SIGKILL))
	if gone, err := child.Gone(t.Context(), time.Minute); !gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
	if _, err := unix.Wait4(child.PID, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("not reaped: %v", err)
	}
}
