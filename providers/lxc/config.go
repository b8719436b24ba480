//go:build linux

package lxc

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

// keptCaps is Docker's default set less NET_RAW, MKNOD, AUDIT_WRITE, SETPCAP and
// SETFCAP, as liblxc writes them.
var keptCaps = []string{
	"chown", "dac_override", "fowner", "fsetid", "kill", "net_bind_service", "setgid", "setuid", "sys_chroot",
}

// devices that a privileged container may use, by their numbers: what Docker
// gives. An unprivileged one can make none, and gets these from the machine.
var devices = []string{
	"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm",
}

// guestPath is the PATH inside, where the image names none.
const guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Names in the helper's stage.
const (
	stageRoot    = "root"
	stageProject = "workspace"
	stageState   = "state"
	stageLink    = "link"
	stageGuest   = "guest"
)

func (p *Provider) staged(name string) string { return path.Join(helper.StageOf(p.dir), name) }

// item is one line of a container's config.
type item struct{ key, value string }

type config []item

func (c *config) set(key, format string, args ...any) {
	*c = append(*c, item{key, fmt.Sprintf(format, args...)})
}

// text is the config as liblxc reads it. A line ends at its end and nowhere else,
// so a value with an end of line in it could say anything; there is no way to
// quote one, so it is refused.
func (c config) text() (string, error) {
	var b strings.Builder
	for _, i := range c {
		if strings.ContainsFunc(i.value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", &providers.Error{
				Kind:    providers.ErrInvalid,
				Message: fmt.Sprintf("write the config of an lxc container: %s holds a character that cannot be written there: %q", i.key, i.value),
			}
		}
		if i.value != strings.TrimSpace(i.value) || len(i.value) > 1 && strings.ContainsAny(i.value[:1], `"'`) {
			return "", &providers.Error{
				Kind:    providers.ErrInvalid,
				Message: fmt.Sprintf("write the config of an lxc container: liblxc would take %s for something else: %q", i.key, i.value),
			}
		}
		b.WriteString(i.key + " = " + i.value + "\n")
	}
	return b.String(), nil
}

// config of an instance. All paths in it that the container's root has to reach
// are in the helper's stage; nothing of a workspace's or an image's enters it but
// the host name, which was checked.
func (p *Provider) config(ws string, r record, v volume, current run) (config, error) {
	dir := p.instanceDir(ws)
	var c config
	c.set("lxc.uts.name", "%s", r.Name)
	c.set("lxc.rootfs.path", "dir:%s", p.staged(stageRoot))
	c.set("lxc.rootfs.managed", "0")
	c.set("lxc.init.cmd", "%s --link %s --state %s --project %s", providers.GuestProgram,
		path.Join(providers.GuestLink, providers.GuestSocket), providers.GuestState, providers.Project)
	c.set("lxc.init.cwd", "%s", providers.Project)
	c.set("lxc.signal.halt", "SIGTERM")
	c.set("lxc.log.file", "%s", filepath.Join(dir, logFile))
	c.set("lxc.log.level", "ERROR")

	// A terminal of its own is all that it has of the machine's.
	c.set("lxc.console.logfile", "%s", filepath.Join(dir, consoleFile))
	c.set("lxc.console.size", "64KB")
	c.set("lxc.tty.max", "0")
	c.set("lxc.pty.max", "1024")
	c.set("lxc.autodev", "1")
	c.set("lxc.mount.auto", "proc:mixed sys:ro")
	for _, m := range []struct{ from, to, options string }{
		{p.staged(stageProject), providers.Project, "bind"},
		{p.staged(stageState), providers.GuestState, "bind"},
		{p.staged(stageLink), providers.GuestLink, "bind,ro"},
		{p.staged(stageGuest), providers.GuestProgram, "bind,ro"},
		{"shm", "/dev/shm", "nosuid,nodev,create=dir,mode=1777,size=512m"},
		// What /proc tells of the kernel, as container engines hide it.
		{"/dev/null", "/proc/kcore", "bind,optional"},
		{"/dev/null", "/proc/keys", "bind,optional"},
		{"/dev/null", "/proc/timer_list", "bind,optional"},
		{"/dev/null", "/proc/sched_debug", "bind,optional"},
		{"/dev/null", "/proc/latency_stats", "bind,optional"},
		{"/dev/null", "/proc/kallsyms", "bind,optional"},
	} {
		kind := "none"
		if m.from == "shm" {
			kind = "tmpfs"
		}
		c.set("lxc.mount.entry", "%s %s %s %s 0 0", m.from, strings.TrimPrefix(m.to, "/"), kind, m.options)
	}

	c.set("lxc.cap.keep", "%s", strings.Join(keptCaps, " "))
	c.set("lxc.no_new_privs", "1")
	c.set("lxc.keyring.session", "1")
	c.set("lxc.seccomp.profile", "%s", filepath.Join(dir, filterFile))
	if profile := p.machine.profile(); profile != "" {
		c.set("lxc.apparmor.profile", "%s", profile)
		// Older kernels lack the mediation of mounts; no one in there can mount.
		c.set("lxc.apparmor.allow_incomplete", "1")
	}
	if !r.Privileged {
		for _, kind := range []string{"u", "g"} {
			c.set("lxc.idmap", "%s 0 %d %d", kind, v.IDBase, host.IDsPerInstance)
		}
	}
	joined(&c, r, current)
	return c, p.limits(&c, ws, r)
}

