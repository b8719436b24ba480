//go:build linux

package native

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/network"
)

// powerless runs do in namespaces of its own without the right to change them.
func powerless(t *testing.T, do func() error) error {
	t.Helper()
	return inNamespaces(t, func() error {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{}
		keep := uint32(1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER)
		data[0].Effective, data[0].Permitted = keep, keep
		if err := unix.Capset(&head, &data[0]); err != nil {
			return err
		}
		return do()
	})
}

// Each step of the init stage says what was refused, instead of going on without.
func TestStepsWithoutTheRight(t *testing.T) {
	pl, dir := layout(t)
	spare, plain := filepath.Join(dir, "spare"), filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nothing := func() int { // a descriptor that is no mount
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for what, step := range map[string]func() error{
		"buildRoot":   func() error { return buildRoot(&pl) },
		"open":        func() error { _, err := (&mount{Path: "/usr"}).open(); return err },
		"newProc":     func() error { _, err := newProc(); return err },
		"pivot probe": func() error { return pivot(mount{}) },
		"pivot":       func() error { return pivot(mount{Path: dir, FD: nothing()}) },
		"mountAt":     func() error { return mountAt(nothing(), spare, false) },
		"mountTmp":    func() error { return mountTmp(spare, "") },
		"mountDev":    func() error { return mountDev(&pl) },
		"hide folder": func() error { return hide(dir) },
		"hide file":   func() error { return hide(plain) },
		"sealProc":    sealProc,
		"confine":     confine,
		"network":     func() error { return configureNetwork(plan{OwnNetwork: true}) },
		"link":        func() error { nl, err := network.Dial(); return errors.Join(err, nl.Remove("lo")) },
	} {
		if err := powerless(t, step); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := powerless(t, func() error { return bindFiles(&plan{Files: map[string]string{"passwd": ""}}, dir) }); err == nil {
		t.Error("bound a file")
	}
	for what, step := range map[string]func() error{
		"symlink below a file": func() error { return symlink(plain+"/x/y", "z") },
		"symlink into proc":    func() error { return symlink("/proc/absent", "z") },
		"place below a file":   func() error { return place(plain+"/x/y", false) },
		"place in proc":        func() error { return place("/proc/absent", true) },
		"place over proc":      func() error { return place("/proc/self/stat", false) },
		"hide below a file":    func() error { return hide(plain + "/x") },
	} {
		if err := step(); err == nil {
			t.Errorf("%s succeeded", what)
		}
	}
	for _, path := range []string{filepath.Join(dir, "absent"), "/proc/self"} { // absent, a link
		if err := hide(path); err != nil {
			t.Error(err)
		}
	}
	if err := leaveKeyring(); err != nil {
		t.Error(err)
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &now); err != nil {
		t.Fatal(err)
	}
	if now.Max < 1<<62 { // the same again, so that nothing changes here
		if err := limitProcesses(int64(now.Max), false); err != nil {
			t.Error(err)
		}
	}
}

// A network that cannot be made leaves the instance stopped and nothing behind.
func TestJoinRefused(t *testing.T) {
	r := newRig(t)
	wayOut(t, r.machine)
	current := run{Process: host.Process{PID: os.Getpid()}}
	pl := plan{Files: map[string]string{}}
	if err := powerless(t, func() error { return r.join(t.Context(), "w1", providers.NetworkPrivate, &pl, &current) }); !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
	r.machine.iptables = "/bin/false"
	if _, err := r.Create(t.Context(), spec("w1")); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), "w1"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
	if s := r.state("w1"); s != providers.StateStopped {
		t.Error(s)
	}
	if _, err := os.Stat("/sys/class/net/" + vethName("w1")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the link stays")
	}
}

// Records that cannot be read are told by every call, and removal still works.
func TestUnreadableRecords(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	calls := map[string]func() error{
		"start":   func() error { return r.Start(ctx, "w1") },
		"stop":    func() error { return r.Stop(ctx, "w1", 0) },
		"connect": func() error { _, err := r.Connect(ctx, "w1"); return err },
		"usage":   func() error { _, err := r.Usage(ctx, "w1"); return err },
	}
	fails := func(when string, names ...string) {
		t.Helper()
		for _, name := range names {
			var e *providers.Error
			if err := calls[name](); !errors.As(err, &e) || errors.Is(err, providers.ErrNotFound) {
				t.Errorf("%s: %s: %v", when, name, err)
			}
		}
	}
	create := func() {
		t.Helper()
		if _, err := r.Create(ctx, spec("w1")); err != nil {
			t.Fatal(err)
		}
	}
	create()
	runPath := filepath.Join(r.instanceDir("w1"), runFile)
	for when, spoil := range map[string]func() error{
		"empty":  func() error { return os.WriteFile(runPath, nil, 0o600) },
		"kind":   func() error { return os.WriteFile(runPath, []byte(`{"PID":"x"}`), 0o600) },
		"folder": func() error { return os.Mkdir(runPath, 0o700) },
	} {
		if err := os.RemoveAll(runPath); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		fails(when, "start", "stop", "connect", "usage")
		if s := r.state("w1"); s != providers.StateBroken {
			t.Errorf("%s: %s", when, s)
		}
		err := r.Destroy(ctx, "w1", false)
		if (err != nil) != (when == "folder") {
			t.Errorf("%s: %v", when, err)
		}
		create()
	}
	if err := os.RemoveAll(runPath); err != nil {
		t.Fatal(err)
	}
	// The volume is gone.
	if err := r.trash.Discard(r.volumeDir("w1")); err != nil {
		t.Fatal(err)
	}
	fails("no volume", "start")
	if i, err := r.Inspect(ctx, "w1"); err != nil || i.State != providers.StateBroken || i.Message != "its volume is gone" {
		t.Errorf("%+v, %v", i, err)
	}
	// The record is a folder.
	path := filepath.Join(r.instanceDir("w1"), recordFile)
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	fails("record", "start", "stop", "connect", "usage")
	if _, err := r.Create(ctx, spec("w1")); err == nil {
		t.Error("created over it")
	}
	if err := r.Destroy(ctx, "w1", true); err != nil {
		t.Error(err)
	}
	for _, stray := range []string{"w2", "not-an-id", "UPPER"} {
		if err := os.Mkdir(filepath.Join(r.dir, "instances", stray), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := r.List(ctx); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
}

// A state folder that cannot be one.
func TestBadStateFolder(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(r.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	below := New(Options{ServerID: "s1", StateDir: filepath.Join(file, "x")})
	defer func() { _ = below.Close() }()
	if _, err := below.Create(ctx, spec("w1")); err == nil {
		t.Error("created below a file")
	}
	if _, err := below.List(ctx); err == nil {
		t.Error("listed a file")
	}
	if err := host.Write(filepath.Join(file, "x"), 1); err == nil {
		t.Error("wrote below a file")
	}
	if err := host.Write(file, func() {}); err == nil {
		t.Error("wrote a function")
	}
	if err := host.Write(r.dir, 1); err == nil {
		t.Error("wrote over a folder")
	}
	if _, err := host.Lock(r.dir); err == nil {
		t.Error("locked a folder for writing")
	}
	for _, taken := range []string{"instances", "volumes", "trash"} {
		dir := filepath.Join(r.dir, "s-"+taken)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, taken), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p := New(Options{ServerID: "s1", StateDir: dir})
		if _, err := p.Create(ctx, spec("w1")); err == nil && taken != "trash" {
			t.Errorf("%s is a file, and it created", taken)
		}
		if err := p.Destroy(ctx, "w1", true); err == nil && taken == "volumes" {
			t.Log("nothing to remove below a file")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Version 2's hierarchy, played by a folder.
func TestLimitUnified(t *testing.T) {
	r := newRig(t)
	top := filepath.Join(r.dir, "cg")
	at := filepath.Join(top, host.GroupParent, "w1")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.machine.root = true
	r.machine.mounts = filepath.Join(r.dir, "mounts")
	put(r.machine.mounts, "cgroup2 "+top+" cgroup2 rw 0 0\n")
	res := providers.Resources{PIDs: 7, MemoryBytes: 1 << 20, CPUs: 2}
	limit := func() (run, error) {
		current := run{Process: host.Process{PID: 42}}
		err := r.limit("w1", res, &current)
		return current, err
	}
	if _, err := limit(); err == nil {
		t.Error("no list of controllers, and no error")
	}
	put(filepath.Join(top, "cgroup.controllers"), "cpuset\n")
	if current, err := limit(); err != nil || len(current.Cgroups) != 0 {
		t.Error(current, err)
	}
	put(filepath.Join(top, "cgroup.controllers"), "cpuset cpu memory pids\n")
	if !reflect.DeepEqual(r.machine.limits(), map[string]bool{"cpuset": true, "cpu": true, "memory": true, "pids": true}) {
		t.Error(r.machine.limits())
	}
	if _, err := limit(); err == nil {
		t.Error("no subtree_control, and no error")
	}
	put(filepath.Join(top, "cgroup.subtree_control"), "")
	put(filepath.Join(top, host.GroupParent, "cgroup.subtree_control"), "")
	if _, err := limit(); err == nil {
		t.Error("no files of the group, and no error")
	}
	for _, file := range []string{"pids.max", "memory.max", "cpu.max", "cgroup.procs"} { // no memory.swap.max
		put(filepath.Join(at, file), "")
	}
	current, err := limit()
	if err != nil || !reflect.DeepEqual(current.Cgroups, []string{at}) {
		t.Fatal(current, err)
	}
	for path, want := range map[string]string{
		filepath.Join(top, "cgroup.subtree_control"): "+cpu +memory +pids",
		filepath.Join(at, "pids.max"):                "7",
		filepath.Join(at, "memory.max"):              "1048576",
		filepath.Join(at, "cpu.max"):                 "200000 100000",
		filepath.Join(at, "cgroup.procs"):            "42",
	} {
		if raw, err := os.ReadFile(path); err != nil || string(raw) != want {
			t.Errorf("%s: %q, %v", path, raw, err)
		}
	}
	// A played group is no empty folder, so that removal is refused.
	if err := host.RemoveGroups(t.Context(), current.Cgroups); !errors.Is(err, unix.ENOTEMPTY) {
		t.Error(err)
	}
	// Version 1 next to it, where the parent is a file.
	put(filepath.Join(r.dir, "file"), "")
	put(r.machine.mounts, "cgroup "+filepath.Join(r.dir, "file")+" cgroup rw,pids 0 0\n")
	if _, err := limit(); err == nil {
		t.Error("made a group below a file")
	}
	r.machine.mounts = filepath.Join(r.dir, "absent")
	if h := r.machine.hierarchies(); h != nil {
		t.Error(h)
	}
}

// A group that a process does not leave is told when the caller gives up.
func TestGroupInUse(t *testing.T) {
	r := newRig(t)
	if !r.machine.root || r.machine.hierarchies()["pids"] == "" && r.machine.hierarchies()[""] == "" {
		t.Skip("needs a root agent with control groups")
	}
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	last, err := r.run("w1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := host.RemoveGroups(ctx, last.Cgroups); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What Start cannot make leaves the instance as it was.
func TestStartRefused(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if _, err := r.Create(ctx, providers.Spec{Workspace: "w1", Network: providers.NetworkNone}); err != nil {
		t.Fatal(err)
	}
	dir := r.instanceDir("w1")
	refused := func(what string) {
		t.Helper()
		if err := r.Start(ctx, "w1"); err == nil {
			t.Errorf("%s: started", what)
		}
		if s := r.state("w1"); s != providers.StateStopped {
			t.Errorf("%s: %s", what, s)
		}
	}
	for _, what := range []string{"guest.log", runFile + ".new"} {
		path := filepath.Join(dir, what)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		refused(what)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if r.machine.root {
		r.machine.mounts = filepath.Join(r.dir, "mounts")
		if err := os.WriteFile(r.machine.mounts, []byte("cgroup /proc/absent cgroup rw,pids 0 0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused("groups")
		r.machine.mounts = thisMachine().mounts
	}
	// What an earlier run held must be cleared first.
	held := filepath.Join(r.dir, "held")
	if err := os.MkdirAll(filepath.Join(held, "in use"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := host.Write(filepath.Join(dir, runFile), run{Cgroups: []string{held}}); err != nil {
		t.Fatal(err)
	}
	refused("release")
	if err := r.Stop(ctx, "w1", 0); err == nil {
		t.Error("stopped with a group left")
	}
	if err := r.Destroy(ctx, "w1", true); err == nil {
		t.Error("destroyed with a group left")
	}
	if err := os.RemoveAll(held); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	r.want("w1", "echo well", "well")

	// A link that cannot be made again.
	r.renew()
	if err := errors.Join(os.Rename(filepath.Join(dir, "link"), filepath.Join(dir, "was")), os.WriteFile(filepath.Join(dir, "link"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Connect(ctx, "w1"); err == nil {
		t.Error("connected without a link")
	}
	if err := r.trash.Discard(r.volumeDir("w1")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Connect(ctx, "w1"); err == nil {
		t.Error("connected without a volume")
	}
}

// An ordinary user of the workspace cannot pose as its guest.
func TestOnlyRootIsTheGuest(t *testing.T) {
	r := newRig(t)
	if !r.machine.root {
		t.Skip("there is one user inside")
	}
	r.up(providers.Spec{Workspace: "w1", Network: providers.NetworkNone})
	r.want("w1", "echo first", "first")
	r.want("w1", `(setpriv --reuid 1000 --clear-groups python3 -c 'import socket,time; s=socket.socket(socket.AF_UNIX); s.connect("/.vendetta/link/guest.sock"); print("in", flush=True); time.sleep(20)' > /tmp/out 2>&1 &); i=0; while [ ! -s /tmp/out ] && [ $i -lt 500 ]; do sleep 0.02; i=$((i+1)); done; cat /tmp/out`, "in")
	delete(r.conns, "w1")
	r.want("w1", "echo second", "second")
}
