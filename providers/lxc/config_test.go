//go:build linux

package lxc

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

// quiet is a provider that touches no machine: its files are in a folder.
func quiet(t *testing.T, mounts string) *Provider {
	t.Helper()
	dir := t.TempDir()
	p := New(Options{ServerID: "s1", StateDir: filepath.Join(dir, "s"), GuestProgram: "/g", Helper: "/h", Images: &folder{holds: map[string]bool{}}})
	t.Cleanup(func() { _ = p.Close() })
	p.machine.mounts = filepath.Join(dir, "mounts")
	p.machine.apparmor = filepath.Join(dir, "profiles")
	put(t, p.machine.mounts, mounts)
	return p
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func lines(t *testing.T, p *Provider, r record, current run) []string {
	t.Helper()
	c, err := p.config("w1", r, volume{IDBase: 200000}, current)
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.text()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("missing: %s", w)
		}
	}
}

func without(t *testing.T, got []string, prefixes ...string) {
	t.Helper()
	for _, p := range prefixes {
		for _, line := range got {
			if strings.HasPrefix(line, p) {
				t.Errorf("there is: %s", line)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	p := quiet(t, "cgroup /cg/memory cgroup rw,memory 0 0\ncgroup /cg/pids cgroup rw,pids 0 0\ncgroup /cg/cpu cgroup rw,cpu 0 0\n")
	r := record{Name: "box", Resources: providers.Resources{CPUs: 1.5, MemoryBytes: 1 << 30, PIDs: 100}, Network: providers.NetworkPrivate}
	got := lines(t, p, r, run{Veth: "vdl-0123456789", Address: "10.232.0.2/16", Gateway: "10.232.0.1"})
	wantLines(t, got,
		"lxc.uts.name = box",
		"lxc.rootfs.path = dir:/mnt/root",
		"lxc.init.cmd = /.vendetta/bin/vendetta-guest --link /.vendetta/link/guest.sock --state /.vendetta/state --project /workspace",
		"lxc.mount.entry = /mnt/workspace workspace none bind 0 0",
		"lxc.mount.entry = /mnt/link .vendetta/link none bind,ro 0 0",
		"lxc.mount.auto = proc:mixed sys:ro",
		"lxc.cap.keep = chown dac_override fowner fsetid kill net_bind_service setgid setuid sys_chroot",
		"lxc.no_new_privs = 1",
		"lxc.keyring.session = 1",
		"lxc.seccomp.profile = "+filepath.Join(p.instanceDir("w1"), "seccomp"),
		"lxc.idmap = u 0 200000 65536",
		"lxc.idmap = g 0 200000 65536",
		"lxc.net.0.type = phys",
		"lxc.net.0.link = vdp-0123456789",
		"lxc.net.0.ipv4.address = 10.232.0.2/16",
		"lxc.net.0.ipv4.gateway = 10.232.0.1",
		"lxc.cgroup.dir.container = vendetta-lxc.w1",
		"lxc.cgroup.dir.monitor = vendetta-lxc-monitor.w1",
		"lxc.cgroup.dir.monitor.pivot = vendetta-lxc-pivot.w1",
		"lxc.cgroup.cpu.cfs_quota_us = 150000",
		"lxc.cgroup.memory.limit_in_bytes = 1073741824",
		"lxc.cgroup.pids.max = 100",
	)
	without(t, got, "lxc.cgroup2", "lxc.apparmor", "lxc.cgroup.devices", "lxc.include", "lxc.hook")
}

func TestConfigWithoutNetwork(t *testing.T) {
	p := quiet(t, "")
	got := lines(t, p, record{Name: "box", Network: providers.NetworkNone}, run{})
	wantLines(t, got, "lxc.net.0.type = empty")
	without(t, got, "lxc.net.0.link", "lxc.net.0.ipv4")
}

// Version 2 alone, AppArmor, and a container whose root is the machine's.
func TestConfigPrivileged(t *testing.T) {
	top := t.TempDir()
	put(t, filepath.Join(top, "cgroup.controllers"), "cpu memory pids\n")
	p := quiet(t, "cgroup2 "+top+" cgroup2 rw 0 0\n")
	put(t, p.machine.apparmor, "docker-default (enforce)\nlxc-container-default-cgns (enforce)\n")
	r := record{Name: "box", Privileged: true, Resources: providers.Resources{CPUs: 1, MemoryBytes: 1 << 30, PIDs: 100}, Network: providers.NetworkNone}
	got := lines(t, p, r, run{})
	wantLines(t, got,
		"lxc.apparmor.profile = lxc-container-default-cgns",
		"lxc.cgroup2.cpu.max = 100000 100000",
		"lxc.cgroup2.memory.max = 1073741824",
		"lxc.cgroup2.memory.swap.max = 0",
		"lxc.cgroup2.pids.max = 100",
		"lxc.cgroup2.devices.deny = a",
		"lxc.cgroup2.devices.allow = c 1:3 rwm",
		"lxc.cap.keep = chown dac_override fowner fsetid kill net_bind_service setgid setuid sys_chroot",
		"lxc.no_new_privs = 1",
	)
	without(t, got, "lxc.idmap", "lxc.cgroup.devices", "lxc.cgroup.memory")
}

// Swap is taken away where the kernel counts it.
func TestConfigSwap(t *testing.T) {
	top := t.TempDir()
	put(t, filepath.Join(top, "memory.memsw.limit_in_bytes"), "0")
	p := quiet(t, "cgroup "+top+" cgroup rw,memory 0 0\n")
	got := lines(t, p, record{Name: "box", Resources: providers.Resources{MemoryBytes: 1 << 30}}, run{})
	limit := slices.Index(got, "lxc.cgroup.memory.limit_in_bytes = 1073741824")
	both := slices.Index(got, "lxc.cgroup.memory.memsw.limit_in_bytes = 1073741824")
	if limit < 0 || both < limit {
		t.Errorf("memory at %d, with swap at %d", limit, both)
	}
}

func TestUnreadableMounts(t *testing.T) {
	p := quiet(t, "")
	p.machine.mounts = filepath.Join(t.TempDir(), "absent")
	if _, err := p.config("w1", record{Name: "box"}, volume{}, run{}); !errors.Is(err, errNoGroups) {
		t.Error(err)
	}
	if _, err := p.machine.members("w1"); !errors.Is(err, errNoGroups) {
		t.Error(err)
	}
	if p.machine.frozen("w1") || p.machine.freezes() {
		t.Error("found a freezer")
	}
	if err := p.machine.thaw("w1"); !errors.Is(err, errNoGroups) {
		t.Error(err)
	}
	if err := p.machine.hold("w1", providers.Resources{}, providers.Resources{}); !errors.Is(err, errNoGroups) {
		t.Error(err)
	}
	if err := p.disband(t.Context(), "w1"); !errors.Is(err, errNoGroups) {
		t.Error(err)
	}
	if err := p.purge(t.Context(), "w1", run{}); !errors.Is(err, errNoGroups) {
		t.Error(err)
	}
}

// FuzzConfigText: a value is one line's, whatever it holds, or refused.
func FuzzConfigText(f *testing.F) {
	for _, s := range []string{"box", "a\nlxc.hook.pre-start = /bin/sh", "a\r\nb", "\x00", " a", "a ", `"a"`, "'a'", "a = b # c", "a\\", "", "\u0085", "\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		c := config{{"lxc.uts.name", value}, {"lxc.no_new_privs", "1"}}
		text, err := c.text()
		if err != nil {
			if !errors.Is(err, providers.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		want := []string{"lxc.uts.name = " + value, "lxc.no_new_privs = 1", ""}
		if got := strings.Split(text, "\n"); !reflect.DeepEqual(got, want) {
			t.Errorf("%q", got)
		}
		if strings.ContainsAny(value, "\n\r\x00\f\v") {
			t.Errorf("took %q", value)
		}
	})
}

func TestVariables(t *testing.T) {
	env := variables(record{User: "dev", Env: environment([]string{"A=1", "nonsense", "=x", "VENDETTA_GUEST_USER=root", "B=a\nb", "C=\x00"})})
	for _, want := range []string{"A=1", "B=a\nb", "VENDETTA_GUEST_USER=dev"} {
		if !slices.Contains(env, want) {
			t.Errorf("%q lacks %q", env, want)
		}
	}
	for _, e := range env {
		if e == "VENDETTA_GUEST_USER=root" || strings.Contains(e, "\x00") || !strings.Contains(e, "=") {
			t.Errorf("there is %q", e)
		}
	}
	if env := variables(record{}); !slices.Contains(env, "VENDETTA_GUEST_USER=0") {
		t.Errorf("%q", env)
	}
}

func TestFilter(t *testing.T) {
	got := filter("2\ndenylist\n[all]\nkexec_load errno 1\n")
	for _, want := range []string{"2\ndenylist\n", "kexec_load errno 1\n", "\nbpf errno 1\n", "unshare errno 1 [0,268435456,SCMP_CMP_MASKED_EQ,268435456]\n", "clone3 errno 38\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q", want)
		}
	}
	for _, other := range []string{"2\nallowlist errno 1\n[all]\nread\n", "1\nwhitelist\n103\n", ""} {
		if got := filter(other); got != other {
			t.Errorf("%q became %q", other, got)
		}
	}
	p := quiet(t, "")
	p.machine.seccomp = filepath.Join(t.TempDir(), "absent")
	if err := p.writeFilter(filepath.Join(t.TempDir(), "seccomp")); err == nil {
		t.Error("wrote a filter of nothing")
	}
}
