package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/docker/docker/api/types/container"
	"github.com/sourcegraph/conc/pool"

	"github.com/vendetta-dev/vendetta/providers"
)

// A copy of a pair of volumes goes through the engine, as the agent may have no
// way to them but its socket: out of one container that mounts the one pair, into
// a second that mounts the other. Neither ever runs. An instance's own container
// does not serve: the engine holds its lock for as long as an archive is read
// from it, and does not even answer what state it is in.
type copying struct {
	p         *Provider
	workspace string
	labels    map[string]string // of the volumes that are made
	source    string
	target    string
	filled    pair
}

// prepare makes the containers of a copy, from any image that is there. What the
// workspace had of such before must be gone; mend does that. close is to be
// called in every case.
func (p *Provider) prepare(ctx context.Context, workspace, image string, from, into pair, labels map[string]string) (*copying, error) {
	c := &copying{p: p, workspace: workspace, labels: labels, filled: into}
	// Waited for, so that they can be removed when ctx ends.
	steady, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.CreateTimeout)
	defer cancel()
	both := pool.New().WithErrors()
	both.Go(func() (err error) {
		c.target, err = p.idle(steady, workspace, endTarget, image, into, labels, false)
		return err
	})
	both.Go(func() (err error) {
		c.source, err = p.idle(steady, workspace, endSource, image, from, labels, true)
		return err
	})
	if err := both.Wait(); err != nil {
		return c, err
	}
	return c, ctx.Err()
}

// idle makes a container that never runs and mounts a pair.
func (p *Provider) idle(ctx context.Context, workspace, end, image string, v pair, labels map[string]string, readOnly bool) (string, error) {
	made, err := p.engine.ContainerCreate(ctx, &container.Config{
		Image:       image,
		User:        "0",
		Entrypoint:  []string{providers.GuestProgram},
		Cmd:         []string{},
		Labels:      labels,
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}, &container.HostConfig{
		NetworkMode:   "none",
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		CapDrop:       []string{"ALL"},
		SecurityOpt:   []string{"no-new-privileges:true"},
		Mounts:        v.mounts(labels, readOnly),
	}, nil, nil, instanceName(workspace)+end)
	return made.ID, err
}

// run copies and returns the number of bytes.
func (c *copying) run(ctx context.Context) (int64, error) {
	total := int64(0)
	for _, folder := range []string{providers.Project, providers.GuestState} {
		n, err := c.folder(ctx, folder)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// folder copies what lies at one path, owners, modes, links and times included.
func (c *copying) folder(ctx context.Context, at string) (int64, error) {
	// Ends what reads when what writes has failed.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, stat, err := c.p.engine.CopyFromContainer(ctx, c.source, at)
	if err != nil {
		return 0, err
	}
	defer func() { _ = stream.Close() }()
	if !stat.Mode.IsDir() {
		return 0, &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("copy volumes of workspace %s: %s is no folder in its image", c.workspace, at),
			Next:    "use an image without a file or a link of that name",
		}
	}
	counted := &counter{Reader: stream, check: c.p.room}
	err = c.p.engine.CopyToContainer(ctx, c.target, path.Dir(at), counted, container.CopyToContainerOptions{})
	if counted.err != nil {
		err = counted.err // the reason why the engine was not sent the rest
	}
	return counted.n, err
}

// end removes the containers. Volumes that were filled stay. It may be repeated.
func (c *copying) end(ctx context.Context) error {
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	both := pool.New().WithErrors()
	for _, id := range []*string{&c.source, &c.target} {
		if *id == "" {
			continue
		}
		both.Go(func() error {
			err := c.p.removeContainer(after, *id)
			if err == nil {
				*id = ""
			}
			return err
		})
	}
	return both.Wait()
}

// undo removes the containers and the volumes that were filled.
func (c *copying) undo(ctx context.Context) error {
	if err := c.end(ctx); err != nil {
		return err
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	for _, name := range c.filled.names() {
		if err := c.p.removeVolume(after, name); err != nil {
			return err
		}
	}
	return nil
}

// roomStep is how many bytes of a copy go by between two looks at the disk.
const roomStep = 64 << 20

// counter counts what is read and asks now and then whether there is room for more.
type counter struct {
	io.Reader
	check func() error
	n     int64
	asked int64
	err   error
}

func (c *counter) Read(b []byte) (int, error) {
	if c.n >= c.asked {
		if c.err = c.check(); c.err != nil {
			return 0, c.err
		}
		c.asked = c.n + roomStep
	}
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = fmt.Errorf("read: %w", err)
	}
	return n, err
}

// room refuses to fill the engine's disk: a file with holes takes all of its
// length in a copy, and the node needs some of the disk for itself. Where the
// engine's folder cannot be seen from here nothing is known and nothing refused.
func (p *Provider) room() error {
	p.mu.Lock()
	folder := ""
	if p.known != nil {
		folder = p.known.folder
	}
	p.mu.Unlock()
	free, ok := freeBytes(folder)
	if !ok || free >= p.options.KeepFree {
		return nil
	}
	return &providers.Error{
		Kind:    providers.ErrExhausted,
		Message: fmt.Sprintf("the disk of the docker engine has %d MiB left", free>>20),
		Next:    "free space on the node: docker system df shows what uses it; a file with holes takes all of its length in a copy",
	}
}