// joined is what the config says of the network: an interface that was made for it, or loopback alone.
func joined(c *config, r record, current run) {
	if r.Network == providers.NetworkNone || current.Veth == "" {
		c.set("lxc.net.0.type", "empty")
	} else {
		c.set("lxc.net.0.type", "phys")
		c.set("lxc.net.0.link", "%s", peerName(current.Veth))
		c.set("lxc.net.0.name", "%s", guestInterface)
		c.set("lxc.net.0.flags", "up")
		c.set("lxc.net.0.ipv4.address", "%s", current.Address)
		c.set("lxc.net.0.ipv4.gateway", "%s", current.Gateway)
	}
}

// Groups of an instance, at the top of every hierarchy and not below the agent's,
// so that stopping the agent's service ends nobody, nor in a common one, which the
// last to leave would take from the next to come.
func groupNames(ws string) (container, monitor, pivot string) {
	return "vendetta-lxc." + ws, "vendetta-lxc-monitor." + ws, "vendetta-lxc-pivot." + ws
}

// limits of the config, for the hierarchies that this machine has.
func (p *Provider) limits(c *config, ws string, r record) error {
	container, monitor, pivot := groupNames(ws)
	c.set("lxc.cgroup.relative", "0")
	c.set("lxc.cgroup.dir.container", "%s", container)
	c.set("lxc.cgroup.dir.monitor", "%s", monitor)
	c.set("lxc.cgroup.dir.monitor.pivot", "%s", pivot)
	all, err := p.machine.hierarchies()
	if err != nil {
		return err
	}
	for _, s := range all.settings(r.Resources) {
		key := "lxc.cgroup."
		if s.v2 {
			key = "lxc.cgroup2."
		}
		c.set(key+s.file, "%s", s.value)
	}
	if !r.Privileged {
		return nil
	}
	key := "lxc.cgroup."
	if all.pure() {
		key = "lxc.cgroup2."
	}
	c.set(key+"devices.deny", "a")
	for _, d := range devices {
		c.set(key+"devices.allow", "%s", d)
	}
	return nil
}

// profile is the distribution's AppArmor profile for containers, where the kernel
// has it.
func (m machine) profile() string {
	const wanted = "lxc-container-default-cgns"
	raw, err := os.ReadFile(m.apparmor)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); name == wanted {
			return wanted
		}
	}
	return ""
}

// etc are the files that tell the container of its place.
func etc(r record, address, resolver string) map[string]string {
	own, _, _ := strings.Cut(address, "/")
	if own == "" {
		own = "127.0.1.1"
	}
	return map[string]string{
		"hostname":    r.Name + "\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n" + own + " " + r.Name + "\n",
		"resolv.conf": resolver,
	}
}

// variables of the container's first process. The image's come first, so that
// ours stand.
func variables(r record) []string {
	user := r.User
	if user == "" {
		user = "0"
	}
	env := []string{"PATH=" + guestPath, "HOME=/root", "USER=root", "LANG=C.UTF-8"}
	env = append(env, r.Env...)
	return append(env, providers.EnvGuestUser+"="+user)
}
