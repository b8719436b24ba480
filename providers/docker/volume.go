package docker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"

	"github.com/vendetta-dev/vendetta/providers"
)

// pair is the names of the two volumes that belong together.
type pair struct{ project, state string }

// A workspace has one pair; a restore fills the other one and then lets go of the
// first, as volumes cannot be renamed.
func volumePairs(workspace string) [2]pair {
	name := instanceName(workspace)
	return [2]pair{
		{name + "-workspace", name + "-state"},
		{name + "-workspace-2", name + "-state-2"},
	}
}

func snapshotVolumes(workspace, snapshot string) pair {
	name := instanceName(workspace) + "-snapshot-" + snapshot
	return pair{name + "-workspace", name + "-state"}
}

func (v pair) names() []string { return []string{v.project, v.state} }

// mounts puts the pair where every instance has it. The engine makes the volumes
// that it does not have, with these labels.
func (v pair) mounts(labels map[string]string, readOnly bool) []mount.Mount {
	kept := &mount.VolumeOptions{NoCopy: true, Labels: labels}
	return []mount.Mount{
		{Type: mount.TypeVolume, Source: v.project, Target: providers.Project, ReadOnly: readOnly, VolumeOptions: kept},
		{Type: mount.TypeVolume, Source: v.state, Target: providers.GuestState, ReadOnly: readOnly, VolumeOptions: kept},
	}
}

// volumes returns the pair that Create mounts and which of it is not there yet.
func (p *Provider) volumes(ctx context.Context, workspace string) (v pair, fresh []string, err error) {
	pairs := volumePairs(workspace)
	// Every volume whose name begins like that, whoever made it.
	all, err := p.engine.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("name", instanceName(workspace)+"-"))})
	if err != nil {
		return pair{}, nil, err
	}
	there := map[string]*volume.Volume{}
	for _, one := range all.Volumes {
		there[one.Name] = one
	}
	v = pairs[0]
	first, second := there[pairs[0].project], there[pairs[1].project]
	// Both are left when the containers of a restore that was cut off were removed
	// by hand; then the later pair is the one that may not be whole.
	if second != nil && p.owns(second.Labels, workspace) && (first == nil || turn(second.Labels) < turn(first.Labels)) {
		v = pairs[1]
	}
	for _, name := range v.names() {
		switch one := there[name]; {
		case one == nil:
			fresh = append(fresh, name)
		case !p.owns(one.Labels, workspace):
			return pair{}, nil, &providers.Error{
				Message: fmt.Sprintf("create docker instance of workspace %s: a volume named %s exists that is not this server's", workspace, name),
				Next:    fmt.Sprintf("remove it on the node if nobody needs it: docker volume rm %s", name),
			}
		}
	}
	return v, fresh, nil
}

// turn says how many restores came before a pair was made.
func turn(labels map[string]string) int {
	n, _ := strconv.Atoi(labels[labelTurn]) // the first pair has no such label
	return n
}

// ownVolumes are all of a workspace, those of its snapshots included.
func (p *Provider) ownVolumes(ctx context.Context, workspace string) ([]*volume.Volume, error) {
	all, err := p.engine.VolumeList(ctx, volume.ListOptions{Filters: p.filter(workspace)})
	return slices.DeleteFunc(all.Volumes, func(one *volume.Volume) bool { return !p.owns(one.Labels, workspace) }), err
}

// filter selects what carries the labels of this server and a workspace.
func (p *Provider) filter(workspace string, labels ...string) filters.Args {
	f := filters.NewArgs(
		filters.Arg("label", providers.LabelServer+"="+p.options.ServerID),
		filters.Arg("label", providers.LabelWorkspace+"="+workspace),
	)
	for _, label := range labels {
		f.Add("label", label)
	}
	return f
}

// removeVolumes removes a workspace's volumes, those of its snapshots included;
// absent ones are success, another server's are left alone.
func (p *Provider) removeVolumes(ctx context.Context, workspace string) error {
	all, err := p.ownVolumes(ctx, workspace)
	if err != nil {
		return err
	}
	for _, one := range all {
		if err := p.removeVolume(ctx, one.Name); err != nil {
			return err
		}
	}
	return nil
}

func (p *Provider) removeVolume(ctx context.Context, name string) error {
	if err := p.engine.VolumeRemove(ctx, name, false); err != nil && !cerrdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// isProjectVolume says whether a volume is of a workspace's own pairs.
func isProjectVolume(workspace, name string) bool {
	for _, v := range volumePairs(workspace) {
		if slices.Contains(v.names(), name) {
			return true
		}
	}
	return false
}

// isSnapshotVolume says whether a volume is of a workspace's snapshot, and of which.
func isSnapshotVolume(workspace, name string) (snapshot string, ok bool) {
	rest, ok := strings.CutPrefix(name, instanceName(workspace)+"-snapshot-")
	if !ok {
		return "", false
	}
	for _, kind := range []string{"-workspace", "-state"} {
		if snapshot, ok := strings.CutSuffix(rest, kind); ok {
			return snapshot, true
		}
	}
	return "", false
}
