//go:build linux

package guest

import (
	"context"
	"io"
	"strings"
	"syscall"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// gitOutputMost bounds what git may say.
const gitOutputMost = 64 << 20

// git is the instance's own git, run as the default user in the project.
type git struct {
	guest   *Guest
	command *command
	path    string
}

// newGit returns nil when the instance has no git that could be run.
func (g *Guest) newGit() *git {
	c, err := g.command(&guestv1.StartRequest{
		ProcessId: "git", Argv: []string{"git"},
		Env: map[string]string{
			// The project may belong to another user of the instance; nothing of the
			// repository's configuration is to be run for a look at it.
			"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
			"GIT_CONFIG_KEY_1": "core.fsmonitor", "GIT_CONFIG_VALUE_1": "false",
			"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat", "LC_ALL": "C",
			"GIT_CEILING_DIRECTORIES": ceiling(g.opts.ProjectDir),
		},
	})
	if err != nil {
		return nil
	}
	path, why := c.find()
	if why != nil {
		return nil
	}
	return &git{guest: g, command: c, path: path}
}

// ceiling keeps git from finding a repository above the project.
func ceiling(project string) string { return dirOf(project) }

// run runs git with arguments and input, and returns its output and exit code.
// It is killed when ctx ends.
func (t *git) run(ctx context.Context, stdin []byte, args ...string) ([]byte, int, error) {
	c := *t.command
	c.stdin, c.open = stdin, true
	files, err := c.openStdio()
	if err != nil {
		return nil, 0, api.Errorf(api.ResourceExhausted, "run git: %w", err)
	}
	exited := make(chan syscall.WaitStatus, 1)
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env,
		Files: []uintptr{uintptr(files.child[0]), uintptr(files.child[1]), uintptr(files.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: c.cred},
	}
	pid, err := t.guest.reaper.start(t.path, append([]string{"git"}, args...), attr, func(s syscall.WaitStatus) { exited <- s })
	if err != nil {
		files.closeAll()
		return nil, 0, api.Errorf(api.FailedPrecondition, "run git: %w", err)
	}
	files.closeChild()
	stop := context.AfterFunc(ctx, func() {
		_ = t.guest.reaper.signal(pid, sigKill, func() bool { return len(exited) == 0 })
		files.closeAll()
	})
	var out []byte
	var work conc.WaitGroup
	work.Go(func() {
		_, _ = files.input.Write(stdin)
		_ = files.input.Close()
	})
	work.Go(func() { _, _ = io.Copy(io.Discard, files.outputs[1].file) })
	out, readErr := io.ReadAll(io.LimitReader(files.outputs[0].file, gitOutputMost+1))
	if len(out) > gitOutputMost {
		_ = t.guest.reaper.signal(pid, sigKill, func() bool { return len(exited) == 0 })
	}
	status := <-exited
	stop()
	files.closeAll()
	work.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, 0, ctx.Err()
	case len(out) > gitOutputMost:
		return nil, 0, api.Errorf(api.ResourceExhausted, "run git %s: it said more than %d bytes", args[0], gitOutputMost)
	case readErr != nil:
		return nil, 0, api.Errorf(api.Internal, "run git %s: %w", args[0], readErr)
	case status.Signaled():
		return nil, 128 + int(status.Signal()), nil
	}
	return out, status.ExitStatus(), nil
}

// version is what `git version` says, empty when it cannot be run.
func (t *git) version(ctx context.Context) string {
	out, code, err := t.run(ctx, nil, "version")
	if err != nil || code != 0 {
		return ""
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(out[:min(len(out), 200)])), "\uFFFD")
}
