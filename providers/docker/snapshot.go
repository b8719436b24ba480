package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	engineimage "github.com/docker/docker/api/types/image"

	"github.com/vendetta-dev/vendetta/providers"
)

// A snapshot is an image, vendetta-snapshot/ID:NAME, with the root, and two
// volumes with /workspace and the guest's folder. The image is made last: a
// snapshot is there when it is.
const (
	snapshotRepository = "vendetta-snapshot/"
	// rootRepository names the image that an instance has no other name for: a
	// fork's, and a snapshot's that was removed while its instance lives on it.
	rootRepository = "vendetta-root/"
	// comment marks the images that were made here. Unlike a label it does not
	// pass on to what a user builds from them.
	comment = "made by vendetta"
)

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func snapshotImageName(workspace, name string) string {
	return snapshotRepository + workspace + ":" + name
}

func rootImage(workspace string) string { return rootRepository + workspace + ":latest" }

func checkSnapshot(workspace, name string) error {
	if err := checkWorkspace(workspace); err != nil {
		return err
	}
	if !snapshotName.MatchString(name) {
		return invalid("use small letters, digits and dashes, 40 at most", "invalid snapshot name %q", name)
	}
	return nil
}

// Snapshot implements providers.Snapshotter.
func (p *Provider) Snapshot(ctx context.Context, workspace, name string) (providers.Snapshot, error) {
	doing := fmt.Sprintf("snapshot workspace %s as %s", workspace, name)
	if err := checkSnapshot(workspace, name); err != nil {
		return providers.Snapshot{}, err
	}
	if _, err := p.grouped(ctx, doing); err != nil {
		return providers.Snapshot{}, err
	}
	there, err := p.snapshotImage(ctx, workspace, name)
	if err == nil {
		return snapshotOf(name, there.Config.Labels, there.Size), nil
	}
	if !isNotFound(err) {
		return providers.Snapshot{}, err
	}
	if _, err := p.mend(ctx, workspace); err != nil {
		return providers.Snapshot{}, err
	}
	c, err := p.find(ctx, workspace)
	if err != nil {
		return providers.Snapshot{}, err
	}
	labels := p.labels(workspace, instance(c).Generation)
	labels[labelSnapshot] = name
	if err := p.keep(ctx, c, kept{
		workspace: workspace,
		image:     snapshotImageName(workspace, name),
		volumes:   snapshotVolumes(workspace, name),
		labels:    labels,
	}); err != nil {
		return providers.Snapshot{}, p.explain(doing, err)
	}
	made, err := p.snapshotImage(ctx, workspace, name)
	if err != nil {
		return providers.Snapshot{}, err
	}
	return snapshotOf(name, made.Config.Labels, made.Size), nil
}

// kept is where the state of an instance goes.
type kept struct {
	// workspace that it is kept for.
	workspace string
	// image is the name that the root gets.
	image   string
	volumes pair
	// labels of image and volumes.
	labels map[string]string
}

// keep copies what an instance is to k, halting it meanwhile. After an error
// nothing of it is left. It does not return before the engine is done with what
// it was asked for, also when ctx ends.
func (p *Provider) keep(ctx context.Context, c container.InspectResponse, k kept) (err error) {
	base, err := p.engine.ImageInspect(ctx, c.Image)
	if err != nil {
		return fmt.Errorf("look up its image: %w", err)
	}
	work, err := p.prepare(ctx, k.workspace, c.Image, pairOf(c.Mounts), k.volumes, k.labels)
	defer func() {
		if err == nil {
			err = work.end(ctx)
		}
		if err == nil {
			return
		}
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if uerr := errors.Join(p.removeImage(after, k.image), work.undo(ctx)); uerr != nil {
			p.options.Logger.Warn("remove half-made copy", "workspace", k.workspace, "error", uerr)
		}
	}()
	if err != nil {
		return err
	}
	return p.halted(ctx, c, func() error {
		copied, err := work.run(ctx)
		if err != nil {
			return err
		}
		labels := map[string]string{
			labelImage:   instance(c).Digest,
			labelCreated: time.Now().UTC().Format(time.RFC3339Nano),
			labelExtra:   strconv.FormatInt(copied-base.Size, 10),
			// What c itself was made from says nothing of the copy.
			labelSnapshot: "",
			labelRoot:     "",
		}
		for label, value := range k.labels {
			labels[label] = value
		}
		return p.commit(ctx, c.ID, k.image, labels)
	})
}

