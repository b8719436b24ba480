package source

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// messageBytes is how much of git's own complaint is repeated to the user.
const messageBytes = 2000

// git runs the user's git in one folder.
type git struct{ dir string }

// guarded are settings that keep git from running programs that a repository's
// own configuration names, from starting work in the background and from
// refusing a clone over the file protocol.
var guarded = []string{
	"-c", "core.hooksPath=/dev/null",
	"-c", "core.fsmonitor=false",
	"-c", "gc.auto=0",
	"-c", "maintenance.auto=false",
	"-c", "protocol.file.allow=always",
	"-c", "core.quotePath=false",
}

func (g git) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", append(append([]string{"-C", g.dir}, guarded...), args...)...)
	cmd.Env = gitEnv(os.Environ())
	return cmd
}

// gitEnv drops every variable by which a caller (a hook of the user's, say) would
// turn git to another repository, and keeps git from asking and from locking.
func gitEnv(environ []string) []string {
	env := make([]string, 0, len(environ)+4)
	for _, v := range environ {
		if !strings.HasPrefix(strings.ToUpper(v), "GIT_") {
			env = append(env, v)
		}
	}
	return append(env, "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0", "GIT_DEFAULT_REF_FORMAT=files", "LC_ALL=C")
}

// run returns what git printed. Its error carries git's own words.
func (g git) run(ctx context.Context, args ...string) (string, error) {
	cmd := g.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", gitError(ctx, args, err, stderr.String())
	}
	return stdout.String(), nil
}

// line is run for an answer of one line.
func (g git) line(ctx context.Context, args ...string) (string, error) {
	out, err := g.run(ctx, args...)
	return strings.TrimRight(out, "\r\n"), err
}

func gitError(ctx context.Context, args []string, err error, said string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return (&api.Error{
			Code: api.FailedPrecondition, Message: "read the repository: the git program was not found on this machine", Cause: err,
		}).WithNext("install git, e.g.: sudo apt install git")
	}
	said = strings.TrimSpace(said)
	if len(said) > messageBytes {
		said = said[:messageBytes]
	}
	if said == "" {
		said = err.Error()
	}
	return &api.Error{Code: api.FailedPrecondition, Message: "git " + args[0] + ": " + said, Cause: err}
}
