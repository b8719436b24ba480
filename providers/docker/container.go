package docker

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/sourcegraph/conc/iter"

	"github.com/vendetta-dev/vendetta/providers"
)

// capabilities are Docker's default ones less NET_RAW, MKNOD, AUDIT_WRITE,
// SETPCAP and SETFCAP.
var capabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_CHROOT",
}

// Create implements providers.Provider.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	if err := check(spec); err != nil {
		return providers.Instance{}, err
	}
	f, err := p.family(ctx, spec.Workspace)
	if err == nil && f.instance == nil && len(f.others) > 0 {
		f, err = p.mend(ctx, spec.Workspace)
	}
	if err != nil {
		return providers.Instance{}, err
	}
	if f.instance != nil {
		return p.Inspect(ctx, spec.Workspace)
	}
	if err := p.checkGuestProgram(); err != nil {
		return providers.Instance{}, err
	}
	m, err := p.machine(ctx)
	if err != nil {
		return providers.Instance{}, err
	}
	if err := m.check(spec.Resources); err != nil {
		return providers.Instance{}, err
	}
	image, err := p.image(ctx, m, spec.Image, spec.Digest)
	if err != nil {
		return providers.Instance{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, p.options.CreateTimeout)
	defer cancel()
	made, err := p.make(bounded, spec, m, image)
	if err != nil {
		return providers.Instance{}, p.explain("create docker instance of workspace "+spec.Workspace, err)
	}
	return made, nil
}

// make creates volumes, link and container. After an error it removes what it
// made, as far as the engine lets it; the container last, so that List shows it
// for as long as anything is there.
func (p *Provider) make(ctx context.Context, spec providers.Spec, m *machine, image image) (_ providers.Instance, err error) {
	var fresh []string
	defer func() {
		if err == nil {
			return
		}
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if cerr := p.undo(after, spec.Workspace, fresh); cerr != nil {
			p.options.Logger.Warn("remove half-made instance", "workspace", spec.Workspace, "error", cerr)
		}
	}()
	if _, err = p.meet(ctx, spec.Workspace); err != nil {
		return providers.Instance{}, err
	}
	volumes, missing, err := p.volumes(ctx, spec.Workspace)
	if err != nil {
		return providers.Instance{}, err
	}
	fresh = missing
	// The engine goes on with what it was asked for when the asker hangs up, and
	// it could not be undone before it is there. So this is waited for.
	steady, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.CreateTimeout)
	defer cancel()
	made, err := p.makeContainer(steady, spec, image, volumes, m.resources(spec.Resources))
	if err != nil {
		return providers.Instance{}, err
	}
	if err = ctx.Err(); err != nil {
		return providers.Instance{}, err
	}
	if err = p.giveProject(ctx, made, image.user); err != nil {
		return providers.Instance{}, err
	}
	return providers.Instance{
		Workspace:  spec.Workspace,
		Name:       instanceName(spec.Workspace),
		Generation: spec.Generation,
		State:      providers.StateStopped,
		Digest:     image.digest,
	}, nil
}

// makeContainer makes the instance's container, and with it the volumes that are
// not there, and returns its id.
func (p *Provider) makeContainer(ctx context.Context, spec providers.Spec, image image, volumes pair, limits container.Resources) (string, error) {
	name := instanceName(spec.Workspace)
	made, err := p.engine.ContainerCreate(ctx, p.config(spec, image), p.hostConfig(spec, volumes, limits), nil, nil, name)
	if cerrdefs.IsConflict(err) {
		err = &providers.Error{
			Message: fmt.Sprintf("create docker instance of workspace %s: a container named %s exists that is not this server's", spec.Workspace, name),
			Next:    fmt.Sprintf("remove it on the node if nobody needs it: docker rm %s", name),
			Cause:   err,
		}
	}
	for _, warning := range made.Warnings {
		p.options.Logger.Warn("docker warns", "workspace", spec.Workspace, "warning", warning)
	}
	return made.ID, err
}

// undo removes what a failed make left: the container where there is one, the
// volumes it made, the link.
func (p *Provider) undo(ctx context.Context, workspace string, volumes []string) error {
	c, err := p.find(ctx, workspace)
	switch {
	case err == nil:
		if err := p.removeContainer(ctx, c.ID); err != nil {
			return err
		}
	case !isNotFound(err):
		return err
	}
	for _, volume := range volumes {
		if err := p.removeVolume(ctx, volume); err != nil {
			return err
		}
	}
	return p.part(workspace)
}