// commit makes an image of a container's root. The engine cannot be stopped at
// it, so it is waited for: what appears after the asker has gone is nobody's.
func (p *Provider) commit(ctx context.Context, id, name string, labels map[string]string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.room(); err != nil {
		return err
	}
	changes := []string{}
	for label, value := range labels {
		changes = append(changes, "LABEL "+label+"="+strconv.Quote(value))
	}
	slices.Sort(changes)
	steady, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
	defer cancel()
	_, err := p.engine.ContainerCommit(steady, id, container.CommitOptions{
		Reference: name, Comment: comment, Changes: changes,
	})
	return errors.Join(err, ctx.Err())
}

// snapshotImage returns the image of a snapshot, ErrNotFound when there is none
// or it is another server's.
func (p *Provider) snapshotImage(ctx context.Context, workspace, name string) (engineimage.InspectResponse, error) {
	doing := fmt.Sprintf("look up snapshot %s of workspace %s", name, workspace)
	found, err := p.engine.ImageInspect(ctx, snapshotImageName(workspace, name))
	if err != nil && !cerrdefs.IsNotFound(err) {
		return found, p.explain(doing, err)
	}
	if err != nil || found.Config == nil || !p.owns(found.Config.Labels, workspace) || found.Config.Labels[labelSnapshot] != name {
		return found, &providers.Error{
			Kind:    providers.ErrNotFound,
			Message: fmt.Sprintf("workspace %s has no snapshot named %s here", workspace, name),
		}
	}
	return found, nil
}

// Snapshots implements providers.Snapshotter.
func (p *Provider) Snapshots(ctx context.Context, workspace string) ([]providers.Snapshot, error) {
	if err := checkWorkspace(workspace); err != nil {
		return nil, err
	}
	images, err := p.engine.ImageList(ctx, engineimage.ListOptions{Filters: p.filter(workspace, labelSnapshot)})
	if err != nil {
		return nil, p.explain("list snapshots of workspace "+workspace, err)
	}
	found := []providers.Snapshot{}
	for _, one := range images {
		name := one.Labels[labelSnapshot]
		if name != "" && slices.Contains(one.RepoTags, snapshotImageName(workspace, name)) {
			found = append(found, snapshotOf(name, one.Labels, one.Size))
		}
	}
	slices.SortFunc(found, func(a, b providers.Snapshot) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.Name, b.Name))
	})
	return found, nil
}

// snapshotOf reads an image's labels, which are ours.
func snapshotOf(name string, labels map[string]string, size int64) providers.Snapshot {
	s := providers.Snapshot{Name: name, Bytes: -1}
	s.CreatedAt, _ = time.Parse(time.RFC3339Nano, labels[labelCreated])
	if extra, err := strconv.ParseInt(labels[labelExtra], 10, 64); err == nil {
		s.Bytes = max(0, size+extra)
	}
	return s
}

// Restore implements providers.Snapshotter. The instance that is there is
// replaced only when the volumes of the new one are whole.
func (p *Provider) Restore(ctx context.Context, workspace, name string) (err error) {
	doing := fmt.Sprintf("restore snapshot %s of workspace %s", name, workspace)
	if err := checkSnapshot(workspace, name); err != nil {
		return err
	}
	if _, err := p.grouped(ctx, doing); err != nil {
		return err
	}
	if err := p.checkGuestProgram(); err != nil {
		return err
	}
	if _, err := p.mend(ctx, workspace); err != nil {
		return err
	}
	c, err := p.find(ctx, workspace)
	if err != nil {
		return err
	}
	root, err := p.snapshotImage(ctx, workspace, name)
	if err != nil {
		return err
	}
	if _, err := p.meet(ctx, workspace); err != nil {
		return err
	}
	return p.explain(doing, p.restore(ctx, c, image{
		id:     snapshotImageName(workspace, name),
		user:   guestUser(root.Config.Env),
		digest: root.Config.Labels[labelImage],
		root:   snapshotImageName(workspace, name),
	}, snapshotVolumes(workspace, name)))
}

