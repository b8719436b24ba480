package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"

	"github.com/vendetta-dev/vendetta/providers"
)

// oldestAPI is Docker 20.10's.
const oldestAPI = "1.41"

// Capabilities that Probe names beside the contract.
const (
	CapabilityImages      = "images"
	CapabilityNetwork     = "network"
	CapabilityNetworkNone = "network-none"
	CapabilityLimitCPU    = "limit-cpu"
	CapabilityLimitMemory = "limit-memory"
	CapabilityLimitPIDs   = "limit-pids"
	CapabilitySeccomp     = "seccomp"
	CapabilityAppArmor    = "apparmor"
	CapabilityUserNS      = "user-namespace"
	CapabilityRootless    = "rootless"
)

// machine is what the engine said of itself. It does not change while it runs,
// and where it was restarted with other settings the old ones are no less right
// than a limit that was chosen a minute before.
type machine struct {
	version      string
	memory       int64
	cpus         int
	limits       struct{ cpu, memory, swap, pids bool }
	capabilities []string
	// remapped: the containers' root is guestUID here and not 0.
	remapped bool
	// groups: containers have cgroups, which pausing and changing limits take. A
	// rootless engine has none with cgroup v1.
	groups bool
	// folder is where the engine keeps all of it.
	folder string
	// architecture that images must be made for.
	architecture string
	// guestUID is the container's root as this machine sees it; -1 unknown.
	guestUID int64
}

// Probe implements providers.Provider.
func (p *Provider) Probe(ctx context.Context) providers.Status {
	m, err := p.ask(ctx)
	if err == nil {
		err = p.checkGuestProgram()
	}
	if err != nil {
		status := providers.Status{Reason: err.Error()}
		if e, ok := err.(*providers.Error); ok { //nolint:errorlint // explain and checkGuestProgram return it bare
			status.Fix = e.Next
		}
		return status
	}
	status := providers.Status{Usable: true, Version: m.version, Capabilities: m.capabilities}
	if !m.limits.memory || !m.limits.cpu || !m.limits.pids {
		status.Reason = "docker cannot enforce all limits here (docker info lists what the kernel lacks); missing ones are not applied"
		if slices.Contains(m.capabilities, CapabilityRootless) {
			status.Fix = "delegate cgroup controllers to the user, see https://docs.docker.com/engine/security/rootless/#limiting-resources"
		}
	}
	return status
}

// grouped returns what the engine said of itself where containers have cgroups,
// else ErrUnsupported.
func (p *Provider) grouped(ctx context.Context, doing string) (*machine, error) {
	m, err := p.machine(ctx)
	if err == nil && !m.groups {
		err = &providers.Error{
			Kind:    providers.ErrUnsupported,
			Message: doing + ": docker runs without cgroups here and can neither pause containers nor change their limits",
			Next:    "use a node with cgroup v2 or an engine that runs as root",
		}
	}
	return m, err
}

// machine returns what the engine said of itself, from memory when it was asked before.
func (p *Provider) machine(ctx context.Context) (*machine, error) {
	p.mu.Lock()
	known := p.known
	p.mu.Unlock()
	if known != nil {
		return known, nil
	}
	return p.ask(ctx)
}

func (p *Provider) ask(ctx context.Context) (*machine, error) {
	info, err := p.engine.Info(ctx)
	if err != nil {
		return nil, p.explain("ask docker", err)
	}
	if api := p.engine.ClientVersion(); versions.LessThan(api, oldestAPI) {
		return nil, &providers.Error{
			Kind:    providers.ErrUnusable,
			Message: fmt.Sprintf("docker %s (API %s) is too old, 20.10 (API %s) is the oldest that works", info.ServerVersion, api, oldestAPI),
			Next:    "upgrade docker: sudo apt-get install docker.io",
		}
	}
	if info.OSType != "linux" {
		return nil, &providers.Error{
			Kind:    providers.ErrUnusable,
			Message: fmt.Sprintf("docker runs %s containers here, workspaces need linux", info.OSType),
			Next:    "switch docker to linux containers",
		}
	}
	m := describe(info)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = m
	return m, nil
}

func describe(info system.Info) *machine {
	m := &machine{
		version: info.ServerVersion, memory: info.MemTotal, cpus: info.NCPU,
		groups: info.CgroupDriver != "none",
		folder: info.DockerRootDir, architecture: architecture(info.Architecture),
	}
	m.limits.cpu = info.CPUCfsQuota && info.CPUCfsPeriod
	m.limits.memory = info.MemoryLimit
	m.limits.swap = info.SwapLimit
	m.limits.pids = info.PidsLimit
	m.capabilities = []string{
		CapabilityImages, CapabilityNetwork, CapabilityNetworkNone,
	}
	if m.groups {
		m.capabilities = append(m.capabilities,
			providers.CapabilityFork, providers.CapabilityPause, providers.CapabilityResize, providers.CapabilitySnapshot)
	}
	for capability, has := range map[string]bool{
		CapabilityLimitCPU:    m.limits.cpu,
		CapabilityLimitMemory: m.limits.memory,
		CapabilityLimitPIDs:   m.limits.pids,
	} {
		if has {
			m.capabilities = append(m.capabilities, capability)
		}
	}
	for _, option := range info.SecurityOptions {
		// "name=seccomp,profile=default"
		name, _, _ := strings.Cut(strings.TrimPrefix(option, "name="), ",")
		switch name {
		case "seccomp":
			m.capabilities = append(m.capabilities, CapabilitySeccomp)
		case "apparmor":
			m.capabilities = append(m.capabilities, CapabilityAppArmor)
		case "rootless":
			m.capabilities = append(m.capabilities, CapabilityRootless)
			m.guestUID = int64(os.Getuid())
		case "userns":
			m.capabilities = append(m.capabilities, CapabilityUserNS)
			m.remapped = true
			m.guestUID = remappedRoot(info.DockerRootDir)
		}
	}
	slices.Sort(m.capabilities)
	return m
}

// architecture turns the kernel's word into that of images.
func architecture(kernel string) string {
	switch kernel {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i386", "i486", "i586", "i686":
		return "386"
	case "armv6l", "armv7l":
		return "arm"
	}
	return kernel
}

// remappedRoot reads the container root's id from the engine's folder, which a
// remapping engine names UID.GID below its own.
func remappedRoot(folder string) int64 {
	uid, _, _ := strings.Cut(filepath.Base(folder), ".")
	if n, err := strconv.ParseUint(uid, 10, 32); err == nil {
		return int64(n)
	}
	return -1
}