func (p *Provider) config(spec providers.Spec, image image) *container.Config {
	host := spec.Name
	if host == "" {
		host = spec.Workspace
	}
	user := image.user
	if user == "" {
		user = "0"
	}
	stop := 10
	labels := p.labels(spec.Workspace, spec.Generation)
	labels[labelImage], labels[labelRoot] = image.digest, image.root
	return &container.Config{
		Hostname:   host,
		User:       "0",
		Env:        []string{providers.EnvGuestUser + "=" + user},
		Image:      image.id,
		WorkingDir: providers.Project,
		Entrypoint: []string{
			providers.GuestProgram,
			"--link", path.Join(providers.GuestLink, providers.GuestSocket),
			"--state", providers.GuestState,
			"--project", providers.Project,
		},
		Cmd:         []string{},
		Labels:      labels,
		StopSignal:  "SIGTERM",
		StopTimeout: &stop,
		// The image's check would run beside the guest, which reports for itself.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
}

func (p *Provider) hostConfig(spec providers.Spec, volumes pair, limits container.Resources) *container.HostConfig {
	network := container.NetworkMode("bridge")
	if spec.Network == providers.NetworkNone {
		network = "none"
	}
	private := &mount.BindOptions{Propagation: mount.PropagationRPrivate}
	return &container.HostConfig{
		NetworkMode:   network,
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		CapDrop:       []string{"ALL"},
		CapAdd:        capabilities,
		SecurityOpt:   []string{"no-new-privileges:true"},
		IpcMode:       container.IPCModePrivate,
		LogConfig: container.LogConfig{
			Type:   "json-file",
			Config: map[string]string{"max-size": logSize, "max-file": logFiles},
		},
		Resources: limits,
		Mounts: append([]mount.Mount{
			{Type: mount.TypeBind, Source: p.options.GuestProgram, Target: providers.GuestProgram, ReadOnly: true, BindOptions: private},
			{Type: mount.TypeBind, Source: p.linkFolder(spec.Workspace), Target: providers.GuestLink, ReadOnly: true, BindOptions: private},
		}, volumes.mounts(p.labels(spec.Workspace, spec.Generation), false)...),
	}
}

// Start implements providers.Provider.
func (p *Provider) Start(ctx context.Context, workspace string) error {
	c, err := p.mended(ctx, workspace)
	if err != nil {
		return err
	}
	// The guest dials as soon as it runs, and the folder it is mounted from may
	// have gone since.
	if _, err := p.meet(ctx, workspace); err != nil {
		return err
	}
	if c.State.Paused {
		err = p.engine.ContainerUnpause(ctx, c.ID)
	} else if !c.State.Running {
		err = p.engine.ContainerStart(ctx, c.ID, container.StartOptions{})
	}
	return p.explain("start docker instance of workspace "+workspace, err)
}

// Stop implements providers.Provider.
func (p *Provider) Stop(ctx context.Context, workspace string, grace time.Duration) error {
	c, err := p.find(ctx, workspace)
	if err != nil {
		return err
	}
	doing := "stop docker instance of workspace " + workspace
	if c.State.Paused {
		// A paused guest would not get its signal before the grace is over.
		if err := p.unpause(ctx, c.ID); err != nil {
			return p.explain(doing, err)
		}
	}
	// Whole seconds are what the API takes; a negative number would be for ever.
	seconds := int(max(0, (grace+time.Second-1)/time.Second))
	err = p.engine.ContainerStop(ctx, c.ID, container.StopOptions{Timeout: &seconds})
	return p.explain(doing, err)
}

// Destroy implements providers.Provider.
func (p *Provider) Destroy(ctx context.Context, workspace string, removeVolume bool) error {
	if err := checkWorkspace(workspace); err != nil {
		return err
	}
	doing := "destroy docker instance of workspace " + workspace
	f, err := p.family(ctx, workspace)
	if err == nil && len(f.others) > 0 {
		f, err = p.mend(ctx, workspace)
	}
	if err != nil {
		return err
	}
	if f.instance != nil {
		if err := p.removeContainer(ctx, f.instance.ID); err != nil {
			return p.explain(doing, err)
		}
	}
	if f.instance == nil || f.instance.Labels[labelRoot] != "" {
		if err := p.removeImage(ctx, rootImage(workspace)); err != nil {
			return p.explain(doing, err)
		}
	}
	if removeVolume {
		if err := errors.Join(p.removeVolumes(ctx, workspace), p.removeSnapshotImages(ctx, workspace)); err != nil {
			return p.explain(doing, err)
		}
	}
	return p.explain(doing, p.part(workspace))
}

// removeContainer kills and removes; absent, or being removed by another call, is success
// once it is gone.
func (p *Provider) removeContainer(ctx context.Context, id string) error {
	err := p.engine.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if cerrdefs.IsConflict(err) && strings.Contains(err.Error(), "already in progress") {
		gone, failed := p.engine.ContainerWait(ctx, id, container.WaitConditionRemoved)
		select {
		case <-gone:
			err = nil
		case err = <-failed:
		}
	}
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Inspect implements providers.Provider.
func (p *Provider) Inspect(ctx context.Context, workspace string) (providers.Instance, error) {
	c, err := p.find(ctx, workspace)
	if err == nil {
		return instance(c), nil
	}
	if !isNotFound(err) {
		return providers.Instance{}, err
	}
	f, ferr := p.family(ctx, workspace)
	if ferr != nil {
		return providers.Instance{}, ferr
	}
	for _, end := range []string{endOld, endTarget} {
		if left := f.others[end]; left != nil {
			if c, ierr := p.engine.ContainerInspect(ctx, left.ID); ierr == nil {
				return broken(workspace, instance(c)), nil
			}
		}
	}
	return providers.Instance{}, err
}

// List implements providers.Provider.
func (p *Provider) List(ctx context.Context) ([]providers.Instance, error) {
	all, err := p.engine.ContainerList(ctx, container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", providers.LabelServer+"="+p.options.ServerID)),
	})
	if err != nil {
		return nil, p.explain("list docker instances", err)
	}
	found, err := iter.Mapper[container.Summary, []providers.Instance]{MaxGoroutines: 8}.MapErr(all,
		func(summary *container.Summary) ([]providers.Instance, error) {
			c, err := p.engine.ContainerInspect(ctx, summary.ID)
			if cerrdefs.IsNotFound(err) {
				return nil, nil // removed meanwhile
			}
			if err != nil {
				return nil, err
			}
			workspace := c.Config.Labels[providers.LabelWorkspace]
			if !p.owns(c.Config.Labels, workspace) {
				return nil, nil
			}
			switch strings.TrimPrefix(c.Name, "/") {
			case instanceName(workspace):
				return []providers.Instance{instance(c)}, nil
			case instanceName(workspace) + endOld, instanceName(workspace) + endTarget:
				// Told below, where it is all there is of a workspace.
				return []providers.Instance{broken(workspace, instance(c))}, nil
			}
			return nil, nil
		})
	if err != nil {
		return nil, p.explain("list docker instances", err)
	}
	whole := map[string]bool{}
	instances := []providers.Instance{}
	for _, last := range []bool{false, true} {
		for _, one := range found {
			for _, i := range one {
				if (i.State == providers.StateBroken) == last && !whole[i.Workspace] {
					whole[i.Workspace] = true
					instances = append(instances, i)
				}
			}
		}
	}
	return instances, nil
}

// broken is what is left of a workspace whose instance was being made or replaced.
func broken(workspace string, i providers.Instance) providers.Instance {
	i.State, i.Name, i.Message = providers.StateBroken, instanceName(workspace), "a fork or a restore of it was cut off"
	return i
}

// find returns the container of a workspace, ErrNotFound when there is none or
// it is another server's.
func (p *Provider) find(ctx context.Context, workspace string) (container.InspectResponse, error) {
	if err := checkWorkspace(workspace); err != nil {
		return container.InspectResponse{}, err
	}
	c, err := p.engine.ContainerInspect(ctx, instanceName(workspace))
	switch {
	case cerrdefs.IsNotFound(err):
		return c, notFound(workspace)
	case err != nil:
		return c, p.explain("look up docker instance of workspace "+workspace, err)
	case !p.owns(c.Config.Labels, workspace):
		return c, notFound(workspace)
	}
	return c, nil
}

// owns says whether labels are of this server and workspace.
func (p *Provider) owns(labels map[string]string, workspace string) bool {
	return labels[providers.LabelServer] == p.options.ServerID && labels[providers.LabelWorkspace] == workspace
}

// instance is the contract's view of a container.
func instance(c container.InspectResponse) providers.Instance {
	i := providers.Instance{
		Workspace: c.Config.Labels[providers.LabelWorkspace],
		Name:      strings.TrimPrefix(c.Name, "/"),
		State:     providers.StateStopped,
	}
	// A label that is no number was never ours; it reads as generation 0.
	i.Generation, _ = strconv.ParseInt(c.Config.Labels[providers.LabelGeneration], 10, 64)
	// "0001-01-01T00:00:00Z" when it never ran.
	if started, err := time.Parse(time.RFC3339Nano, c.State.StartedAt); err == nil && started.Year() > 1 {
		i.StartedAt = started
	}
	// One that was made before the label tells the image itself.
	if i.Digest = c.Config.Labels[labelImage]; i.Digest == "" {
		i.Digest = c.Image
	}
	switch {
	case c.State.Dead, c.State.Status == container.StateRemoving:
		i.State = providers.StateBroken
		i.Message = "docker could not remove it: " + orWord(c.State.Error, "state "+c.State.Status)
	case c.State.Paused:
		i.State = providers.StatePaused
	case c.State.Running:
		i.State = providers.StateRunning
	case c.State.OOMKilled:
		i.Message = "killed because it used up its memory"
	case c.State.Error != "":
		i.Message = c.State.Error
	case c.State.Status != container.StateCreated:
		i.Message = fmt.Sprintf("ended with status %d", c.State.ExitCode)
	}
	return i
}

func orWord(word, otherwise string) string {
	if word == "" {
		return otherwise
	}
	return word
}
