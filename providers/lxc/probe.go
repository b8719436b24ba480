//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

// The words that Probe adds where they hold.
const (
	CapabilityImages   = "images"
	CapabilityNetwork  = "network"
	CapabilityCPU      = "limit-cpu"
	CapabilityMemory   = "limit-memory"
	CapabilityPIDs     = "limit-pids"
	CapabilityUsers    = "user-range"
	CapabilitySeccomp  = "seccomp"
	CapabilityAppArmor = "apparmor"
)

// usable refuses what Probe would, as far as it can be told without running
// anything.
func (p *Provider) usable() error {
	refuse := func(next, format string, args ...any) error {
		return &providers.Error{Kind: providers.ErrUnusable, Message: fmt.Sprintf(format, args...), Next: next}
	}
	switch {
	case !p.machine.root:
		return refuse("add the node as root: vendetta node add root@NODE", "lxc needs a node agent that runs as root: an ordinary user's containers get no network and no limits")
	case !p.machine.mapped:
		return refuse("run the node agent on the machine itself", "this root is inside a user namespace and has no range of ids to hand out")
	}
	if _, err := os.Stat(p.guest); err != nil {
		return refuse("install vendetta on this node again: vendetta node add", "the guest program is missing: %v", err)
	}
	if p.helper == "" {
		return missingHelper("this build of vendetta has no vendetta-lxc beside it")
	}
	if _, err := os.Stat(p.helper); err != nil {
		return missingHelper(err.Error())
	}
	if _, err := os.Stat(p.machine.seccomp); err != nil {
		return refuse("install it on the node: sudo apt-get install lxc", "the distribution's lxc is not installed: %v", err)
	}
	return nil
}

// Probe asks liblxc for its version, through the helper, and shows an image's folder
// under other ids, which is what the kernel or the file system may be unable to.
func (p *Provider) Probe(ctx context.Context) providers.Status {
	s := providers.Status{}
	refused := func(err error) providers.Status {
		s.Reason = err.Error()
		var own *providers.Error
		if errors.As(err, &own) {
			s.Reason, s.Fix = own.Message, own.Next
		}
		return s
	}
	if err := p.usable(); err != nil {
		return refused(err)
	}
	a, err := p.begin(ctx, false, nil)
	if err != nil {
		return refused(err)
	}
	answer, err := a.ask(ctx, helper.Request{Verb: helper.Version})
	if err != nil {
		return refused(err)
	}
	s.Version = answer.Version
	all, err := p.machine.hierarchies()
	if err != nil {
		return refused(err)
	}
	s.Usable = true
	var missing []string
	s.Capabilities, missing = p.capabilities(all)
	s.Reason = strings.Join(missing, ", ")
	return s
}

// capabilities of a usable machine, and in words what is missing.
func (p *Provider) capabilities(all groups) (have, missing []string) {
	have = []string{
		CapabilityImages, CapabilitySeccomp,
		providers.CapabilitySnapshot, providers.CapabilityFork, providers.CapabilityResize,
	}
	limits := all.settings(providers.Resources{CPUs: 1, MemoryBytes: 1, PIDs: 1})
	for _, l := range []struct{ controller, word string }{
		{"cpu", CapabilityCPU}, {"memory", CapabilityMemory}, {"pids", CapabilityPIDs},
	} {
		if slices.ContainsFunc(limits, func(s setting) bool { return s.controller == l.controller }) {
			have = append(have, l.word)
		} else {
			missing = append(missing, l.controller+" is not limited")
		}
	}
	if p.machine.freezes() {
		have = append(have, providers.CapabilityPause)
	} else {
		missing = append(missing, "nothing can be paused")
	}
	if p.machine.profile() != "" {
		have = append(have, CapabilityAppArmor)
	}
	if err := image.Idmapped(p.dir, p.machine.ids.Base, host.IDsPerInstance); err == nil {
		have = append(have, CapabilityUsers)
	} else {
		missing = append(missing, fmt.Sprintf("this machine cannot share an image between user namespaces, so only privileged workspaces run (%v)", err))
	}
	if err := p.canJoin(); err == nil {
		have = append(have, CapabilityNetwork)
	} else {
		missing = append(missing, err.Error())
	}
	slices.Sort(have)
	return have, missing
}

// canJoin says what keeps instances from a private network.
func (p *Provider) canJoin() error {
	if p.bridge != "" {
		_, err := p.neighbours()
		return err
	}
	if p.machine.iptables == "" {
		return errors.New("private networks need iptables, which is not installed")
	}
	return nil
}
