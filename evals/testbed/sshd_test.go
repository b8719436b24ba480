//go:build linux

package testbed

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// keyPair makes a key for logging in.
func keyPair(t *testing.T) (file, line string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "key")
	if err := run(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return file, strings.TrimSpace(string(data))
}

// openssh runs a command by the ssh program.
func openssh(t *testing.T, s *SSHD, key, command string) (string, error) {
	t.Helper()
	known := filepath.Join(t.TempDir(), "known_hosts")
	line := "[" + s.Host + "]:" + strconv.Itoa(s.Port) + " " + s.HostKey + "\n"
	if err := os.WriteFile(known, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "ssh", "-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
		"-o", "UserKnownHostsFile="+known, "-o", "ControlPath=none", "-p", strconv.Itoa(s.Port), s.User+"@"+s.Host, command)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSSHD(t *testing.T) {
	t.Parallel()
	key, line := keyPair(t)
	home := filepath.Join(t.TempDir(), "a home")
	s, err := StartSSHD(t.Context(), SSHDOptions{
		Dir: t.TempDir(), AuthorizedKeys: []string{line}, Environment: map[string]string{"HOME": home, "EXTRA": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if out, err := openssh(t, s, key, `printf %s "$HOME-$EXTRA"`); err != nil || out != home+"-1" {
		t.Fatalf("ssh = %q, %v\n%s", out, err, s.Log())
	}
	if !strings.HasPrefix(s.Fingerprint, "SHA256:") {
		t.Errorf("fingerprint %q", s.Fingerprint)
	}

	// Sessions end when they are told to, and the server goes on.
	ended := make(chan error, 1)
	marker := filepath.Join(t.TempDir(), "marker")
	go func() {
		_, err := openssh(t, s, key, "touch "+marker+"; exec sleep 1000")
		ended <- err
	}()
	waitFor(t, func() bool { _, err := os.Stat(marker); return err == nil })
	s.Disconnect()
	if err := <-ended; err == nil {
		t.Error("the session ended well")
	}
	if out, err := openssh(t, s, key, "echo on"); err != nil || out != "on\n" {
		t.Errorf("ssh = %q, %v", out, err)
	}

	// Stopped, nothing answers; started again it is the same host.
	s.Stop()
	s.Stop()
	if c, err := net.Dial("tcp", s.Addr); err == nil {
		_ = c.Close()
		t.Error("a stopped server answers")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := openssh(t, s, key, "echo back"); err != nil || out != "back\n" {
		t.Errorf("ssh = %q, %v", out, err)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not within 30 s")
		}
	}
}

func TestSSHDKeysElsewhere(t *testing.T) {
	t.Parallel()
	key, line := keyPair(t)
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := StartSSHD(t.Context(), SSHDOptions{Dir: t.TempDir(), AuthorizedKeysFile: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if out, err := openssh(t, s, key, "echo in"); err != nil || out != "in\n" {
		t.Errorf("ssh = %q, %v", out, err)
	}
}

func TestSSHDErrors(t *testing.T) {
	t.Parallel()
	if _, err := StartSSHD(t.Context(), SSHDOptions{Dir: filepath.Join(t.TempDir(), "absent")}); err == nil {
		t.Error("started without a folder")
	}
	if _, err := StartSSHD(t.Context(), SSHDOptions{Dir: t.TempDir(), Address: "192.0.2.1"}); err == nil {
		t.Error("started on another machine's address")
	}
	if _, err := StartSSHD(t.Context(), SSHDOptions{Dir: t.TempDir(), AuthorizedKeysFile: "/does/not/exist/x", AuthorizedKeys: []string{"x"}}); err == nil {
		t.Error("wrote keys into nothing")
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "host_ed25519"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartSSHD(t.Context(), SSHDOptions{Dir: damaged}); err == nil {
		t.Error("started without a public key")
	}
	if err := os.WriteFile(filepath.Join(damaged, "host_ed25519.pub"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartSSHD(t.Context(), SSHDOptions{Dir: damaged}); err == nil {
		t.Error("started with a damaged public key")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := StartSSHD(ctx, SSHDOptions{Dir: t.TempDir(), Config: []string{"NoSuchWord yes"}}); err == nil || !strings.Contains(err.Error(), "NoSuchWord") {
		t.Errorf("a bad config: %v", err)
	}
	if (&SSHD{options: SSHDOptions{Dir: "/does/not/exist"}}).Log() == "" {
		t.Error("an absent log says nothing")
	}
	if err := (&SSHD{options: SSHDOptions{Dir: "/does/not/exist"}}).Start(t.Context()); err == nil {
		t.Error("started without a folder")
	}
	gone := &SSHD{options: SSHDOptions{Dir: t.TempDir()}, program: "/does/not/exist"}
	if err := gone.Start(t.Context()); err == nil {
		t.Error("started nothing")
	}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ctx := t.Context()
	n := NewNetwork()
	t.Cleanup(func() {
		if err := n.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	add := func(name string) *Namespace {
		ns, err := n.Add(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	left, middle, right := add("left"), add("middle"), add("right")
	if _, err := n.Connect(ctx, left, "192.0.2.1/24", middle, "192.0.2.2/24"); err != nil {
		t.Fatal(err)
	}
	l, err := n.Connect(ctx, middle, "198.51.100.1/24", right, "198.51.100.2/24")
	if err != nil || l.AddressA != "198.51.100.1" || l.AddressB != "198.51.100.2" {
		t.Fatalf("connect = %+v, %v", l, err)
	}
	for _, step := range []error{
		middle.Forward(ctx), left.Route(ctx, "198.51.100.0/24", "192.0.2.2"), right.Route(ctx, "192.0.2.0/24", "198.51.100.1"),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	key, line := keyPair(t)
	s, err := StartSSHD(ctx, SSHDOptions{Dir: t.TempDir(), Namespace: right, Address: "198.51.100.2", AuthorizedKeys: []string{line}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	_ = key
	reach := func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		c, err := left.Dial(ctx, "tcp", s.Addr)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := reach(); err != nil {
		t.Fatal(err)
	}
	if err := l.Cut(ctx); err != nil {
		t.Fatal(err)
	}
	// The dialer's own deadline may pass a moment before the context's.
	if err := reach(); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("over a cut link: %v", err)
	}
	if err := l.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reach(); err != nil {
		t.Errorf("over a repaired link: %v", err)
	}
	if err := l.Repair(ctx); err == nil {
		t.Error("repaired what was whole")
	}
	var here *Namespace
	if c, err := here.Dial(ctx, "tcp", s.Addr); err == nil {
		_ = c.Close()
		t.Error("the namespaces are reached from outside")
	}
	if err := run(ctx, left.Argv("ip", "route", "get", "198.51.100.2")...); err != nil {
		t.Error(err)
	}
	if err := left.Do(func() error { return errors.New("mine") }); err == nil || err.Error() != "mine" {
		t.Errorf("do = %v", err)
	}

	if _, err := n.Add(ctx, "left"); err == nil {
		t.Error("made a namespace twice")
	}
	for _, bad := range [][2]string{{"junk", "junk"}, {"192.0.2.1/24", "192.0.2.2/24"}} {
		if _, err := n.Connect(ctx, left, bad[0], &Namespace{Name: "vt-absent"}, bad[1]); err == nil {
			t.Error("connected to nothing")
		}
	}
	if _, err := n.Connect(ctx, left, "junk", right, "junk"); err == nil {
		t.Error("an address that is none")
	}
	if err := (&Namespace{Name: "vt-absent"}).Do(func() error { return nil }); err == nil {
		t.Error("entered nothing")
	}
}
