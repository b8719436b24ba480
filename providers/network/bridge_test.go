//go:build linux

package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// apart runs a test in a network of its own, on a thread that ends with it. Only
// root can; an ordinary user's run leaves these tests to root's.
func apart(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		run(t)
	}()
	<-done
}

func TestBridge(t *testing.T) {
	apart(t, func(t *testing.T) {
		nl, err := Dial()
		if err != nil {
			t.Error(err)
			return
		}
		defer nl.Close()
		for _, want := range []bool{true, false} {
			if made, err := nl.Bridge("br0"); err != nil || made != want {
				t.Errorf("made a bridge: %v, %v", made, err)
			}
		}
		if err := nl.Port("p0", "q0", "br0", "of w1"); err != nil {
			t.Error(err)
		}
		want := func(has map[string]string) {
			t.Helper()
			links, err := Links()
			for name, alias := range has {
				if got, there := links[name]; err != nil || !there || got != alias {
					t.Errorf("%s is %q of %v, %v", name, got, links, err)
				}
			}
			if len(links) != len(has)+1 { // loopback
				t.Errorf("links %v", links)
			}
		}
		made := map[string]string{"br0": "", "p0": "of w1", "q0": ""}
		want(made)
		long := string(make([]byte, 300))
		for what, err := range map[string]error{
			"absent bridge": nl.Port("p1", "q1", "br1", ""),
			"taken name":    nl.Port("p0", "q1", "br0", ""),
			"no bridge":     nl.Port("p1", "q1", "lo", ""),
			"long alias":    nl.Port("p1", "q1", "br0", long),
			"isolate":       nl.isolate("absent0"),
			"not a port":    nl.isolate("lo"),
		} {
			if err == nil {
				t.Errorf("%s: succeeded", what)
			}
		}
		if _, err := nl.Bridge("a-name-that-is-too-long"); err == nil {
			t.Error("made a bridge with a long name")
		}
		if err := (&Netlink{fd: -1}).Up("br0"); !errors.Is(err, unix.EBADF) {
			t.Errorf("without a socket: %v", err)
		}
		want(made) // what failed left nothing
		// An answer that nobody waits for, such as one to a request given up.
		given := Netlink{fd: nl.fd, seq: 1 << 20}
		message := concat(make([]byte, unix.SizeofNlMsghdr), linkMessage(0, 0), nameAttribute("br0"))
		order.PutUint32(message, uint32(len(message)))
		order.PutUint16(message[4:], unix.RTM_NEWLINK)
		order.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
		if err := unix.Sendto(nl.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			t.Error(err)
		}
		if err := given.Remove("br0"); err != nil {
			t.Error(err)
		}
		delete(made, "br0")
		want(made)
	})
}

// Rules that stand and cannot be taken away are told.
func TestWayThatCannotBeClosed(t *testing.T) {
	dir := t.TempDir()
	w := Way{Program: filepath.Join(dir, "iptables"), Pool: netip.MustParsePrefix("10.99.0.0/16"), Comment: "test"}
	play := func(restore, iptables string) {
		t.Helper()
		for name, script := range map[string]string{"iptables-restore": restore, "iptables": iptables} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct{ what, restore, iptables string }{
		{"one by one", "exit 1", `case "$*" in *-C*) exit 0; esac; exit 1`},
		{"unseen", "exit 0", "exit 1"},
	} {
		play(c.restore, c.iptables)
		if err := w.Close(t.Context()); err == nil {
			t.Errorf("%s: closed", c.what)
		}
	}
	play("exit 1", "exit 1")
	if err := w.Close(t.Context()); err != nil {
		t.Errorf("where nothing stands: %v", err)
	}
}
