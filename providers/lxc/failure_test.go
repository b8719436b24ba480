//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/network"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

// stopped fails when anything runs of a workspace, or is left of a start.
func (r *rig) stopped(ws, what string) {
	r.t.Helper()
	if i := r.inspect(ws); i.State != providers.StateStopped {
		r.t.Errorf("%s: %+v", what, i)
	}
	for _, left := range leftovers(r.dir)(r.t, ws) {
		if !strings.HasPrefix(left, r.dir) && !strings.HasPrefix(left, "/run/lxc/") {
			r.t.Errorf("%s left %s", what, left)
		}
	}
	if members, err := r.machine.members(ws); err != nil || len(members) > 0 {
		r.t.Errorf("%s: %v run, %v", what, members, err)
	}
}

// The helper is missing, cannot be run, says nonsense, dies before, in and after
// its work: each is an error that names it, and leaves the instance stopped.
func TestHelperFails(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	good := r.helper
	bad := filepath.Join(r.dir, "helper")
	for what, c := range map[string]struct {
		script string
		mode   fs.FileMode
		kind   error
		want   string
	}{
		"not executable": {"", 0o600, providers.ErrUnusable, "permission denied"},
		"no program":     {"\x00", 0o700, providers.ErrUnusable, "exec format error"},
		"no liblxc": {
			"#!/bin/sh\necho 'vendetta-lxc: error while loading shared libraries: liblxc.so.1: cannot open shared object file' >&2; exit 127\n",
			0o700, providers.ErrUnusable, "liblxc.so.1",
		},
		"garbage":      {"#!/bin/sh\ncat >/dev/null; echo garbage\n", 0o700, nil, "makes no sense"},
		"nothing":      {"#!/bin/sh\ncat >/dev/null\n", 0o700, nil, "makes no sense"},
		"no process":   {"#!/bin/sh\ncat >/dev/null; echo '{}'\n", 0o700, nil, "ended at once"},
		"dead process": {"#!/bin/sh\ncat >/dev/null; echo '{\"PID\": 4194305}'\n", 0o700, nil, "ended at once"},
		"panic":        {"#!/bin/sh\ncat >/dev/null; echo 'panic: oh' >&2; exit 2\n", 0o700, nil, "crashed (exit status 2): panic: oh"},
		"killed":       {"#!/bin/sh\nkill -9 $$\n", 0o700, nil, "crashed: signal: killed"},
		"too long":     {"#!/bin/sh\ncat >/dev/null; head -c 5000000 /dev/zero\n", 0o700, nil, "makes no sense"},
		// It did its work, and nobody learns of it.
		"killed after": {"#!/bin/sh\n" + good + " >/dev/null\nkill -9 $$\n", 0o700, nil, "crashed: signal: killed"},
		"refused":      {"#!/bin/sh\ncat >/dev/null; echo '{\"Error\": \"start: oh\"}'; exit 1\n", 0o700, nil, "vendetta-lxc: start: oh"},
	} {
		if err := errors.Join(os.RemoveAll(bad), os.WriteFile(bad, []byte(c.script), c.mode)); err != nil {
			t.Fatal(err)
		}
		r.helper = bad
		err := r.Start(t.Context(), w1)
		var own *providers.Error
		if !errors.As(err, &own) || !strings.Contains(err.Error(), c.want) || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", what, err)
		}
		r.stopped(w1, what)
		if c.kind == nil {
			continue
		}
		if s := r.Probe(t.Context()); s.Usable || !strings.Contains(s.Reason, c.want) || s.Fix == "" {
			t.Errorf("%s: %+v", what, s)
		}
	}
	for what, path := range map[string]string{"absent": filepath.Join(r.dir, "absent"), "none": ""} {
		r.helper = path
		if err := r.Start(t.Context(), w1); !errors.Is(err, providers.ErrUnusable) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := r.Create(t.Context(), spec(w2)); !errors.Is(err, providers.ErrUnusable) {
			t.Errorf("%s: %v", what, err)
		}
		if s := r.Probe(t.Context()); s.Usable || s.Fix == "" {
			t.Errorf("%s: %+v", what, s)
		}
	}
	r.helper = good
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	r.want(w1, "echo up", "up")
	// A workspace is halted, and let go on, without the helper where that fails.
	r.helper = bad
	if err := os.WriteFile(bad, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Pause(t.Context(), w1); err != nil {
			t.Fatal(err)
		}
		if i := r.inspect(w1); i.State != providers.StatePaused {
			t.Errorf("%+v", i)
		}
	}
	if err := r.Start(t.Context(), w1); err != nil {
		t.Error(err)
	}
	r.want(w1, "echo up", "up")
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Error(err)
	}
	r.stopped(w1, "stop")
}

