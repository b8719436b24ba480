//go:build linux

package native

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/network"
)

// far is a machine of its own beyond this one: a network namespace that is joined
// to this one by a link and knows no way back to private networks.
func far(t *testing.T) (in func(func()), address string) {
	t.Helper()
	holder := exec.Command("sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	nl, err := network.Dial()
	if err != nil {
		t.Fatal(err)
	}
	link := "vt" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
		if err := nl.Remove(link); err != nil {
			t.Error(err)
		}
		nl.Close()
	})
	for _, err := range []error{nl.Veth(link, guestInterface, holder.Process.Pid), nl.Address(link, "198.51.100.1/30"), nl.Up(link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	in = func(do func()) {
		done := make(chan struct{})
		go func() { // its thread is thrown away
			defer close(done)
			runtime.LockOSThread()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Error(err)
				return
			}
			do()
		}()
		<-done
	}
	in(func() {
		nl, err := network.Dial()
		if err != nil {
			t.Error(err)
			return
		}
		defer nl.Close()
		for _, err := range []error{nl.Address("eth0", "198.51.100.2/30"), nl.Up("eth0"), nl.Up("lo")} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return in, "198.51.100.2"
}

// greet listens and tells each caller who it is.
func greet(t *testing.T, address string) net.Listener {
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			_, _ = conn.Write([]byte(host))
			_ = conn.Close()
		}
	}()
	return l
}

// wayOut goes on where private networks have one. An ordinary user has none; for
// root only a program may be missing, and where native was named that is a failure.
func wayOut(t *testing.T, m machine) {
	t.Helper()
	switch {
	case m.canNAT():
	case !m.root:
		t.Skip("private networks have a way out under a root agent only")
	default:
		testbed.Wants(t, Name)
		t.Fatal("iptables is missing: apt install iptables")
	}
}

func TestPrivateNetwork(t *testing.T) {
	r := newRig(t)
	wayOut(t, r.machine)
	in, address := far(t)
	var listener net.Listener
	in(func() { listener = greet(t, address+":0") })
	if listener == nil {
		t.FailNow()
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())

	r.up(providers.Spec{Workspace: "w1"})
	r.up(providers.Spec{Workspace: "w2"})
	// By the machine's address: the far side has no route to the pool.
	r.want("w1", "dial "+address+":"+port, "198.51.100.1")
	r.want("w2", "dial "+address+":"+port, "198.51.100.1")

	// They have addresses of their own and do not reach each other.
	one, _ := r.sh("w1", "cat /proc/net/fib_trie | grep -o '10\\.231\\.[0-9.]*' | sort -u | xargs")
	two, _ := r.sh("w2", "cat /proc/net/fib_trie | grep -o '10\\.231\\.[0-9.]*' | sort -u | xargs")
	if one == two || one == "" {
		t.Errorf("%q and %q", one, two)
	}
	v, err := r.run("w2")
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.InterfaceByName(v.Veth)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := other.Addrs()
	if err != nil || len(addrs) == 0 {
		t.Fatal(addrs, err)
	}
	peer := netip.MustParsePrefix(addrs[0].String()).Addr().Next()
	r.want("w2", "(python3 -m http.server 8000 >/dev/null 2>&1 &) ; true", "")
	if out, code := r.sh("w1", "dial "+peer.String()+":8000"); code == 0 || !strings.Contains(out, "timeout") {
		t.Errorf("w1 reached w2: %s", out)
	}

	// Rules stand while one instance does, and go with the last.
	count := func() int {
		filter, err := exec.Command(r.machine.iptables, "-S", "FORWARD").Output()
		if err != nil {
			t.Fatal(err)
		}
		nat, err := exec.Command(r.machine.iptables, "-t", "nat", "-S", "POSTROUTING").Output()
		if err != nil {
			t.Fatal(err)
		}
		mangle, err := exec.Command(r.machine.iptables, "-t", "mangle", "-S", "FORWARD").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(filter)+string(nat)+string(mangle), ruleComment)
	}
	if n := count(); n != 6 {
		t.Errorf("%d rules", n)
	}
	veths := func() (n int) {
		all, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			if i.Name == vethName("w1") || i.Name == vethName("w2") {
				n++
			}
		}
		return n
	}
	if err := r.Destroy(t.Context(), "w1", true); err != nil {
		t.Fatal(err)
	}
	if n := veths(); n != 1 {
		t.Errorf("%d links", n)
	}
	if n := count(); n != 6 {
		t.Errorf("%d rules", n)
	}
	if err := r.Destroy(t.Context(), "w2", true); err != nil {
		t.Fatal(err)
	}
	if n := veths(); n != 0 {
		t.Errorf("%d links stay", n)
	}
	release, err := host.Lock(networkLock) // other providers of this machine wait
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	others, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(others, func(i net.Interface) bool { return strings.HasPrefix(i.Name, vethPrefix) }) {
		if n := count(); n != 0 {
			t.Errorf("%d rules stay", n)
		}
	}
}

