//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

const (
	// flushWait is how long a machine may take to write what it has in memory.
	flushWait = 10 * time.Second
	// quitWait is how long a QEMU that was told to end may write what it holds.
	quitWait = 5 * time.Second
	// killWait is how long a killed one may take to be gone.
	killWait = 20 * time.Second
	// lookWait bounds the question what a machine does, for those who only look.
	lookWait = 5 * time.Second
)

// state asks a living QEMU what its machine does.
func (p *Provider) state(ctx context.Context, ws string) (providers.State, error) {
	s, err := p.status(ctx, ws)
	if err != nil {
		return "", err
	}
	return stateOf(s), nil
}

// stateOf says what a QEMU's run state means for a workspace.
func stateOf(status string) providers.State {
	switch status {
	case "shutdown", "guest-panicked", "internal-error":
		return providers.StateStopped
	case "paused", "postmigrate", "suspended", "io-error", "prelaunch", "inmigrate", "finish-migrate", "watchdog":
		return providers.StatePaused
	}
	return providers.StateRunning // also while a snapshot is saved
}

// Stop asks the guest to end and kills the machine after grace.
func (p *Provider) Stop(ctx context.Context, ws string, grace time.Duration) error {
	if err := checkID("stop", ws); err != nil {
		return err
	}
	r, err := p.load(ws)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound("stop", ws)
	} else if err != nil {
		return failed("stop", ws, err)
	}
	last, err := p.run(ws)
	if err != nil {
		return failed("stop", ws, err)
	}
	if grace > 0 && last.Alive() {
		if err := p.powerDown(ctx, ws, r, last, grace); err != nil {
			return failed("stop", ws, err)
		}
	}
	if err := p.flush(ctx, ws, last); err != nil {
		return failed("stop", ws, err)
	}
	return failed("stop", ws, p.end(ctx, ws, last))
}

// powerDown asks the machine to end and waits for that, at most for grace. A
// machine that cannot be asked is not waited for.
func (p *Provider) powerDown(ctx context.Context, ws string, r record, last run, grace time.Duration) error {
	return p.ask(ctx, ws, last, grace, func(ctx context.Context) (*words, error) {
		said, err := p.say(ctx, ws, "stop")
		if r.Disk { // its guest may not be there, or not yet
			err = errors.Join(err, p.command(ctx, ws, "system_powerdown", nil, nil))
		}
		return said, err
	})
}

// flush has a machine that is about to be killed write what it has in memory:
// files of the volume are kept, and its kernel may have them yet.
func (p *Provider) flush(ctx context.Context, ws string, last run) error {
	if !last.Alive() {
		return nil
	}
	return p.ask(ctx, ws, last, flushWait, func(ctx context.Context) (*words, error) { return p.say(ctx, ws, "off") })
}

