package docker

import (
	"context"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/volume"

	"github.com/vendetta-dev/vendetta/providers"
)

func projectVolume(workspace string) string { return instanceName(workspace) + "-workspace" }

func stateVolume(workspace string) string { return instanceName(workspace) + "-state" }

func volumeNames(workspace string) []string {
	return []string{projectVolume(workspace), stateVolume(workspace)}
}

// makeVolumes makes the volumes that are missing and returns their names, those
// made before an error included.
func (p *Provider) makeVolumes(ctx context.Context, spec providers.Spec) (fresh []string, err error) {
	for _, name := range volumeNames(spec.Workspace) {
		there, err := p.engine.VolumeInspect(ctx, name)
		switch {
		case cerrdefs.IsNotFound(err):
		case err != nil:
			return fresh, err
		case !p.owns(there.Labels, spec.Workspace):
			return fresh, &providers.Error{
				Message: fmt.Sprintf("create docker instance of workspace %s: a volume named %s exists that is not this server's", spec.Workspace, name),
				Next:    fmt.Sprintf("remove it on the node if nobody needs it: docker volume rm %s", name),
			}
		default:
			continue
		}
		if _, err := p.engine.VolumeCreate(ctx, volume.CreateOptions{
			Name:   name,
			Driver: "local",
			Labels: p.labels(spec.Workspace, spec.Generation),
		}); err != nil {
			return fresh, err
		}
		fresh = append(fresh, name)
	}
	return fresh, nil
}

// removeVolumes removes a workspace's volumes; absent ones are success, another
// server's are left alone.
func (p *Provider) removeVolumes(ctx context.Context, workspace string) error {
	for _, name := range volumeNames(workspace) {
		there, err := p.engine.VolumeInspect(ctx, name)
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !p.owns(there.Labels, workspace) {
			continue
		}
		if err := p.removeVolume(ctx, name); err != nil {
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
