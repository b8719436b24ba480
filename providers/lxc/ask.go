//go:build linux

package lxc

import (
	"bytes"
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
	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

// helperWait bounds the time that the helper's output is waited for after its end:
// what it left behind may hold the other end.
const helperWait = 2 * time.Second

// outputLimit bounds what is read of the helper.
const outputLimit = 1 << 20

// asking is one run of the helper, which waits for its request.
type asking struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err bounded
	files    []*os.File
}

// bounded keeps the beginning of what is written to it.
type bounded struct{ kept []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if room := outputLimit - len(b.kept); room > 0 {
		b.kept = append(b.kept, p[:min(len(p), room)]...)
	}
	return len(p), nil
}

// begin runs the helper. A start gets a mount namespace of its own, and the files.
func (p *Provider) begin(ctx context.Context, start bool, files []*os.File) (*asking, error) {
	if p.helper == "" {
		return nil, missingHelper("this build of vendetta has no vendetta-lxc beside it")
	}
	a := &asking{files: files}
	a.cmd = exec.CommandContext(ctx, p.helper)
	// No PATH: where liblxc finds newuidmap it has that map ids, which refuses a
	// range that /etc/subuid does not name, though root may map any. It lives for
	// milliseconds, in which more threads and tidying up are only in the way.
	a.cmd.Env = []string{"LANG=C", "GOMAXPROCS=1", "GOGC=off"}
	a.cmd.Dir = "/"
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.err
	a.cmd.ExtraFiles = files
	a.cmd.WaitDelay = helperWait
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if start {
		a.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	a.in = in
	if err := a.cmd.Start(); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOEXEC) {
			return nil, missingHelper(err.Error())
		}
		return nil, fmt.Errorf("run %s: %w", p.helper, err)
	}
	return a, nil
}

func missingHelper(why string) error {
	return &providers.Error{
		Kind:    providers.ErrUnusable,
		Message: "the lxc helper program cannot be run: " + why,
		Next:    "run make build on a machine of this kind that has lxc-dev, then add the node again: vendetta node add",
	}
}

// ask sends the request and returns the answer. The helper has ended then.
func (a *asking) ask(ctx context.Context, r helper.Request) (helper.Answer, error) {
	raw, err := json.Marshal(r)
	if err == nil {
		_, err = a.in.Write(raw)
	}
	err = errors.Join(err, a.in.Close())
	ended := a.cmd.Wait()
	if ctx.Err() != nil {
		return helper.Answer{}, ctx.Err()
	}
	answer, unread := helper.ReadAnswer(bytes.TrimSpace(a.out.kept))
	switch {
	case unread == nil && answer.Error != "":
		return answer, fmt.Errorf("vendetta-lxc: %s", answer.Error)
	case unread == nil && ended == nil:
		return answer, nil
	}
	return helper.Answer{}, a.crashed(errors.Join(ended, err), unread)
}

// crashed is the error of a helper that gave no answer.
func (a *asking) crashed(ended, unread error) error {
	said, _, _ := strings.Cut(strings.TrimSpace(string(a.err.kept)), "\n")
	e := &providers.Error{Cause: errors.Join(ended, unread)}
	switch {
	case strings.Contains(said, "error while loading shared libraries"):
		e.Kind = providers.ErrUnusable
		e.Message = "the lxc helper program cannot be run: " + said
		e.Next = "install liblxc on the node: sudo apt-get install lxc"
	case ended != nil && said != "":
		e.Message = fmt.Sprintf("the lxc helper program vendetta-lxc crashed (%v): %s", ended, said)
	case ended != nil:
		e.Message = fmt.Sprintf("the lxc helper program vendetta-lxc crashed: %v", ended)
	default:
		e.Message = fmt.Sprintf("the lxc helper program vendetta-lxc: %v", unread)
	}
	return e
}

// kill ends a helper that was not asked.
func (a *asking) kill() {
	_ = a.in.Close()
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

// request one thing of liblxc for an instance.
func (p *Provider) request(ctx context.Context, verb helper.Verb, ws string) error {
	a, err := p.begin(ctx, false, nil)
	if err != nil {
		return err
	}
	_, err = a.ask(ctx, helper.Request{Verb: verb, Path: lxcPath, Name: instanceName(ws), Config: p.configPath(ws)})
	return err
}

// start runs the container of an instance with its trees, and notes in current what
// there is to know of it at each moment.
func (p *Provider) start(ctx context.Context, ws string, a *asking, r helper.Request, current *run) error {
	answer, err := a.ask(ctx, r)
	if err != nil {
		return err
	}
	if answer.PID <= 0 {
		return errors.New("the container ended at once")
	}
	if current.Process, err = host.Identify(answer.PID); err != nil {
		return fmt.Errorf("the container ended at once: %w", err)
	}
	above, err := host.Parent(answer.PID)
	if err == nil {
		current.Monitor, err = host.Identify(above)
	}
	if err != nil {
		return fmt.Errorf("the container ended at once: %w", err)
	}
	return host.Write(filepath.Join(p.instanceDir(ws), runFile), *current)
}