// ask has a machine end itself and waits for that, at most for grace. What asking
// returns is closed after that.
func (p *Provider) ask(ctx context.Context, ws string, last run, grace time.Duration, asking func(context.Context) (*words, error)) error {
	limited, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	s, err := p.status(limited, ws)
	if err == nil && stateOf(s) == providers.StateStopped {
		return nil
	}
	if err == nil && stateOf(s) == providers.StatePaused {
		err = p.command(limited, ws, "cont", nil, nil)
	}
	if err == nil {
		var asked *words
		if asked, err = asking(limited); asked != nil {
			defer func() { _ = asked.Close() }()
		}
	}
	if err == nil {
		err = p.await(limited, ws, func(s string) (bool, error) { return stateOf(s) == providers.StateStopped, nil })
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && last.Alive() {
		p.log.Info("a virtual machine does not end by itself", "workspace", ws, "error", err)
	}
	return nil
}

// end stops what runs and clears what it held.
func (p *Provider) end(ctx context.Context, ws string, last run) error {
	if !last.Alive() {
		if err := p.dismiss(ctx, ws); err != nil {
			return err
		}
		return p.release(ctx, ws, last)
	}
	p.Console(ctx, ws) // what it said last is kept
	if p.command(ctx, ws, "quit", nil, nil) == nil {
		if _, err := last.Gone(ctx, quitWait); err != nil {
			return err
		}
	}
	if err := last.Signal(unix.SIGKILL); err != nil {
		return err
	}
	gone, err := last.Gone(ctx, killWait)
	if err != nil {
		return err
	}
	if !gone {
		return fmt.Errorf("process %d does not end", last.PID)
	}
	return p.release(ctx, ws, last)
}

// release clears what a QEMU that has ended held of the machine. The record goes
// last, so that a repeat goes on where this ended.
func (p *Provider) release(ctx context.Context, ws string, last run) error {
	p.hangUp(ws)
	if last.Fence != 0 {
		if err := p.fence(ws, last.Fence).Lower(ctx); err != nil {
			return err
		}
	}
	if err := host.RemoveGroups(ctx, last.Cgroups); err != nil {
		return err
	}
	for _, name := range []string{monitorSocket, linkSocket, controlSocket, runFile} {
		if err := os.Remove(filepath.Join(p.instanceDir(ws), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
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
		if !removeVolume {
			if err := p.flush(ctx, ws, last); err != nil {
				return failed("destroy", ws, err)
			}
		}
		if err := p.end(ctx, ws, last); err != nil {
			return failed("destroy", ws, err)
		}
		if err := discard(p.instanceDir(ws)); err != nil {
			return failed("destroy", ws, err)
		}
	}
	if err := p.opts.Images.Release(p.holder(ws)); err != nil {
		return failed("destroy", ws, err)
	}
	if !removeVolume {
		return nil
	}
	if v, err := p.volume(ws); err == nil && v.Server != p.server {
		return nil
	}
	if err := p.releaseSnapshots(ws); err != nil {
		return failed("destroy", ws, err)
	}
	return failed("destroy", ws, discard(p.volumeDir(ws)))
}

// Inspect tells what there is of an instance.
func (p *Provider) Inspect(ctx context.Context, ws string) (providers.Instance, error) {
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
	i := providers.Instance{Workspace: ws, Name: "vendetta-" + ws, State: providers.StateStopped, Digest: r.Digest}
	i.Generation, _ = strconv.ParseInt(r.Labels[providers.LabelGeneration], 10, 64) // our own writing
	last, err := p.run(ws)
	v, verr := p.volume(ws)
	i.Boot = bootTime(r.Disk, last.Accel)
	switch {
	case !r.Ready:
		i.State, i.Message = providers.StateBroken, "half-made"
	case r.Restoring != "":
		i.State, i.Message = providers.StateBroken, "the restore of snapshot "+r.Restoring+" did not end; repeat it"
	case err != nil:
		i.State, i.Message = providers.StateBroken, "unreadable record of its process"
	case verr != nil || !v.Ready:
		i.State, i.Message = providers.StateBroken, "its volume is gone"
	case last.Alive():
		p.look(ctx, ws, last, &i)
	case last.PID != 0 && last.BootID != host.BootID():
		i.Message = "the machine was restarted"
	case last.PID != 0:
		i.Message = "QEMU was killed or has crashed"
	}
	return i, nil
}

// look tells what a machine whose QEMU lives does.
func (p *Provider) look(ctx context.Context, ws string, last run, i *providers.Instance) {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	i.State, i.StartedAt = providers.StateRunning, last.Started
	s, err := p.status(ctx, ws)
	if err != nil {
		if !last.Alive() { // it ended just now
			i.State, i.StartedAt, i.Message = providers.StateStopped, time.Time{}, "QEMU was killed or has crashed"
			return
		}
		i.Message = "QEMU does not answer"
		return
	}
	i.State = stateOf(s)
	switch {
	case i.State == providers.StateStopped:
		i.StartedAt, i.Message = time.Time{}, "the virtual machine has switched itself off"
	case s == "io-error":
		i.Message = "halted: the node's disk is full or fails"
	}
}

// bootTime is how long a guest may take until it answers.
func bootTime(disk bool, accel string) time.Duration {
	switch {
	case disk && accel == accelKVM:
		return 2 * time.Minute
	case disk:
		return 6 * time.Minute
	case accel == accelKVM:
		return 30 * time.Second
	}
	return 90 * time.Second
}

// List tells of all instances of this server.
func (p *Provider) List(ctx context.Context) ([]providers.Instance, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, "instances"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &providers.Error{Message: fmt.Sprintf("list qemu workspaces: %v", err), Cause: err}
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
