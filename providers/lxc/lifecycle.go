//go:build linux

package lxc

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

// monitorWait is how long liblxc's monitor may take to clear up after its
// container; then it is done for it.
const monitorWait = 5 * time.Second

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
	if last.Alive() {
		if err := p.machine.thaw(ws); err != nil {
			return failed("stop", ws, err)
		}
	}
	if grace > 0 && last.Alive() {
		if err := last.Signal(unix.SIGTERM); err != nil {
			return failed("stop", ws, err)
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
		if err := errors.Join(last.Signal(unix.SIGKILL), p.machine.thaw(ws)); err != nil {
			return err
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
	return p.release(ctx, ws, last)
}

// release clears what a container that has ended held of the machine. The record
// goes last, so that a repeat goes on where this ended.
func (p *Provider) release(ctx context.Context, ws string, last run) error {
	if last.PID != 0 && !last.Alive() {
		// It clears up by itself, which must not meet us doing the same.
		if _, err := last.Monitor.Gone(ctx, monitorWait); err != nil {
			return err
		}
	}
	if err := p.purge(ctx, ws, last); err != nil {
		return err
	}
	if err := p.leave(ctx, last); err != nil {
		return err
	}
	if err := p.disband(ctx, ws); err != nil {
		return err
	}
	unlock(ws)
	err := os.Remove(filepath.Join(p.instanceDir(ws), runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lxcPath is the folder of containers that liblxc is told: together with the name
// it is how processes of liblxc find one another. Nothing is kept there, for the
// container's root must be able to enter it.
const lxcPath = "/run"

// unlock removes the file that liblxc keeps for each container that it was asked
// about. That it stays does no harm.
func unlock(ws string) {
	_ = os.Remove(filepath.Join("/run/lxc/lock", lxcPath, "."+instanceName(ws)))
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
	}
	if err := p.images.Release(p.holder(ws)); err != nil {
		return failed("destroy", ws, err)
	}
	if removeVolume {
		if err := p.removeSnapshots(ws); err != nil {
			return failed("destroy", ws, err)
		}
		if err := p.trash.Discard(p.volumeDir(ws)); err != nil {
			return failed("destroy", ws, err)
		}
	}
	return nil
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
	i := providers.Instance{Workspace: ws, Name: instanceName(ws), State: providers.StateStopped, Digest: r.Digest}
	i.Generation, _ = strconv.ParseInt(r.Labels[providers.LabelGeneration], 10, 64) // our own writing
	last, err := p.run(ws)
	_, verr := p.volume(ws)
	switch {
	case !r.Ready:
		i.State, i.Message = providers.StateBroken, "half-made"
	case r.Broken != "":
		i.State, i.Message = providers.StateBroken, r.Broken
	case err != nil:
		i.State, i.Message = providers.StateBroken, "unreadable record of its process"
	case last.Alive():
		i.State, i.StartedAt = providers.StateRunning, last.Started
		if p.machine.frozen(ws) {
			i.State = providers.StatePaused
		}
	case verr != nil:
		i.State, i.Message = providers.StateBroken, "its volume is gone"
	case last.Monitor.PID != 0 && last.Monitor.BootID != host.BootID():
		i.Message = "the machine was restarted"
	case last.PID != 0:
		i.Message = "the container has ended"
	case last.Monitor.PID != 0:
		i.Message = "its last start was interrupted"
	}
	return i, nil
}

// List tells of all instances of this server.
func (p *Provider) List(ctx context.Context) ([]providers.Instance, error) {
	entries, err := os.ReadDir(p.instancesDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &providers.Error{Message: fmt.Sprintf("list lxc workspaces: %v", err), Cause: err}
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
			i = providers.Instance{Workspace: e.Name(), Name: instanceName(e.Name()), State: providers.StateBroken, Message: err.Error()}
		}
		all = append(all, i)
	}
	return all, nil
}

// running refuses an instance that does not run, and is not paused either.
func (p *Provider) running(op, ws string) error {
	if _, err := p.ready(op, ws); err != nil {
		return err
	}
	last, err := p.run(ws)
	if err != nil {
		return failed(op, ws, err)
	}
	if !last.Alive() {
		return notRunning(op, ws)
	}
	return nil
}

// Connect waits for the guest on the instance's socket.
func (p *Provider) Connect(ctx context.Context, ws string) (net.Conn, error) {
	if err := p.running("connect", ws); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, failed("connect", ws, err)
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
	mode := fs.FileMode(0o666)
	if v.IDBase == 0 {
		mode = 0o600
	}
	l, err := link.Listen(filepath.Join(p.instanceDir(ws), "link"), link.Options{
		SocketMode: mode,
		Logger:     p.log,
		Peer: func(uid uint32) error {
			if uid != v.IDBase {
				return fmt.Errorf("user %d is not the guest's %d", uid, v.IDBase)
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
