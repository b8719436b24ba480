package docker

import (
	"errors"
	"fmt"

	"github.com/docker/docker/api/types/container"

	"github.com/vendetta-dev/vendetta/providers"
)

func isNotFound(err error) bool { return errors.Is(err, providers.ErrNotFound) }

func invalid(next, format string, args ...any) error {
	return &providers.Error{Kind: providers.ErrInvalid, Message: fmt.Sprintf(format, args...), Next: next}
}

// check refuses what can be refused without asking the engine.
func check(spec providers.Spec) error {
	if err := checkWorkspace(spec.Workspace); err != nil {
		return err
	}
	if spec.Name != "" && !hostName.MatchString(spec.Name) {
		return invalid("use small letters, digits and dashes", "workspace name %q cannot be a host name", spec.Name)
	}
	switch spec.Network {
	case "", providers.NetworkPrivate, providers.NetworkNone:
	case providers.NetworkHost:
		return invalid("use the network private or none", "docker workspaces do not get the machine's own network")
	default:
		return invalid("use the network private or none", "unknown network %q", spec.Network)
	}
	if spec.Privileged {
		return &providers.Error{
			Kind:    providers.ErrUnsupported,
			Message: "docker workspaces are never privileged",
			Next:    "leave privileged out, or use provider lxc with it",
		}
	}
	if spec.Checksum != "" {
		return invalid("pin a container image by its digest: NAME@sha256:...", "a checksum is for disk images that are fetched by their address")
	}
	return checkResources(spec.Resources)
}

func checkResources(r providers.Resources) error {
	switch {
	case r.CPUs < 0 || r.CPUs != r.CPUs:
		return invalid("", "invalid number of cpus %v", r.CPUs)
	case r.MemoryBytes < 0 || r.MemoryBytes > 0 && r.MemoryBytes < minMemory:
		return invalid("ask for 6 MiB at least", "invalid memory limit of %d bytes", r.MemoryBytes)
	case r.PIDs < 0:
		return invalid("", "invalid number of processes %d", r.PIDs)
	case r.DiskBytes < 0:
		return invalid("", "invalid disk limit of %d bytes", r.DiskBytes)
	case r.DiskBytes > 0:
		// Some storage drivers bound a container's own files; no engine bounds
		// them and the volumes together.
		return &providers.Error{
			Kind:    providers.ErrUnsupported,
			Message: "docker cannot bound what a workspace writes to disk",
			Next:    "leave the disk limit out, or use provider qemu with it",
		}
	}
	return nil
}

// check refuses limits that this machine cannot give.
func (m *machine) check(r providers.Resources) error {
	switch {
	case r.CPUs > float64(m.cpus):
		return invalid(fmt.Sprintf("ask for %d at most", m.cpus), "%v cpus asked for, the machine has %d", r.CPUs, m.cpus)
	case r.MemoryBytes > m.memory:
		return invalid(fmt.Sprintf("ask for %d bytes at most", m.memory), "%d bytes of memory asked for, the machine has %d", r.MemoryBytes, m.memory)
	case r.CPUs > 0 && !m.limits.cpu:
		return invalid("leave the number of cpus out", "docker cannot limit cpus on this machine")
	case r.MemoryBytes > 0 && !m.limits.memory:
		return invalid("leave the memory limit out", "docker cannot limit memory on this machine")
	case r.PIDs > 0 && !m.limits.pids:
		return invalid("leave the number of processes out", "docker cannot limit processes on this machine")
	}
	return nil
}

// resources fills in the defaults, as far as the machine can enforce them.
func (m *machine) resources(r providers.Resources) container.Resources {
	limits := container.Resources{}
	if m.limits.cpu {
		limits.NanoCPUs = int64(r.CPUs * 1e9)
	}
	if m.limits.memory {
		limits.Memory = r.MemoryBytes
		if limits.Memory == 0 {
			limits.Memory = m.memory / defaultMemoryShare
		}
		if m.limits.swap {
			limits.MemorySwap = limits.Memory // of both together, so no swap
		}
	}
	if m.limits.pids {
		pids := r.PIDs
		if pids == 0 {
			pids = defaultPIDs
		}
		limits.PidsLimit = &pids
	}
	return limits
}
