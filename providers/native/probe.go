//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// The words that Probe adds where they hold.
const (
	CapabilityCPU     = "limit-cpu"
	CapabilityMemory  = "limit-memory"
	CapabilityPIDs    = "limit-pids"
	CapabilityNetwork = "network-nat"
	// CapabilityUsers: an instance has 65536 user ids and not one.
	CapabilityUsers = "user-range"
)

// Probe makes a sandbox that ends by itself, which is the only way to know: the
// kernel may refuse in half a dozen places.
func (p *Provider) Probe(ctx context.Context) providers.Status {
	s := providers.Status{Version: "linux " + p.machine.kernel}
	if p.machine.root && !p.machine.mapped {
		s.Reason = "this root is inside a user namespace and has no range of ids to hand out"
		s.Fix = "run the node agent as an ordinary user"
		return s
	}
	if _, err := os.Stat(p.guest); err != nil {
		s.Reason = fmt.Sprintf("the guest program is missing: %v", err)
		s.Fix = "install vendetta on this node again: vendetta node add"
		return s
	}
	if err := p.try(ctx); err != nil {
		s.Reason = fmt.Sprintf("a sandbox cannot be made: %v", err)
		s.Fix = remedy(err, sysctl)
		return s
	}
	s.Usable = true
	s.Capabilities, s.Reason = p.machine.capabilities()
	return s
}

// try goes through all that a start needs of the kernel.
func (p *Provider) try(ctx context.Context) (err error) {
	output, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, output.Close()) }()
	pl := plan{
		Probe: true, Hostname: "probe", OwnNetwork: true, Range: p.machine.root, PIDs: DefaultPIDs, Dir: "/",
		Links:   map[string]string{},
		Mounts:  []mount{{Target: "/usr", Path: "/usr"}, {Target: providers.GuestProgram, Path: p.guest, File: true}},
		Devices: []mount{{Target: "/dev/null", Path: "/dev/null", File: true, Writable: true, Device: true}},
	}
	c, err := p.clone(&pl, volume{IDBase: p.machine.idBase}, output)
	if err != nil {
		return err
	}
	defer c.close()
	err = c.begin(ctx, pl)
	c.kill() // ended by itself already unless ctx has
	return err
}

func sysctl(name string) string {
	raw, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return "" // not a setting of this kernel
	}
	return strings.TrimSpace(string(raw))
}

// remedy is the one root command that helps, where a known setting is the cause.
func remedy(err error, sysctl func(string) string) string {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSPC) {
		return ""
	}
	switch {
	case sysctl("user.max_user_namespaces") == "0":
		return "sudo sysctl -w user.max_user_namespaces=15000"
	case sysctl("kernel.unprivileged_userns_clone") == "0":
		return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	}
	return ""
}

// capabilities of a usable machine, and in words what is missing.
func (m machine) capabilities() (have []string, missing string) {
	var without []string
	limits := m.limits()
	for _, l := range []struct{ controller, word, without string }{
		{"cpu", CapabilityCPU, "cpu is not limited"}, {"memory", CapabilityMemory, "memory is limited for each process alone"},
	} {
		if limits[l.controller] {
			have = append(have, l.word)
		} else {
			without = append(without, l.without)
		}
	}
	have = append(have, CapabilityPIDs) // by RLIMIT_NPROC everywhere
	have = append(have, providers.CapabilitySnapshot, providers.CapabilityFork, providers.CapabilityPause)
	if m.resizable() {
		have = append(have, providers.CapabilityResize)
	}
	if m.root {
		have = append(have, CapabilityUsers)
	} else {
		without = append(without, "there is one user id inside")
	}
	if m.canNAT() {
		have = append(have, CapabilityNetwork)
	} else {
		without = append(without, "private networks have no way out")
	}
	sort.Strings(have)
	missing = strings.Join(without, ", ")
	if missing != "" && !m.root {
		missing += " (these need a node agent that runs as root)"
	} else if missing != "" && m.iptables == "" {
		missing += " (iptables is not installed)"
	}
	return have, missing
}
