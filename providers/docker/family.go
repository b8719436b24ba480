package docker

import (
	"context"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"

	"github.com/vendetta-dev/vendetta/providers"
)

// A workspace's containers beside its instance are named like that with one of
// these endings. They never run; one that is found by a later call was left by
// a process that died at its work.
const (
	// endSource mounts the volumes that are copied from, read-only.
	endSource = "-source"
	// endTarget mounts the volumes that are filled. Where it is there they may
	// be half filled.
	endTarget = "-target"
	// endOld is the instance that a restore is about to replace.
	endOld = "-old"
)

// family is a workspace's containers.
type family struct {
	instance *container.Summary
	// others by the ending of their names.
	others map[string]*container.Summary
}

func (p *Provider) family(ctx context.Context, workspace string) (family, error) {
	f := family{others: map[string]*container.Summary{}}
	all, err := p.engine.ContainerList(ctx, container.ListOptions{All: true, Filters: p.filter(workspace)})
	if err != nil {
		return f, p.explain("look up docker instance of workspace "+workspace, err)
	}
	for i := range all {
		c := &all[i]
		if !p.owns(c.Labels, workspace) {
			continue
		}
		for _, name := range c.Names {
			switch end, ours := strings.CutPrefix(name, "/"+instanceName(workspace)); {
			case !ours:
			case end == "":
				f.instance = c
			case end == endSource, end == endTarget, end == endOld:
				f.others[end] = c
			}
		}
	}
	return f, nil
}

// mend puts right what a process that died left half done, and returns the
// family that is left. What is not whole is removed: the copies that a snapshot,
// a restore or a fork had begun, and a snapshot's volumes without its image,
// which is made last. An instance that was to be replaced takes its place again,
// unless the new one has it already.
func (p *Provider) mend(ctx context.Context, workspace string) (family, error) {
	f, err := p.family(ctx, workspace)
	if err != nil {
		return f, err
	}
	doing := "clean up after a change to workspace " + workspace + " that was cut off"
	if old := f.others[endOld]; old != nil && f.instance == nil {
		if err := p.engine.ContainerRename(ctx, old.ID, instanceName(workspace)); err != nil {
			return f, p.explain(doing, err)
		}
		f.instance = old
		delete(f.others, endOld)
	}
	spoilt := map[string]bool{}
	if target := f.others[endTarget]; target != nil {
		for _, name := range volumesOf(target.Mounts) {
			spoilt[name] = true
		}
	}
	for _, end := range []string{endSource, endOld, endTarget} {
		if other := f.others[end]; other != nil {
			if err := p.removeContainer(ctx, other.ID); err != nil {
				return f, p.explain(doing, err)
			}
			delete(f.others, end)
		}
	}
	return f, p.explain(doing, p.removeStale(ctx, workspace, f, spoilt))
}

// removeStale removes the volumes of a workspace that its instance does not mount
// and that no snapshot has, and of those without an instance the spoilt ones.
func (p *Provider) removeStale(ctx context.Context, workspace string, f family, spoilt map[string]bool) error {
	all, err := p.ownVolumes(ctx, workspace)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	if f.instance != nil {
		for _, name := range volumesOf(f.instance.Mounts) {
			used[name] = true
		}
	}
	for _, one := range all {
		stale := spoilt[one.Name] || f.instance != nil && isProjectVolume(workspace, one.Name)
		if snapshot, of := isSnapshotVolume(workspace, one.Name); of {
			_, err := p.snapshotImage(ctx, workspace, snapshot)
			if err != nil && !isNotFound(err) {
				return err
			}
			stale = err != nil
		}
		if stale && !used[one.Name] {
			if err := p.removeVolume(ctx, one.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// mended is find after mend where there is no instance.
func (p *Provider) mended(ctx context.Context, workspace string) (container.InspectResponse, error) {
	c, err := p.find(ctx, workspace)
	if !isNotFound(err) {
		return c, err
	}
	if f, ferr := p.family(ctx, workspace); ferr != nil || f.others[endOld] == nil {
		return c, err
	}
	if _, err := p.mend(ctx, workspace); err != nil {
		return c, err
	}
	return p.find(ctx, workspace)
}

// volumesOf are the names of the volumes that a container mounts.
func volumesOf(mounts []container.MountPoint) []string {
	var names []string
	for _, m := range mounts {
		if m.Type == mount.TypeVolume {
			names = append(names, m.Name)
		}
	}
	return names
}

// pairOf is the pair that an instance mounts.
func pairOf(mounts []container.MountPoint) pair {
	var v pair
	for _, m := range mounts {
		switch {
		case m.Type != mount.TypeVolume:
		case m.Destination == providers.Project:
			v.project = m.Name
		case m.Destination == providers.GuestState:
			v.state = m.Name
		}
	}
	return v
}
