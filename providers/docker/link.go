package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/docker/api/types/container"
	"github.com/sourcegraph/conc"

	"net"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/link"
)

// linkFolder is mounted into the instance.
func (p *Provider) linkFolder(workspace string) string {
	return filepath.Join(p.folder(workspace), "link")
}

// meet returns the listener of a workspace's link, made when there is none.
func (p *Provider) meet(ctx context.Context, workspace string) (*link.Listener, error) {
	m, err := p.machine(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.links[workspace]; l != nil {
		return l, nil
	}
	// What keeps other users of the machine out is this folder's mode. A root
	// that the engine remapped has to get through it, by the path alone.
	mode, options := os.FileMode(0o700), link.Options{Logger: p.options.Logger}
	if m.remapped {
		mode, options.SocketMode = 0o711, 0o666
	}
	if m.guestUID >= 0 {
		// Processes of other users inside see the socket too.
		options.Peer = func(uid uint32) error {
			if int64(uid) != m.guestUID {
				return fmt.Errorf("user %d is not the instance's root %d", uid, m.guestUID)
			}
			return nil
		}
	}
	for _, folder := range []string{p.options.StateDir, p.folder(workspace)} {
		if err := os.MkdirAll(folder, mode); err != nil {
			return nil, explained("make link of workspace "+workspace, err)
		}
		if err := os.Chmod(folder, mode); err != nil {
			return nil, explained("make link of workspace "+workspace, err)
		}
	}
	l, err := link.Listen(p.linkFolder(workspace), options)
	if err != nil {
		return nil, explained("make link of workspace "+workspace, err)
	}
	p.links[workspace] = l
	return l, nil
}

// part ends a workspace's link and removes its folder.
func (p *Provider) part(workspace string) error {
	p.mu.Lock()
	l := p.links[workspace]
	delete(p.links, workspace)
	p.mu.Unlock()
	if l != nil {
		if err := l.Close(); err != nil {
			p.options.Logger.Warn("close guest link", "workspace", workspace, "error", err)
		}
	}
	return os.RemoveAll(p.folder(workspace))
}

// Connect implements providers.Provider. It ends early when the instance does.
func (p *Provider) Connect(ctx context.Context, workspace string) (net.Conn, error) {
	c, err := p.find(ctx, workspace)
	if err != nil {
		return nil, err
	}
	if !c.State.Running {
		return nil, p.ended(ctx, workspace, c)
	}
	if c.State.Paused {
		return nil, &providers.Error{Message: fmt.Sprintf("workspace %s is paused", workspace), Next: "resume it first"}
	}
	l, err := p.meet(ctx, workspace)
	if err != nil {
		return nil, err
	}
	waiting, stop := context.WithCancelCause(ctx)
	var watch conc.WaitGroup
	watch.Go(func() { p.watchEnd(waiting, c.ID, stop) })
	conn, err := l.Connect(waiting)
	stop(nil)
	watch.Wait()
	if err == nil {
		return conn, nil
	}
	if again, ferr := p.find(ctx, workspace); ferr == nil && !again.State.Running {
		return nil, p.ended(ctx, workspace, again)
	}
	return nil, p.explain("connect to the guest of workspace "+workspace, err)
}

// watchEnd calls stop when the container ends.
func (p *Provider) watchEnd(ctx context.Context, id string, stop context.CancelCauseFunc) {
	over, failed := p.engine.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case <-over:
		stop(fmt.Errorf("the instance ended"))
	case err := <-failed:
		if ctx.Err() == nil {
			stop(err)
		}
	}
}

// ended is the error for a container that does not run.
func (p *Provider) ended(ctx context.Context, workspace string, c container.InspectResponse) error {
	i := instance(c)
	message := fmt.Sprintf("workspace %s is not running", workspace)
	if i.Message != "" {
		message += ": " + i.Message
	}
	if last := p.lastWords(ctx, c.ID, logTail, logQuote); last != "" {
		message += ": " + last
	}
	return &providers.Error{Message: message, Next: "start it again; when it ends again look at docker logs " + i.Name}
}
