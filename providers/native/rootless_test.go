//go:build linux

package native

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// someUser is nobody's id on any distribution.
const someUser = 61234

// TestAsOrdinaryUser runs the tests of this package once more without root.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the tests run as an ordinary user already")
	}
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "native.test")
	copyProgram(t, self, program)
	guest := filepath.Join(dir, "vendetta-guest")
	copyProgram(t, realGuest(t), guest)
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, someUser, someUser); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	args := []string{"-test.v", "-test.count=1"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, guestVariable + "=" + guest}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"TestIsolation", "TestLife", "TestAdoption", "TestContract", "TestContractWithImage"} {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not run:\n%s", name, out)
		}
	}
	left, err := os.ReadDir(home)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the home: %v (%v)", left, err)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// An agent with one id uses the same road whatever that id is.
func TestOneID(t *testing.T) {
	r := newRig(t)
	r.machine.root = false
	r.up(providers.Spec{Workspace: "w1"})
	r.want("w1", "id -u; echo x > /workspace/f; cat /proc/self/uid_map | tr -s ' ' | cut -d' ' -f4", "0\n1")
	r.refused("w1", "chown 1:1 /workspace/f")
	r.want("w1", "ls /proc/sys/net/ipv4/conf | xargs", "all default lo")
	r.want("w1", "cat /etc/shadow 2>/dev/null; ls -A /root /home | xargs", "/home: /root:")
	u, err := r.Usage(t.Context(), "w1")
	if err != nil || u.MemoryBytes <= 0 {
		t.Errorf("%+v, %v", u, err)
	}
	s := r.Probe(t.Context())
	if !s.Usable || slices.Contains(s.Capabilities, CapabilityUsers) || !strings.Contains(s.Reason, "no way out") {
		t.Errorf("%+v", s)
	}
	if err := r.Destroy(t.Context(), "w1", true); err != nil {
		t.Fatal(err)
	}
}
