package source

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// messageBytes is how much of git's own complaint is repeated to the user.
const messageBytes = 2000

// git runs the user's git in one folder.
type git struct {
	dir string
	// protocols are those over which git may fetch, none when empty. The
	// environment says so because a repository's protocol.NAME.allow would win
	// over a protocol.allow on the command line.
	protocols string
	// settings are more of what guarded holds, for one repository.
	settings []string
}

// guarded are settings that keep git from running programs that a repository's
// own configuration names and from starting work in the background. Filters are
// left to foreignFilters, remotes to git.protocols. Pagers and diff, merge and
// signature programs need no guard: no command in use here, with its output in a
// pipe, runs one; nor does upload-pack, which gets none of these settings.
var guarded = []string{
	"-c", "core.hooksPath=/dev/null",
	"-c", "core.fsmonitor=false",
	"-c", "gc.auto=0",
	"-c", "maintenance.auto=false",
	"-c", "core.quotePath=false",
}

func (g git) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", slices.Concat([]string{"-C", g.dir}, guarded, g.settings, args)...)
	cmd.Env = append(gitEnv(os.Environ()), "GIT_ALLOW_PROTOCOL="+cmp.Or(g.protocols, noProtocol))
	return cmd
}

// noProtocol is no protocol's name. An empty list would do but for Windows, where
// an empty variable is an absent one.
const noProtocol = "none"

// gitEnv drops every variable by which a caller (a hook of the user's, say) would
// turn git to another repository, and keeps git from asking, from locking and from fetching
// the objects that a partial clone lacks: its configuration says with which program.
func gitEnv(environ []string) []string {
	env := make([]string, 0, len(environ)+6)
	for _, v := range environ {
		if !strings.HasPrefix(strings.ToUpper(v), "GIT_") {
			env = append(env, v)
		}
	}
	return append(env, "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0", "GIT_NO_LAZY_FETCH=1", "GIT_DEFAULT_REF_FORMAT=files", "LC_ALL=C")
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

// foreignFilters returns settings that turn off every filter that the repository's
// own configuration defines or alters: git status runs them. Those that the user
// or the machine set up (Git LFS, say) stay.
func (g git) foreignFilters(ctx context.Context) ([]string, error) {
	out, err := g.run(ctx, "config", "--show-scope", "--name-only", "--get-regexp", `^filter\.`)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil, nil // there is none
	}
	if err != nil {
		return nil, err
	}
	var settings []string
	seen := map[string]bool{}
	for entry := range strings.Lines(out) {
		// SCOPE\tfilter.NAME.KEY, where NAME may hold anything but a newline.
		scope, key, _ := strings.Cut(strings.TrimSuffix(entry, "\n"), "\t")
		last := strings.LastIndexByte(key, '.')
		if scope == "system" || scope == "global" || last < len("filter.") || seen[key[:last]] {
			continue
		}
		name := key[:last]
		seen[name] = true
		if strings.Contains(name, "=") {
			// git -c takes the first = for the end of the key, so this one
			// cannot be turned off.
			return nil, api.Errorf(api.FailedPrecondition, "read the repository: its configuration defines a filter with = in its name: %q", name).
				WithNext("rename the filter in the configuration of %s", g.dir)
		}
		settings = append(settings,
			"-c", name+".clean=", "-c", name+".smudge=", "-c", name+".process=", "-c", name+".required=false")
	}
	return settings, nil
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