func TestConcurrentStarts(t *testing.T) {
	r := newRig(t)
	ids := []string{"a1", "a2", "a3", "a4"}
	done := make(chan error)
	for _, ws := range ids {
		go func() {
			_, err := r.Create(t.Context(), providers.Spec{Workspace: ws})
			if err == nil {
				err = r.Start(t.Context(), ws)
			}
			done <- err
		}()
	}
	for range ids {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	seen := map[string]string{}
	bases := map[uint32]string{}
	for _, ws := range ids {
		v, err := r.volume(ws)
		if err != nil {
			t.Fatal(err)
		}
		if before, twice := bases[v.IDBase]; twice && r.machine.root {
			t.Errorf("%s has the ids of %s", ws, before)
		}
		bases[v.IDBase] = ws
		if !r.machine.canNAT() {
			continue
		}
		iface, err := net.InterfaceByName(vethName(ws))
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := iface.Addrs()
		if err != nil || len(addrs) == 0 {
			t.Fatal(addrs, err)
		}
		if before, twice := seen[addrs[0].String()]; twice {
			t.Errorf("%s has the address of %s", ws, before)
		}
		seen[addrs[0].String()] = ws
	}
}

func TestFreeBlock(t *testing.T) {
	pool := netip.MustParsePrefix("10.231.0.0/29")
	taken := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("10.0.0.1/8")}
	first, err := freeBlock(pool, taken)
	if err != nil || first.String() != "10.231.0.0/30" {
		t.Fatal(first, err)
	}
	taken = append(taken, netip.MustParsePrefix("10.231.0.1/30"))
	second, err := freeBlock(pool, taken)
	if err != nil || second.String() != "10.231.0.4/30" {
		t.Fatal(second, err)
	}
	taken = append(taken, netip.MustParsePrefix("10.231.0.5/30"))
	if _, err := freeBlock(pool, taken); err == nil {
		t.Error("found a third of two")
	}
}

// In a network that nothing was done to yet.
func TestOpenWay(t *testing.T) {
	r := newRig(t)
	wayOut(t, r.machine)
	err := inNamespaces(t, func() error {
		// A new network takes the machine's setting over.
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
			return err
		}
		for range 2 {
			if _, err := r.way().Open(t.Context()); err != nil {
				return err
			}
		}
		raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err == nil && strings.TrimSpace(string(raw)) != "1" {
			err = errors.New("forwarding is off")
		}
		out, lerr := exec.Command(r.machine.iptables, "-S", "FORWARD").Output()
		rules := strings.Split(strings.TrimSpace(string(out)), "\n")
		if lerr != nil || len(rules) != 5 || !strings.HasSuffix(rules[1], "DROP") {
			err = errors.Join(err, lerr, errors.New(string(out)))
		}
		err = errors.Join(err, r.way().Close(t.Context()), r.way().Close(t.Context()))
		out, lerr = exec.Command(r.machine.iptables, "-S", "FORWARD").Output()
		if lerr != nil || strings.Contains(string(out), ruleComment) {
			err = errors.Join(err, lerr, errors.New(string(out)))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestFirewallFailures(t *testing.T) {
	r := newRig(t)
	r.machine.iptables = filepath.Join(r.dir, "iptables")
	for _, c := range []struct {
		script string
		fails  bool
	}{
		{"#!/bin/sh\nexit 1\n", true},
		{"#!/bin/sh\n[ \"$5\" = -C ] || grep -q -- -C || exit 3\nexit 0\n", false}, // last: all rules stand and cannot go
	} {
		if err := os.WriteFile(r.machine.iptables, []byte(c.script), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.machine.iptables+"-restore", []byte(c.script), 0o700); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() != 0 {
			continue // may not switch on forwarding
		}
		if _, err := r.way().Open(t.Context()); (err != nil) != c.fails {
			t.Errorf("%s: %v", c.script, err)
		}
	}
	if err := r.way().Close(t.Context()); err == nil {
		t.Error("a rule that cannot be deleted was")
	}
}