func (p *Provider) restore(ctx context.Context, c container.InspectResponse, root image, from pair) (err error) {
	workspace := c.Config.Labels[providers.LabelWorkspace]
	spec := specOf(c)
	present := pairOf(c.Mounts)
	next := volumePairs(workspace)[0]
	if next.project == present.project {
		next = volumePairs(workspace)[1]
	}
	project, err := p.engine.VolumeInspect(ctx, present.project)
	if err != nil {
		return err
	}
	labels := p.labels(workspace, spec.Generation)
	labels[labelTurn] = strconv.Itoa(turn(project.Labels) + 1)
	// From its base, which the workspace had no hand in.
	work, err := p.prepare(ctx, workspace, c.Image, from, next, labels)
	defer func() {
		if err == nil {
			err = work.end(ctx)
		} else if uerr := work.undo(ctx); uerr != nil {
			p.options.Logger.Warn("remove half-restored copy", "workspace", workspace, "error", uerr)
		}
	}()
	if err != nil {
		return err
	}
	if _, err := work.run(ctx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// From here on it is done to its end, or put back.
	steady, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.CreateTimeout)
	defer cancel()
	name := instanceName(workspace)
	if err := p.engine.ContainerRename(steady, c.ID, name+endOld); err != nil {
		return err
	}
	if _, err := p.makeContainer(steady, spec, root, next, limitsOf(c)); err != nil {
		return errors.Join(err, p.engine.ContainerRename(steady, c.ID, name))
	}
	// The copy's containers hold on to the image of the one that goes.
	after, done := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
	defer done()
	if err := errors.Join(work.end(ctx), p.settle(after, c)); err != nil {
		// The new instance is whole and in its place; a later call removes the rest.
		p.options.Logger.Warn("remove what a restore replaced", "workspace", workspace, "error", err)
	}
	return nil
}

// settle removes an instance that another one took the place of, with its volumes.
func (p *Provider) settle(ctx context.Context, old container.InspectResponse) error {
	if err := p.removeContainer(ctx, old.ID); err != nil {
		return err
	}
	var errs []error
	for _, name := range pairOf(old.Mounts).names() {
		errs = append(errs, p.removeVolume(ctx, name))
	}
	if workspace := old.Config.Labels[providers.LabelWorkspace]; old.Config.Labels[labelRoot] != "" {
		errs = append(errs, p.removeImage(ctx, rootImage(workspace)))
	}
	return errors.Join(errs...)
}

// specOf is what an instance was made by, as far as its container tells.
func specOf(c container.InspectResponse) providers.Spec {
	i := instance(c)
	spec := providers.Spec{Workspace: i.Workspace, Name: c.Config.Hostname, Generation: i.Generation, Network: providers.NetworkPrivate}
	if c.HostConfig.NetworkMode.IsNone() {
		spec.Network = providers.NetworkNone
	}
	return spec
}

// limitsOf are the limits that an instance has now.
func limitsOf(c container.InspectResponse) container.Resources {
	r := c.HostConfig.Resources
	return container.Resources{NanoCPUs: r.NanoCPUs, Memory: r.Memory, MemorySwap: r.MemorySwap, PidsLimit: r.PidsLimit}
}

// guestUser is the image's user, as Create told the guest.
func guestUser(env []string) string {
	for _, variable := range env {
		if user, ok := strings.CutPrefix(variable, providers.EnvGuestUser+"="); ok {
			return user
		}
	}
	return ""
}

// RemoveSnapshot implements providers.Snapshotter.
func (p *Provider) RemoveSnapshot(ctx context.Context, workspace, name string) error {
	doing := fmt.Sprintf("remove snapshot %s of workspace %s", name, workspace)
	if err := checkSnapshot(workspace, name); err != nil {
		return err
	}
	_, err := p.snapshotImage(ctx, workspace, name)
	if err == nil {
		err = p.untag(ctx, snapshotImageName(workspace, name), rootImage(workspace))
	}
	if err != nil && !isNotFound(err) {
		return p.explain(doing, err)
	}
	all, err := p.ownVolumes(ctx, workspace)
	if err != nil {
		return p.explain(doing, err)
	}
	for _, one := range all {
		if of, ok := isSnapshotVolume(workspace, one.Name); ok && of == name {
			if err := p.removeVolume(ctx, one.Name); err != nil {
				return p.explain(doing, err)
			}
		}
	}
	return nil
}

// untag removes an image, or only its name where an instance lives on it; that
// one then has the name other.
func (p *Provider) untag(ctx context.Context, name, other string) error {
	err := p.removeImage(ctx, name)
	if !cerrdefs.IsConflict(err) {
		return err
	}
	if err := p.engine.ImageTag(ctx, name, other); err != nil {
		return err
	}
	return p.removeImage(ctx, name)
}

// removeImage removes an image's name, and the image where that was the last and
// nothing needs it; an absent one is success.
func (p *Provider) removeImage(ctx context.Context, name string) error {
	_, err := p.engine.ImageRemove(ctx, name, engineimage.RemoveOptions{PruneChildren: true})
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// removeSnapshotImages removes all images that were made of a workspace.
func (p *Provider) removeSnapshotImages(ctx context.Context, workspace string) error {
	images, err := p.engine.ImageList(ctx, engineimage.ListOptions{Filters: p.filter(workspace)})
	if err != nil {
		return err
	}
	for _, one := range images {
		for _, tag := range one.RepoTags {
			if strings.HasPrefix(tag, snapshotRepository+workspace+":") || tag == rootImage(workspace) {
				if err := p.removeImage(ctx, tag); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