// An agent that died in the middle of a start left a container that no record
// names; so may a loss of power. The next start ends it, and so does Destroy.
func TestInterruptedStart(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	last, err := r.run(w1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.instanceDir(w1), runFile)
	begun := last
	begun.Process = host.Process{}
	if err := host.Write(path, begun); err != nil {
		t.Fatal(err)
	}
	if i := r.inspect(w1); i.State != providers.StateStopped || i.Message != "its last start was interrupted" {
		t.Errorf("%+v", i)
	}
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	if last.Alive() {
		t.Error("the first container runs on")
	}
	now, err := r.run(w1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := r.Destroy(t.Context(), w1, true); err != nil {
		t.Fatal(err)
	}
	if now.Alive() {
		t.Error("the second container runs on")
	}
	// Without the record nobody knows of its link, but the next who wants the name.
	nl, err := network.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := nl.Remove(vethName(w1)); err != nil {
		t.Fatal(err)
	}
}

func TestCancelledStart(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	slow := filepath.Join(r.dir, "slow")
	begun := filepath.Join(r.dir, "begun")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\ntouch "+begun+"\nexec sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	good := r.helper
	r.helper = slow
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Start(ctx, w1) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		if _, err := os.Stat(begun); err == nil || time.Now().After(deadline) {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.helper = good
	r.stopped(w1, "cancelled")
	if _, err := r.Create(ctx, spec(w2)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := r.Resize(ctx, w1, providers.Resources{PIDs: 5}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Where the kernel or the file system cannot show an image under other ids.
func TestNoIdmappedMounts(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	r.overlay = func(image.OverlayOptions) (int, error) { return -1, fmt.Errorf("shift ids: %w", unix.EINVAL) }
	err := r.Start(t.Context(), w1)
	var own *providers.Error
	if !errors.Is(err, providers.ErrUnusable) || !errors.As(err, &own) || !strings.Contains(own.Next, "--privileged") {
		t.Errorf("%v", err)
	}
	r.stopped(w1, "no idmapped mounts")
	r.overlay = func(image.OverlayOptions) (int, error) { return -1, unix.ENOSPC }
	if err := r.Start(t.Context(), w1); !errors.Is(err, providers.ErrExhausted) {
		t.Errorf("%v", err)
	}
	if err := refusedOverlay(w1, true, unix.EINVAL); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
}

func TestNamedBridge(t *testing.T) {
	r := newRig(t)
	bridge := fmt.Sprintf("vt%d", os.Getpid()%100000)
	r.bridge, r.subnet = bridge, netip.Prefix{}
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	missing := func(want string) {
		t.Helper()
		err := r.Start(t.Context(), w1)
		var own *providers.Error
		if !errors.Is(err, providers.ErrUnusable) || !errors.As(err, &own) || !strings.Contains(own.Next, want) {
			t.Errorf("%v", err)
		}
		r.stopped(w1, "no bridge")
		if s := r.Probe(t.Context()); !s.Usable || !strings.Contains(s.Reason, bridge) {
			t.Errorf("%+v", s)
		}
	}
	missing("ip link add " + bridge)
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	ip("link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { ip("link", "del", bridge) })
	missing("ip addr add")
	ip("addr", "add", "198.18.7.1/24", "dev", bridge)
	ip("link", "set", bridge, "up")
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	r.want(w1, "ip -o -4 addr show dev eth0 | grep -c ' 198.18.7.[0-9]*/24 '", "1")
	r.want(w1, "ip route | grep -c 'default via 198.18.7.1'", "1")
	// Out of a part of it that is the provider's alone.
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Fatal(err)
	}
	r.subnet = netip.MustParsePrefix("198.18.7.128/30")
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	delete(r.conns, w1)
	r.want(w1, "ip -o -4 addr show dev eth0 | grep -c ' 198.18.7.1[23][0-9]/24 '", "1")
	r.subnet = netip.MustParsePrefix("203.0.113.0/24")
	if _, err := r.neighbours(); !errors.Is(err, providers.ErrUnusable) {
		t.Error(err)
	}
	r.clean(w1)
	if _, err := os.Stat("/sys/class/net/" + bridge); err != nil {
		t.Errorf("somebody's bridge was taken away: %v", err)
	}
}

func TestFreeAddress(t *testing.T) {
	n := neighbours{pool: netip.MustParsePrefix("10.0.0.0/29"), bits: 29, gateway: netip.MustParseAddr("10.0.0.1")}
	links := map[string]string{"eth0": alias(netip.MustParseAddr("10.0.0.2"))} // not ours
	seen := map[string]bool{}
	for i := range 5 {
		a, err := n.free(w1, links)
		if err != nil {
			t.Fatal(err)
		}
		if seen[a.String()] || a == n.gateway || a.String() == "10.0.0.0" || a.String() == "10.0.0.7" {
			t.Errorf("%v after %v", a, seen)
		}
		seen[a.String()] = true
		links[fmt.Sprintf("%s%d", vethPrefix, i)] = alias(a)
	}
	if a, err := n.free(w1, links); !errors.Is(err, providers.ErrExhausted) {
		t.Errorf("%v, %v", a, err)
	}
}

func TestNoIPTables(t *testing.T) {
	r := newRig(t)
	r.machine.iptables = ""
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), w1); !errors.Is(err, providers.ErrUnusable) {
		t.Error(err)
	}
	r.stopped(w1, "no iptables")
	if s := r.Probe(t.Context()); !s.Usable || !strings.Contains(s.Reason, "iptables") {
		t.Errorf("%+v", s)
	}
}

// What Probe and Create say of machines that cannot.
func TestUnusable(t *testing.T) {
	for what, change := range map[string]func(*Provider){
		"user":      func(p *Provider) { p.machine.root = false },
		"namespace": func(p *Provider) { p.machine.root, p.machine.mapped = true, false },
		"guest":     func(p *Provider) { p.machine.root, p.machine.mapped = true, true },
		"seccomp": func(p *Provider) {
			p.machine.root, p.machine.mapped = true, true
			p.guest, p.helper, p.machine.seccomp = os.Args[0], os.Args[0], "/absent"
		},
	} {
		p := quiet(t, "")
		change(p)
		s := p.Probe(t.Context())
		if s.Usable || s.Reason == "" || s.Fix == "" {
			t.Errorf("%s: %+v", what, s)
		}
		if _, err := p.Create(t.Context(), spec(w1)); !errors.Is(err, providers.ErrUnusable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestNoLimits(t *testing.T) {
	p := quiet(t, "")
	have, missing := p.capabilities(groups{})
	if len(missing) < 4 || len(have) == 0 {
		t.Errorf("%q, %q", have, missing)
	}
}

func TestBadSpecs(t *testing.T) {
	p := quiet(t, "")
	for what, s := range map[string]providers.Spec{
		"id":       {Workspace: "../x"},
		"name":     {Workspace: w1, Name: "a\nlxc.hook.pre-start = /bin/sh"},
		"host":     {Workspace: w1, Network: providers.NetworkHost},
		"network":  {Workspace: w1, Network: "moon"},
		"disk":     {Workspace: w1, Image: "https://example.com/x.qcow2"},
		"checksum": {Workspace: w1, Checksum: "sha256:0"},
		"cpus":     {Workspace: w1, Resources: providers.Resources{CPUs: 1e6}},
		"negative": {Workspace: w1, Resources: providers.Resources{PIDs: -1}},
		"little":   {Workspace: w1, Resources: providers.Resources{MemoryBytes: 5}},
		"much":     {Workspace: w1, Resources: providers.Resources{MemoryBytes: 1 << 60}},
	} {
		if _, err := p.Create(t.Context(), s); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := p.Fork(t.Context(), w2, s); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := p.Create(t.Context(), providers.Spec{Workspace: w1, Resources: providers.Resources{DiskBytes: 1}}); !errors.Is(err, providers.ErrUnsupported) || !strings.Contains(err.Error(), "disk") {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"stop":    p.Stop(t.Context(), "/", 0),
		"destroy": p.Destroy(t.Context(), "/", true),
		"start":   p.Start(t.Context(), "/"),
		"restore": p.Restore(t.Context(), "/", "x"),
		"remove":  p.RemoveSnapshot(t.Context(), w1, "../x"),
	} {
		if !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := p.Inspect(t.Context(), "/"); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	if _, err := p.Snapshots(t.Context(), "/"); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	put(t, path, "first\nsecond\x1b[0m \xff\nthird\n")
	if got := tail(path, 18); got != "third\n" && !strings.HasSuffix(got, "?\nthird\n") {
		t.Errorf("%q", got)
	}
	if got := tail(path, 1000); got != "first\nsecond[0m ?\nthird\n" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "absent")} {
		if got := tail(bad, 10); got != "" {
			t.Errorf("%q", got)
		}
	}
}

// Records that make no sense, and stores that fail.
func TestSpoiltRecords(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(r.instanceDir(w1), runFile), "{")
	if i := r.inspect(w1); i.State != providers.StateBroken {
		t.Errorf("%+v", i)
	}
	for what, err := range map[string]error{
		"start": r.Start(t.Context(), w1), "stop": r.Stop(t.Context(), w1, 0), "pause": r.Pause(t.Context(), w1),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := r.Snapshot(t.Context(), w1, "one"); err == nil {
		t.Error("kept a snapshot of it")
	}
	if _, err := r.Resize(t.Context(), w1, providers.Resources{PIDs: 5}); err == nil {
		t.Error("resized it")
	}
	if err := os.Remove(filepath.Join(r.instanceDir(w1), runFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Snapshot(t.Context(), w1, "one"); err != nil {
		t.Fatal(err)
	}
	r.store.fail = errors.New("the store is broken")
	for what, err := range map[string]error{
		"start":   r.Start(t.Context(), w1),
		"restore": r.Restore(t.Context(), w1, "one"),
	} {
		if err == nil || !strings.Contains(err.Error(), "the store is broken") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := r.Snapshot(t.Context(), w1, "two"); err == nil {
		t.Error("kept a snapshot without its image")
	}
	if _, err := r.Fork(t.Context(), w1, spec(w2)); err == nil {
		t.Error("forked without the image")
	}
	r.store.fail = nil
	put(t, filepath.Join(r.instanceDir(w1), recordFile), "{")
	if _, err := r.Create(t.Context(), spec(w1)); err == nil {
		t.Error("created over a record that makes no sense")
	}
	if _, err := r.Inspect(t.Context(), w1); err == nil {
		t.Error("understood it")
	}
	if all, err := r.List(t.Context()); err != nil || len(all) != 1 || all[0].State != providers.StateBroken {
		t.Errorf("%+v, %v", all, err)
	}
	if err := r.Stop(t.Context(), w1, 0); err == nil {
		t.Error("stopped it")
	}
	if err := r.Destroy(t.Context(), w1, true); err != nil {
		t.Error(err)
	}
}

// A restore that was interrupted says so, and a repeat mends it.
func TestInterruptedRestore(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	r.want(w1, "echo one > /root/file; echo one > /workspace/file", "")
	if _, err := r.Snapshot(t.Context(), w1, "one"); err != nil {
		t.Fatal(err)
	}
	rec, err := r.load(w1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Fatal(err)
	}
	rec.Broken = "a restore was interrupted"
	if err := host.Write(filepath.Join(r.instanceDir(w1), recordFile), rec); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.volumeDir(w1), "workspace")); err != nil {
		t.Fatal(err)
	}
	if i := r.inspect(w1); i.State != providers.StateBroken || i.Message != rec.Broken {
		t.Errorf("%+v", i)
	}
	if err := r.Start(t.Context(), w1); err == nil {
		t.Error("started half of it")
	}
	if err := r.Restore(t.Context(), w1, "one"); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	delete(r.conns, w1)
	r.want(w1, "cat /root/file /workspace/file", "one\none")
	// What is no snapshot, and what is half of one.
	half := r.snapshotDir(w1, "half")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Restore(t.Context(), w1, "half"); !errors.Is(err, providers.ErrNotFound) {
		t.Error(err)
	}
	put(t, filepath.Join(half, keptFile), "{")
	if err := r.Restore(t.Context(), w1, "half"); err == nil {
		t.Error("restored nonsense")
	}
	if all, err := r.Snapshots(t.Context(), w1); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	put(t, filepath.Join(half, keptFile), "{}")
	if err := r.Restore(t.Context(), w1, "half"); err == nil {
		t.Error("restored nothing")
	}
	r.want(w1, "cat /root/file", "one")
}

func TestIDsRunOut(t *testing.T) {
	r := newRig(t)
	r.machine.ids.Slots = 1
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), spec(w2)); !errors.Is(err, providers.ErrExhausted) {
		t.Error(err)
	}
	r.machine.ids.Base += 1 << 20 // as if the entry of /etc/subuid had changed
	if i := r.inspect(w1); i.State != providers.StateBroken {
		t.Errorf("%+v", i)
	}
	if err := r.Start(t.Context(), w1); err == nil {
		t.Error("started with ids that are not ours")
	}
}

// A guest that cannot be run: the error says what liblxc said.
func TestGuestThatIsNone(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	good := r.guest
	r.guest = filepath.Join(r.dir, "guest")
	put(t, r.guest, "no program")
	err := r.Start(t.Context(), w1)
	if err == nil || !strings.Contains(err.Error(), "exec") {
		t.Errorf("%v", err)
	}
	r.stopped(w1, "no guest")
	// One that ends at once is an end, and says on its terminal why.
	put(t, r.guest, "#!/bin/sh\necho out of order\n")
	if err := os.Chmod(r.guest, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), w1); err == nil {
		last, err := r.run(w1)
		if err != nil {
			t.Fatal(err)
		}
		if gone, err := last.Gone(t.Context(), patience); !gone || err != nil {
			t.Fatal(gone, err)
		}
		if _, err := last.Monitor.Gone(t.Context(), patience); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.Console(t.Context(), w1); got != "out of order" {
		t.Errorf("console %q", got)
	}
	if _, err := r.Connect(t.Context(), w1); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("%v", err)
	}
	r.guest = good
	if err := r.Start(t.Context(), w1); err != nil {
		t.Error(err)
	}
}

// Files in the place of folders: every call says so, and none goes on.
func TestBadStateFolder(t *testing.T) {
	ctx := t.Context()
	for _, taken := range []string{"", "lock", "instances", "volumes", "volumes/" + w1} {
		r := newRig(t)
		path := filepath.Join(r.dir, "s", taken)
		switch taken {
		case "": // the state folder itself
			put(t, path, "")
		case "lock":
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
		default:
			put(t, path, "")
		}
		if _, err := r.Create(ctx, spec(w1)); err == nil && taken != "volumes/"+w1 {
			t.Errorf("%s: created", taken)
		}
		if err := errors.Join(r.Start(ctx, w1), r.Pause(ctx, w1)); err == nil {
			t.Errorf("%s: paused", taken)
		}
		if err := os.RemoveAll(filepath.Join(r.dir, "s")); err != nil {
			t.Fatal(err)
		}
		r.store.holds = map[string]bool{}
	}
}

// A firewall that refuses leaves no link and no bridge behind.
func TestFirewallRefuses(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	r.machine.iptables = "/bin/false"
	if err := r.Start(t.Context(), w1); err == nil {
		t.Error("started without rules")
	}
	r.stopped(w1, "no rules")
}

// Folders that an instance cannot do without are missing.
func TestMissingParts(t *testing.T) {
	r := newRig(t)
	if _, err := r.Create(t.Context(), spec(w1)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		filepath.Join(r.instanceDir(w1), "upper"), filepath.Join(r.volumeDir(w1), "workspace"),
	} {
		away := part + ".away"
		if err := os.Rename(part, away); err != nil {
			t.Fatal(err)
		}
		if err := r.Start(t.Context(), w1); err == nil {
			t.Errorf("started without %s", part)
		}
		r.stopped(w1, part)
		if _, err := r.Snapshot(t.Context(), w1, "one"); err == nil {
			t.Errorf("kept a snapshot without %s", part)
		}
		if _, err := r.Fork(t.Context(), w1, spec(w2)); err == nil {
			t.Errorf("forked without %s", part)
		}
		if err := os.Rename(away, part); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{configFile, filterFile, runFile + ".new"} {
		path := filepath.Join(r.instanceDir(w1), file)
		if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := r.Start(t.Context(), w1); err == nil {
			t.Errorf("started with a folder at %s", file)
		}
		r.stopped(w1, file)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if all, err := r.Snapshots(t.Context(), w1); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := r.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	// Half-made: only Destroy helps, or another Create.
	rec, err := r.load(w1)
	if err != nil {
		t.Fatal(err)
	}
	rec.Ready = false
	if err := host.Write(filepath.Join(r.instanceDir(w1), recordFile), rec); err != nil {
		t.Fatal(err)
	}
	if i := r.inspect(w1); i.State != providers.StateBroken {
		t.Errorf("%+v", i)
	}
	if err := r.Start(t.Context(), w1); err == nil {
		t.Error("started half of it")
	}
	if i, err := r.Create(t.Context(), spec(w1)); err != nil || i.State != providers.StateStopped {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestFailed(t *testing.T) {
	for err, kind := range map[error]error{
		unix.ENOSPC: providers.ErrExhausted, unix.ENOMEM: providers.ErrExhausted, tree.ErrTooDeep: providers.ErrInvalid,
	} {
		if got := failed("start", w1, err); !errors.Is(got, kind) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if failed("start", w1, nil) != nil {
		t.Error("an error of none")
	}
}
