//go:build linux

package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// smallDisk mounts a file system of 1 MiB. Only root can; an ordinary user's run
// leaves these tests to root's.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	dir := smallDisk(t)
	r := newRig(t, func(o *Options) { o.ProjectDir = dir })
	big := make([]byte, 2<<20)
	_, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "big", Data: big})
	wantCode(t, err, api.ResourceExhausted)
	if _, err := r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "small", Data: []byte("kept")}); err != nil {
		t.Fatal(err)
	}
	_, err = r.file.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "small", Data: big, Append: true})
	wantCode(t, err, api.ResourceExhausted)
	if r.text("small") != "kept" {
		t.Error("a part of an append was left")
	}
	_, err = r.send(&guestv1.ImportBegin{Path: "sub"}, pack(t, regular("one", string(big))))
	wantCode(t, err, api.ResourceExhausted)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left %v", left)
	}
	if sub, err := os.ReadDir(filepath.Join(dir, "sub")); err != nil || len(sub) != 0 {
		t.Errorf("left in the folder %v", sub)
	}
}

// Output that the disk refuses becomes a gap; the process goes on, and its end
// is known.
func TestSpoolDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	dir := smallDisk(t)
	r := newRig(t, func(o *Options) { o.StateDir = dir })
	got := r.sh("head -c 3000000 /dev/zero; exit 6")
	if got.ended.GetExitCode() != 6 || got.next != 3000000 || len(got.gaps) == 0 {
		t.Errorf("ended %v at %d, gaps %v", got.ended, got.next, got.gaps)
	}
	if err := os.Remove(string(reserveOf(filepath.Join(dir, "processes")))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if err := r.refused(&guestv1.StartRequest{ProcessId: strings.Repeat("x", 40), Argv: []string{"true"}}); err.Code != api.ResourceExhausted || err.Next == "" {
		t.Errorf("start on a full disk: %v", err)
	}
}

// On a full disk a command that removes files still starts, and with the room it
// made everything works as before.
func TestACommandMakesRoomOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	dir := smallDisk(t)
	r := newRig(t, func(o *Options) { o.StateDir = filepath.Join(dir, "state") })
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	for _, id := range []string{"first", "second"} {
		if got := r.exec(&guestv1.StartRequest{ProcessId: id, Argv: []string{"true"}}); got.ended.GetExitCode() != 0 {
			t.Fatalf("%s: %v", id, got.ended)
		}
	}
	if got := r.exec(&guestv1.StartRequest{ProcessId: "remove", Argv: []string{"rm", filler}}); got.ended.GetExitCode() != 0 {
		t.Fatalf("rm: %v", got.ended)
	}
	// What fills the disk can still say so.
	full := r.exec(&guestv1.StartRequest{ProcessId: "full", Argv: []string{"sh", "-c", "head -c 2000000 /dev/zero > " + filler + "; echo it is full"}})
	if out := string(full.out); !strings.HasSuffix(out, "it is full\n") {
		t.Errorf("a command on a full disk said %q", out)
	}
	r.exec(&guestv1.StartRequest{ProcessId: "remove-again", Argv: []string{"rm", filler}})
	r.exec(&guestv1.StartRequest{ProcessId: "after", Argv: []string{"true"}})
	if _, err := os.Stat(string(reserveOf(filepath.Join(dir, "state", "processes")))); err != nil {
		t.Errorf("the reserve was not taken again: %v", err)
	}
}
