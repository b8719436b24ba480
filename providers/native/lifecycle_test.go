//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

func TestLife(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	spec := providers.Spec{Workspace: "w1", Name: "box", Generation: 7}
	i, err := r.Create(ctx, spec)
	if err != nil || i.State != providers.StateStopped || i.Generation != 7 || i.Name != "vendetta-w1" {
		t.Fatalf("%+v, %v", i, err)
	}
	spec.Generation = 8
	if i, err = r.Create(ctx, spec); err != nil || i.Generation != 7 {
		t.Errorf("a repeat changed it: %+v, %v", i, err)
	}
	if _, err := r.Usage(ctx, "w1"); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("usage of a stopped instance: %v", err)
	}
	for range 2 {
		if err := r.Start(ctx, "w1"); err != nil {
			t.Fatal(err)
		}
	}
	i, err = r.Inspect(ctx, "w1")
	if err != nil || i.State != providers.StateRunning || time.Since(i.StartedAt) > time.Minute {
		t.Errorf("%+v, %v", i, err)
	}
	r.want("w1", "echo kept > /workspace/f; echo kept > /root/f; echo gone > /run/f; cat /workspace/f", "kept")
	u, err := r.Usage(ctx, "w1")
	if err != nil || u.CPU < 0 || r.machine.root && u.CPU == 0 || u.MemoryBytes <= 0 || u.DiskBytes != -1 {
		t.Errorf("%+v, %v", u, err)
	}
	for range 2 {
		if err := r.Stop(ctx, "w1", patience); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.state("w1"); s != providers.StateStopped {
		t.Error(s)
	}
	delete(r.conns, "w1")
	if err := r.Start(ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	r.want("w1", "cat /workspace/f /root/f; test ! -e /run/f", "kept\nkept")
	delete(r.conns, "w1")
	for range 2 {
		if err := r.Destroy(ctx, "w1", false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Inspect(ctx, "w1"); !errors.Is(err, providers.ErrNotFound) {
		t.Error(err)
	}
	r.up(spec)
	r.want("w1", "cat /workspace/f; test ! -e /root/f", "kept")
	if err := r.Destroy(ctx, "w1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.volumeDir("w1")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := r.Destroy(ctx, "w1", true); err != nil {
		t.Error(err)
	}
}

// The agent may die and another one finds its guests.
func TestAdoption(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	r.want("w1", "echo $$ > /dev/null; export X=1; echo alive > /dev/shm/f", "")
	before, err := r.run("w1")
	if err != nil {
		t.Fatal(err)
	}
	r.renew()
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 || all[0].State != providers.StateRunning || !all[0].StartedAt.Equal(before.Started) {
		t.Fatalf("%+v, %v", all, err)
	}
	r.want("w1", "cat /dev/shm/f", "alive")
	if session, err := unix.Getsid(before.PID); err != nil || session != before.PID {
		t.Errorf("session %d, %v", session, err)
	}
	if err := r.Stop(t.Context(), "w1", patience); err != nil {
		t.Fatal(err)
	}
	if before.Alive() {
		t.Error("it still runs")
	}
}

// Another process with the guest's id is not the guest, and nothing is done to it.
func TestProcessIDsAreReused(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	last, err := r.run("w1")
	if err != nil {
		t.Fatal(err)
	}
	for what, forged := range map[string]host.Process{
		"id":     {PID: os.Getpid(), Start: last.Start, BootID: last.BootID},
		"reboot": {PID: last.PID, Start: last.Start, BootID: "another"},
		"absent": {PID: 1 << 22, Start: 1, BootID: last.BootID},
		"none":   {},
	} {
		run := last
		run.Process = forged
		run.Cgroups, run.Veth = nil, ""
		if err := host.Write(filepath.Join(r.instanceDir("w1"), runFile), run); err != nil {
			t.Fatal(err)
		}
		i, err := r.Inspect(t.Context(), "w1")
		if err != nil || i.State != providers.StateStopped {
			t.Errorf("%s: %+v, %v", what, i, err)
		}
		if what == "reboot" && i.Message != "the machine was restarted" {
			t.Error(i.Message)
		}
		if err := r.Stop(t.Context(), "w1", time.Second); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := forged.Signal(unix.SIGKILL); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !last.Alive() {
		t.Fatal("the guest was hit")
	}
	if err := host.Write(filepath.Join(r.instanceDir("w1"), runFile), last); err != nil {
		t.Fatal(err)
	}
}

func TestGuestEnds(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	last, err := r.run("w1")
	if err != nil {
		t.Fatal(err)
	}
	if err := last.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if gone, err := last.Gone(t.Context(), patience); !gone || err != nil {
		t.Fatal(gone, err)
	}
	i, err := r.Inspect(t.Context(), "w1")
	if err != nil || i.State != providers.StateStopped || i.Message != "the guest has ended" {
		t.Errorf("%+v, %v", i, err)
	}
	delete(r.conns, "w1")
	if err := r.Start(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	r.want("w1", "echo again", "again")
}

func TestStopKillsAfterGrace(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	r.want("w1", "ignore-term", "")
	r.want("w1", "sleep 1000 >/dev/null 2>&1 &", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Stop(ctx, "w1", time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled stop: %v", err)
	}
	if s := r.state("w1"); s != providers.StateRunning {
		t.Error(s)
	}
	if err := r.Stop(t.Context(), "w1", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if s := r.state("w1"); s != providers.StateStopped {
		t.Error(s)
	}
}

func TestUnknown(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	calls := map[string]func(ws string) error{
		"start":   func(ws string) error { return r.Start(ctx, ws) },
		"stop":    func(ws string) error { return r.Stop(ctx, ws, 0) },
		"inspect": func(ws string) error { _, err := r.Inspect(ctx, ws); return err },
		"connect": func(ws string) error { _, err := r.Connect(ctx, ws); return err },
		"usage":   func(ws string) error { _, err := r.Usage(ctx, ws); return err },
	}
	for name, call := range calls {
		if err := call("nobody"); !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		for _, id := range []string{"..", "a/b", "", "A", strings.Repeat("a", 33), "-x"} {
			if err := call(id); !errors.Is(err, providers.ErrInvalid) {
				t.Errorf("%s %q: %v", name, id, err)
			}
		}
	}
	if err := r.Destroy(ctx, "..", true); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	if all, err := r.List(ctx); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	r := newRig(t)
	for what, spec := range map[string]providers.Spec{
		"id":      {Workspace: "../x"},
		"image":   {Workspace: "w1", Image: "debian:12"},
		"network": {Workspace: "w1", Network: "bridge"},
		"limit":   {Workspace: "w1", Resources: providers.Resources{PIDs: -1}},
		"name":    {Workspace: "w1", Name: "a\n127.0.0.1 b"},
	} {
		_, err := r.Create(t.Context(), spec)
		var e *providers.Error
		if !errors.As(err, &e) || !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		if what == "image" && !strings.Contains(e.Next, "leave the image out") {
			t.Error(e.Next)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Create(ctx, providers.Spec{Workspace: "w1"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 0 {
		t.Error(entries, err)
	}
}

// A call that died in the middle left what List shows and Destroy removes.
func TestHalfMade(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), providers.Spec{Workspace: "w1"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.instanceDir("w1"), recordFile)
	rec, err := r.load("w1")
	if err != nil {
		t.Fatal(err)
	}
	rec.Ready = false
	if err := host.Write(path, rec); err != nil {
		t.Fatal(err)
	}
	if s := r.state("w1"); s != providers.StateBroken {
		t.Error(s)
	}
	if err := r.Start(t.Context(), "w1"); err == nil || errors.Is(err, providers.ErrNotFound) {
		t.Error(err)
	}
	if i, err := r.Create(t.Context(), providers.Spec{Workspace: "w1", Generation: 2}); err != nil || i.State != providers.StateStopped || i.Generation != 2 {
		t.Errorf("%+v, %v", i, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 || all[0].State != providers.StateBroken {
		t.Errorf("%+v, %v", all, err)
	}
	if err := r.Destroy(t.Context(), "w1", true); err != nil {
		t.Error(err)
	}
	if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestAnotherServersInstances(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	other := New(Options{ServerID: "s2", StateDir: r.dir})
	defer func() { _ = other.Close() }()
	if all, err := other.List(t.Context()); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	if err := other.Destroy(t.Context(), "w1", true); err != nil {
		t.Error(err)
	}
	if err := other.Start(t.Context(), "w1"); !errors.Is(err, providers.ErrNotFound) {
		t.Error(err)
	}
	r.want("w1", "echo here", "here")
}

func TestFailedStartLeavesItStopped(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if _, err := r.Create(ctx, providers.Spec{Workspace: "w1", Network: providers.NetworkNone}); err != nil {
		t.Fatal(err)
	}
	guest, init := r.guest, r.init
	for what, spoil := range map[string]func(){
		"no guest program":    func() { r.guest = "" },
		"absent guest":        func() { r.guest = filepath.Join(r.dir, "absent") },
		"guest is no program": func() { r.guest = "/etc/passwd" },
		"no init command":     func() { r.init = nil },
		"quiet init":          func() { r.init = []string{"/bin/cat"} },
		"absent init":         func() { r.init = []string{filepath.Join(r.dir, "absent")} },
		"init is no program":  func() { r.init = []string{"/etc/passwd"} },
		"init is another":     func() { r.init = []string{"/bin/false"} },
		"init talks nonsense": func() { r.init = []string{"/bin/sh", "-c", "echo nonsense >&4"} },
	} {
		spoil()
		if err := r.Start(ctx, "w1"); err == nil {
			t.Errorf("%s: started", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
		r.guest, r.init = guest, init
		if s := r.state("w1"); s != providers.StateStopped {
			t.Errorf("%s: %s", what, s)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.Start(cancelled, "w1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := r.Start(ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	r.want("w1", "echo well", "well")
}

// A full disk is told as such and leaves nothing half-made.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	r := newRig(t)
	disk := filepath.Join(r.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	for inodes := 2; inodes < 24; inodes++ {
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("nr_inodes=%d,size=64k", inodes)); err != nil {
			t.Fatal(err)
		}
		p := New(Options{ServerID: "s1", StateDir: filepath.Join(disk, "d"), GuestProgram: r.guest, InitCommand: r.init})
		_, err := p.Create(t.Context(), providers.Spec{Workspace: "w1"})
		if err != nil {
			if !errors.Is(err, providers.ErrExhausted) {
				t.Errorf("%d inodes: %v", inodes, err)
			}
			if all, err := p.List(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("%d inodes: %+v, %v", inodes, all, err)
			}
			if _, err := os.Lstat(p.volumeDir("w1")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%d inodes: the volume stays", inodes)
			}
		}
		if err := errors.Join(p.Close(), unix.Unmount(disk, 0)); err != nil {
			t.Fatal(err)
		}
	}
}
