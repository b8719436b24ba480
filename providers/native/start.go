//go:build linux

package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// errNamespaces marks a refusal of the kernel to make the namespaces.
var errNamespaces = errors.New("the kernel refuses namespaces")

// Start clones a process into fresh namespaces, which becomes the guest.
func (p *Provider) Start(ctx context.Context, ws string) error {
	r, err := p.ready("start", ws)
	if err != nil {
		return err
	}
	if last, err := p.run(ws); err != nil {
		return failed("start", ws, err)
	} else if last.Alive() {
		if last.Paused || last.Held && !p.holds(ws) {
			return failed("start", ws, p.resume(ws, &last))
		}
		return nil
	} else if err := p.clear(ctx, ws, last); err != nil { // what a dead guest left behind
		return failed("start", ws, err)
	}
	return failed("start", ws, p.spawn(ctx, ws, r))
}

// ready loads an instance that is whole.
func (p *Provider) ready(op, ws string) (record, error) {
	if err := checkID(op, ws); err != nil {
		return record{}, err
	}
	r, err := p.load(ws)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, notFound(op, ws)
	case err != nil:
		return r, failed(op, ws, err)
	case !r.Ready:
		return r, &providers.Error{
			Message: fmt.Sprintf("%s native workspace %s: the instance is half-made", op, ws),
			Next:    "bring it down, then up again",
		}
	case r.Restoring != "":
		return r, &providers.Error{
			Message: fmt.Sprintf("%s native workspace %s: its snapshot %s is restored by half", op, ws, r.Restoring),
			Next:    "restore a snapshot again",
		}
	}
	return r, nil
}

// run loads what the last Start made; a zero run when it made nothing.
func (p *Provider) run(ws string) (run, error) {
	var last run
	err := host.Read(filepath.Join(p.instanceDir(ws), runFile), &last)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return last, err
}

// spawn starts the guest of a stopped instance, or leaves it stopped.
func (p *Provider) spawn(ctx context.Context, ws string, r record) (err error) {
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	if _, err := p.listener(ws, v); err != nil {
		return err
	}
	img, err := p.below(r)
	if err != nil {
		return err
	}
	pl := p.plan(ws, r, v, img)
	output, err := os.OpenFile(filepath.Join(p.instanceDir(ws), consoleFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, output.Close()) }()
	c, err := p.clone(&pl, v, output)
	if err != nil {
		return err
	}
	defer c.close()
	// Nothing runs in there before the plan is sent, and without it the child
	// ends by itself; so a record that is written first never misses a guest.
	current := run{Started: time.Now()}
	undo := func(err error) error {
		c.kill()
		return errors.Join(err, p.clear(context.WithoutCancel(ctx), ws, current))
	}
	if current.Process, err = host.Identify(c.pid); err != nil {
		return undo(err)
	}
	if err := p.limit(ws, r.Resources, &current); err != nil {
		return undo(err)
	}
	if err := p.join(ctx, ws, r.Network, &pl, &current); err != nil {
		return undo(err)
	}
	if err := host.Write(filepath.Join(p.instanceDir(ws), runFile), current); err != nil {
		return undo(err)
	}
	if err := c.begin(ctx, pl); err != nil {
		return undo(err)
	}
	p.log.Info("started native instance", "workspace", ws, "pid", c.pid)
	return nil
}

// child is a process in new namespaces that waits for its plan.
type child struct {
	pid  int
	conn *os.File
}

// clone starts InitCommand in new namespaces.
func (p *Provider) clone(pl *plan, v volume, output *os.File) (_ *child, err error) {
	if len(p.init) == 0 || p.guest == "" && !pl.Probe {
		return nil, &providers.Error{Kind: providers.ErrUnusable, Message: "start native workspace: no guest program or init command is configured"}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "init"), os.NewFile(uintptr(pair[1]), "init")
	extra := []*os.File{nil, theirs}
	defer func() {
		for _, f := range extra {
			if f != nil {
				_ = f.Close() // the child has its own
			}
		}
		if err != nil {
			_ = ours.Close()
		}
	}()
	// The child may be unable to reach the program by its path, as the root of
	// another range of ids; a descriptor works.
	if extra[0], err = os.Open(p.init[0]); err != nil {
		return nil, err
	}
	if p.machine.root {
		err := pl.each(func(m *mount) error {
			fd, err := m.open()
			if err != nil {
				return err
			}
			extra = append(extra, os.NewFile(uintptr(fd), m.Path))
			m.FD = 2 + len(extra)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	attr := &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		// Root of the namespace from the first instruction on.
		Credential: &syscall.Credential{NoSetGroups: !p.machine.root},
	}
	if pl.OwnNetwork {
		attr.Cloneflags |= unix.CLONE_NEWNET
	}
	if p.machine.root {
		ids := []syscall.SysProcIDMap{{HostID: int(v.IDBase), Size: idsPerInstance}}
		attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = ids, ids, true
	} else {
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: int(p.machine.uid), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: int(p.machine.gid), Size: 1}}
	}
	cmd := &exec.Cmd{
		Path:        "/proc/self/fd/3",
		Args:        p.init,
		Env:         []string{"PATH=" + guestPath, initEnv + "=1"},
		Dir:         "/",
		Stdout:      output,
		Stderr:      output,
		ExtraFiles:  extra,
		SysProcAttr: attr,
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
			// ENOSPC: user.max_user_namespaces is reached.
			return nil, &providers.Error{
				Kind:    providers.ErrUnusable,
				Message: fmt.Sprintf("start native workspace: the kernel refuses namespaces, or %s may not be run by others: %v", p.init[0], err),
				Next:    "run vendetta doctor on the node",
				Cause:   errors.Join(errNamespaces, err),
			}
		}
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, conn: ours}
	// Guests are waited for by id, and those of an earlier agent cannot be at all.
	return c, cmd.Process.Release()
}

// begin sends the plan and waits until the child has become the guest, or until
// it says why not.
func (c *child) begin(ctx context.Context, pl plan) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := json.Marshal(pl)
	if err != nil {
		return err
	}
	_, err = c.conn.Write(append(raw, '\n'))
	var said []byte
	if err == nil {
		said, err = io.ReadAll(io.LimitReader(c.conn, 64<<10))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if string(said) == handover {
		return nil
	}
	if len(said) > 0 {
		return refusal([]byte(strings.TrimPrefix(string(said), handover)))
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the init stage ended without a word: %w", err)
}

// handover is what Init says just before it becomes the guest: the end of the
// stream alone could also be its death.
const handover = "ok\n"

// complaint is what Init says before it gives up.
type complaint struct {
	Message string
	Errno   syscall.Errno
}

type initError struct{ complaint }

func (e *initError) Error() string { return e.Message }
func (e *initError) Unwrap() error { return e.Errno }

func refusal(said []byte) error {
	var c complaint
	if err := json.Unmarshal(said, &c); err != nil || c.Message == "" {
		return fmt.Errorf("the init stage ended with %q", strings.TrimSpace(string(said)))
	}
	return &initError{c}
}

func (c *child) close() { _ = c.conn.Close() }

// kill ends a child that did not become a guest. It is ours and not reaped, so
// its id cannot be another's.
func (c *child) kill() {
	_ = unix.Kill(c.pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(c.pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
