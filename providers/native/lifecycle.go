//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/link"
)

// killWait is how long a killed guest may take to be gone; the kernel ends all
// processes of its namespace first.
const killWait = 20 * time.Second

// Stop asks the guest to end and kills it after grace.
func (p *Provider) Stop(ctx context.Context, ws string, grace time.Duration) error {
	if err := checkID("stop", ws); err != nil {
		return err
	}
	if _, err := p.load(ws); errors.Is(err, fs.ErrNotExist) {
		return notFound("stop", ws)
	} else if err != nil {
		return failed("stop", ws, err)
	}
	last, err := p.run(ws)
	if err != nil {
		return failed("stop", ws, err)
	}
	if grace > 0 && last.Alive() {
		if err := last.Signal(unix.SIGTERM); err != nil {
			return failed("stop", ws, err)
		}
		if last.Paused || last.Held { // a halted guest would not hear of it
			if err := p.resume(ws, &last); err != nil {
				return failed("stop", ws, err)
			}
		}
		if _, err := last.Gone(ctx, grace); err != nil {
			return failed("stop", ws, err)
		}
	}
	return failed("stop", ws, p.end(ctx, ws, last))
}

// end kills what runs and clears what it held.
func (p *Provider) end(ctx context.Context, ws string, last run) error {
	if last.Alive() {
		if err := last.Signal(unix.SIGKILL); err != nil {
			return err
		}
		if last.Paused || last.Held { // some freezers keep even the killed
			if err := p.goOn(&last); err != nil {
				return err
			}
		}
		gone, err := last.Gone(ctx, killWait)
		if err != nil {
			return err
		}
		if !gone {
			return fmt.Errorf("process %d does not end", last.PID)
		}
	}
	p.hangUp(ws)
	return p.clear(ctx, ws, last)
}

// clear takes away what a guest that has ended held of the machine. The record goes
// last, so that a repeat goes on where this ended.
func (p *Provider) clear(ctx context.Context, ws string, last run) error {
	if err := p.leave(ctx, last); err != nil {
		return err
	}
	if err := host.RemoveGroups(ctx, last.Cgroups); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(p.instanceDir(ws), runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Destroy ends and removes an instance, and its volume when told to.
func (p *Provider) Destroy(ctx context.Context, ws string, removeVolume bool) error {
	if err := checkID("destroy", ws); err != nil {
		return err
	}
	_, err := p.load(ws)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(p.instanceDir(ws)); err == nil {
			return nil // another server's: not seen, not touched
		}
		if err := p.release(ws); err != nil {
			return failed("destroy", ws, err)
		}
	} else {
		// Records are replaced whole, so one that cannot be read was spoilt by a
		// loss of power, after which nothing runs.
		last, err := p.run(ws)
		if err != nil && !host.Spoilt(err) {
			return failed("destroy", ws, err)
		}
		if err := p.end(ctx, ws, last); err != nil {
			return failed("destroy", ws, err)
		}
		if err := p.trash.Discard(p.instanceDir(ws)); err != nil {
			return failed("destroy", ws, err)
		}
		if err := p.release(ws); err != nil {
			return failed("destroy", ws, err)
		}
	}
	if !removeVolume {
		return nil
	}
	if err := p.discardSnapshots(ws); err != nil {
		return failed("destroy", ws, err)
	}
	return failed("destroy", ws, p.trash.Discard(p.volumeDir(ws)))
}

// Inspect tells what there is of an instance.
func (p *Provider) Inspect(_ context.Context, ws string) (providers.Instance, error) {
	if err := checkID("inspect", ws); err != nil {
		return providers.Instance{}, err
	}
	r, err := p.load(ws)
	if errors.Is(err, fs.ErrNotExist) {
		return providers.Instance{}, notFound("inspect", ws)
	}
	if err != nil {
		return providers.Instance{}, failed("inspect", ws, err)
	}
	i := providers.Instance{Workspace: ws, Name: "vendetta-" + ws, State: providers.StateStopped}
	i.Generation, _ = strconv.ParseInt(r.Labels[providers.LabelGeneration], 10, 64) // our own writing
	i.Digest = r.Digest
	last, err := p.run(ws)
	if err == nil {
		if err := p.mend(ws, &last); err != nil {
			return i, failed("inspect", ws, err)
		}
	}
	_, verr := p.volume(ws)
	switch {
	case r.Restoring != "":
		i.State, i.Message = providers.StateBroken, fmt.Sprintf("its snapshot %s is restored by half", r.Restoring)
	case !r.Ready:
		i.State, i.Message = providers.StateBroken, "half-made"
	case err != nil:
		i.State, i.Message = providers.StateBroken, "unreadable record of its process"
	case last.Alive():
		i.State, i.StartedAt = providers.StateRunning, last.Started
		if last.Paused {
			i.State = providers.StatePaused
		}
		if err := trim(filepath.Join(p.instanceDir(ws), consoleFile)); err != nil {
			p.log.Warn("trim a guest's output", "workspace", ws, "error", err)
		}
	case verr != nil:
		i.State, i.Message = providers.StateBroken, "its volume is gone"
	case last.PID != 0 && last.BootID != host.BootID():
		i.Message = "the machine was restarted"
	case last.PID != 0:
		i.Message = "the guest has ended"
	}
	return i, nil
}

// List tells of all instances of this server.
func (p *Provider) List(ctx context.Context) ([]providers.Instance, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, "instances"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &providers.Error{Message: fmt.Sprintf("list native workspaces: %v", err), Cause: err}
	}
	var all []providers.Instance
	for _, e := range entries {
		if !workspaceID.MatchString(e.Name()) {
			continue
		}
		i, err := p.Inspect(ctx, e.Name())
		if errors.Is(err, providers.ErrNotFound) {
			continue
		}
		if err != nil {
			i = providers.Instance{Workspace: e.Name(), Name: "vendetta-" + e.Name(), State: providers.StateBroken, Message: err.Error()}
		}
		all = append(all, i)
	}
	return all, nil
}

// Connect waits for the guest on the instance's socket.
func (p *Provider) Connect(ctx context.Context, ws string) (net.Conn, error) {
	if _, err := p.ready("connect", ws); err != nil {
		return nil, err
	}
	last, err := p.run(ws)
	if err != nil {
		return nil, failed("connect", ws, err)
	}
	if !last.Alive() {
		return nil, notRunning("connect", ws)
	}
	v, err := p.volume(ws)
	if err != nil {
		return nil, failed("connect", ws, err)
	}
	l, err := p.listener(ws, v)
	if err != nil {
		return nil, failed("connect", ws, err)
	}
	conn, err := l.Connect(ctx)
	return conn, failed("connect", ws, err)
}

// listener is the agent's end of the instance's link, made when first needed.
func (p *Provider) listener(ws string, v volume) (*link.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.listeners[ws]; l != nil {
		return l, nil
	}
	// Only the instance's root, as this machine knows it, may be the guest.
	root, mode := p.machine.uid, fs.FileMode(0o600)
	if p.machine.root {
		root, mode = v.IDBase, 0o666
	}
	l, err := link.Listen(filepath.Join(p.instanceDir(ws), "link"), link.Options{
		SocketMode: mode,
		Logger:     p.log,
		Peer: func(uid uint32) error {
			if uid != root {
				return fmt.Errorf("user %d is not the guest's %d", uid, root)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	p.listeners[ws] = l
	return l, nil
}

// hangUp ends the link of a guest that is no more.
func (p *Provider) hangUp(ws string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.listeners[ws]; l != nil {
		_ = l.Close() // nothing was written to it by us
		delete(p.listeners, ws)
	}
}
