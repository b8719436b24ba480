package docker

import (
	"context"
	"fmt"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/vendetta-dev/vendetta/providers"
)

// Pause implements providers.Pauser.
func (p *Provider) Pause(ctx context.Context, workspace string) error {
	doing := "pause docker instance of workspace " + workspace
	if _, err := p.grouped(ctx, doing); err != nil {
		return err
	}
	c, err := p.runs(ctx, workspace)
	if err != nil || c.State.Paused {
		return err
	}
	return p.explain(doing, p.engine.ContainerPause(ctx, c.ID))
}

// Resume implements providers.Pauser.
func (p *Provider) Resume(ctx context.Context, workspace string) error {
	doing := "resume docker instance of workspace " + workspace
	if _, err := p.grouped(ctx, doing); err != nil {
		return err
	}
	c, err := p.runs(ctx, workspace)
	if err != nil || !c.State.Paused {
		return err
	}
	return p.explain(doing, p.unpause(ctx, c.ID))
}

// runs returns the container of a workspace where that runs, paused or not.
func (p *Provider) runs(ctx context.Context, workspace string) (container.InspectResponse, error) {
	c, err := p.find(ctx, workspace)
	if err == nil && !c.State.Running {
		err = &providers.Error{Kind: providers.ErrNotFound, Message: fmt.Sprintf("workspace %s is not running", workspace), Next: "start it first"}
	}
	return c, err
}

// unpause lets a container go on; one that is not paused, or not there any more,
// is success.
func (p *Provider) unpause(ctx context.Context, id string) error {
	err := p.engine.ContainerUnpause(ctx, id)
	if err != nil && (cerrdefs.IsNotFound(err) || strings.Contains(err.Error(), "is not paused") || strings.Contains(err.Error(), "is not running")) {
		return nil
	}
	return err
}

// halted does something while a container is paused. One that is stopped, or
// paused by somebody, is left as it is; else it goes on afterwards, whatever
// becomes of ctx.
func (p *Provider) halted(ctx context.Context, c container.InspectResponse, do func() error) (err error) {
	if !c.State.Running || c.State.Paused {
		return do()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// The engine pauses even when the asker has hung up.
	steady, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if uerr := p.unpause(after, c.ID); uerr != nil && err == nil {
			err = fmt.Errorf("let it go on: %w", uerr)
		}
	}()
	if err := p.engine.ContainerPause(steady, c.ID); err != nil {
		return fmt.Errorf("pause it: %w", err)
	}
	return do()
}
