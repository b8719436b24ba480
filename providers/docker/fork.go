package docker

import (
	"cmp"
	"context"
	"fmt"

	"github.com/docker/docker/api/types/container"

	"github.com/vendetta-dev/vendetta/providers"
)

// Fork implements providers.Forker. The origin is paused while its root and its
// volumes are copied; the fork is left stopped.
func (p *Provider) Fork(ctx context.Context, origin string, spec providers.Spec) (providers.Instance, error) {
	doing := fmt.Sprintf("fork workspace %s to %s", origin, spec.Workspace)
	if err := check(spec); err != nil {
		return providers.Instance{}, err
	}
	if err := checkWorkspace(origin); err != nil {
		return providers.Instance{}, err
	}
	if origin == spec.Workspace {
		return providers.Instance{}, invalid("give the fork an id of its own", "workspace %s cannot be its own fork", origin)
	}
	m, err := p.grouped(ctx, doing)
	if err != nil {
		return providers.Instance{}, err
	}
	if err := p.checkGuestProgram(); err != nil {
		return providers.Instance{}, err
	}
	f, err := p.mend(ctx, spec.Workspace)
	if err != nil {
		return providers.Instance{}, err
	}
	if f.instance != nil {
		return p.Inspect(ctx, spec.Workspace)
	}
	c, err := p.find(ctx, origin)
	if err != nil {
		return providers.Instance{}, err
	}
	if err := m.check(spec.Resources); err != nil {
		return providers.Instance{}, err
	}
	made, err := p.fork(ctx, c, m, spec)
	if err != nil {
		return providers.Instance{}, p.explain(doing, err)
	}
	return made, nil
}

func (p *Provider) fork(ctx context.Context, c container.InspectResponse, m *machine, spec providers.Spec) (_ providers.Instance, err error) {
	volumes, fresh, err := p.volumes(ctx, spec.Workspace)
	if err != nil {
		return providers.Instance{}, err
	}
	if len(fresh) < len(volumes.names()) {
		return providers.Instance{}, &providers.Error{
			Kind:    providers.ErrInvalid,
			Message: fmt.Sprintf("workspace %s has a volume already", spec.Workspace),
			Next:    "fork to a new workspace",
		}
	}
	defer func() {
		if err == nil {
			return
		}
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		uerr := p.undo(after, spec.Workspace, volumes.names())
		if uerr == nil {
			uerr = p.removeImage(after, rootImage(spec.Workspace))
		}
		if uerr != nil {
			p.options.Logger.Warn("remove half-made fork", "workspace", spec.Workspace, "error", uerr)
		}
	}()
	if _, err = p.meet(ctx, spec.Workspace); err != nil {
		return providers.Instance{}, err
	}
	from := specOf(c)
	spec.Name = cmp.Or(spec.Name, from.Name)
	spec.Network = cmp.Or(spec.Network, from.Network)
	name := rootImage(spec.Workspace)
	err = p.keep(ctx, c, kept{
		workspace: spec.Workspace,
		image:     name,
		volumes:   volumes,
		labels:    p.labels(spec.Workspace, spec.Generation),
	})
	if err != nil {
		return providers.Instance{}, err
	}
	root := image{id: name, user: guestUser(c.Config.Env), digest: instance(c).Digest, root: name}
	steady, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.CreateTimeout)
	defer cancel()
	if _, err = p.makeContainer(steady, spec, root, volumes, merge(limitsOf(c), spec.Resources, m)); err != nil {
		return providers.Instance{}, err
	}
	if err = ctx.Err(); err != nil {
		return providers.Instance{}, err
	}
	return providers.Instance{
		Workspace:  spec.Workspace,
		Name:       instanceName(spec.Workspace),
		Generation: spec.Generation,
		State:      providers.StateStopped,
		Digest:     root.digest,
	}, nil
}

// merge is limits with what r names in place of theirs.
func merge(limits container.Resources, r providers.Resources, m *machine) container.Resources {
	named := m.resources(r)
	if r.CPUs > 0 {
		limits.NanoCPUs = named.NanoCPUs
	}
	if r.MemoryBytes > 0 {
		limits.Memory, limits.MemorySwap = named.Memory, named.MemorySwap
	}
	if r.PIDs > 0 {
		limits.PidsLimit = named.PidsLimit
	}
	return limits
}
