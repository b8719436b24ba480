package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// made is what quickstart made and may therefore remove. It is kept beside the
// state, so that a later quickstart-down knows.
type made struct {
	Server    bool   `json:"server"`
	Node      bool   `json:"node"`
	Workspace string `json:"workspace"`
}

type quickstart struct {
	program   string
	workspace string
	stateDir  string
	out       io.Writer
	made      made
}

const (
	node = "local"
	// demoFile is what the demonstration writes in the workspace.
	demoFile = "hello.txt"
)

func newQuickstart(program, workspace string, out io.Writer) (*quickstart, error) {
	path, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w; run make build first", err)
	}
	stateDir := os.Getenv("VENDETTA_STATE_DIR")
	if stateDir == "" {
		base := os.Getenv("XDG_STATE_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, err
			}
			base = filepath.Join(home, ".local", "state")
		}
		stateDir = filepath.Join(base, "vendetta")
	}
	q := &quickstart{program: path, workspace: workspace, stateDir: stateDir, out: out}
	data, err := os.ReadFile(q.madeFile())
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(data, &q.made); err != nil {
			return nil, fmt.Errorf("%s: %w", q.madeFile(), err)
		}
	}
	return q, nil
}

func (q *quickstart) madeFile() string { return filepath.Join(q.stateDir, "quickstart.json") }

func (q *quickstart) saveMade() error {
	if q.made == (made{}) {
		return nil
	}
	data, err := json.Marshal(q.made)
	if err != nil {
		return err
	}
	return os.WriteFile(q.madeFile(), append(data, '\n'), 0o600)
}

func (q *quickstart) say(format string, args ...any) {
	_, _ = fmt.Fprintf(q.out, format+"\n", args...)
}

// vendetta runs one command, shows it, and returns its stdout.
func (q *quickstart) vendetta(ctx context.Context, args ...string) (string, error) {
	q.say("$ vendetta %s", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, q.program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout = &stdout
	cmd.Stderr = io.MultiWriter(&stderr, q.out)
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("vendetta %s: %w", strings.Join(args[:min(2, len(args))], " "), err)
	}
	return stdout.String(), nil
}

// quietly runs a command whose failure is an answer too.
func (q *quickstart) quietly(ctx context.Context, args ...string) (string, bool) {
	out, err := exec.CommandContext(ctx, q.program, args...).Output()
	return string(out), err == nil
}

func (q *quickstart) up(ctx context.Context) error {
	if _, runs := q.quietly(ctx, "server", "status"); !runs {
		if _, err := q.vendetta(ctx, "server", "start"); err != nil {
			return err
		}
		q.made.Server = true
	}
	if _, there := q.quietly(ctx, "node", "status", node); !there {
		if _, err := q.vendetta(ctx, "node", "add", node, "--local"); err != nil {
			return err
		}
		q.made.Node = true
	}
	provider, err := q.provider(ctx)
	if err != nil {
		return err
	}
	checkout, err := os.Getwd()
	if err != nil {
		return err
	}
	_, existed := q.quietly(ctx, "workspace", "status", q.workspace)
	create := []string{"workspace", "create", q.workspace, "--node", node, "--provider", provider, "--from", checkout}
	if existed {
		q.say("workspace %s is there from an earlier run; it is used again", q.workspace)
		create = []string{"workspace", "up", q.workspace}
	} else {
		q.made.Workspace = q.workspace
	}
	if err := q.saveMade(); err != nil {
		return err
	}
	if _, err := q.vendetta(ctx, create...); err != nil {
		return err
	}
	if err := q.driveByMCP(ctx); err != nil {
		return err
	}
	q.explain()
	return nil
}

// provider is native; where that cannot be used docker, and where neither can,
// native once more after the command that lifts the restriction, if sudo may run it.
func (q *quickstart) provider(ctx context.Context) (string, error) {
	usable, fix, err := q.providers(ctx)
	if err != nil {
		return "", err
	}
	if !usable["native"] && !usable["docker"] && q.lift(ctx, fix) {
		if usable, _, err = q.providers(ctx); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"native", "docker"} {
		if usable[name] {
			return name, nil
		}
	}
	return "", errors.New("neither native nor docker workspaces can be used here; run the command above, then make quickstart again")
}

// providers says which providers are usable, and the command that would make
// native so. `node test` makes the node look anew.
func (q *quickstart) providers(ctx context.Context) (usable map[string]bool, fix string, err error) {
	out, _ := q.quietly(ctx, "node", "test", node, "--json")
	var result struct {
		Checks []struct {
			Name, Message, Fix string
			Ok                 bool
		}
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return nil, "", fmt.Errorf("node %s does not answer; look at: %s node logs %s", node, q.program, node)
	}
	usable = map[string]bool{}
	for _, c := range result.Checks {
		name, found := strings.CutPrefix(c.Name, "provider ")
		if !found {
			continue
		}
		usable[name] = c.Ok
		if name == "native" && !c.Ok {
			fix = c.Fix
			q.say("native workspaces cannot be used here: %s", c.Message)
			if fix != "" {
				q.say("  lift it with: %s", fix)
			}
		}
	}
	return usable, fix, nil
}

// lift runs the command that a probe named, when it is one for sudo and sudo asks
// for no password.
func (q *quickstart) lift(ctx context.Context, fix string) bool {
	argv := strings.Fields(fix)
	if len(argv) < 2 || argv[0] != "sudo" || strings.ContainsAny(fix, "|&;<>()'\"$`") {
		return false
	}
	if exec.CommandContext(ctx, "sudo", "-n", "true").Run() != nil {
		return false
	}
	q.say("$ %s", fix)
	return exec.CommandContext(ctx, "sudo", append([]string{"-n"}, argv[1:]...)...).Run() == nil
}

func (q *quickstart) explain() {
	q.say(`
What there is now:
  a coordination server   %s (a unix socket only you can open)
  the node "%s"        this machine
  the workspace "%s"   your checkout, isolated: %s workspace shell %s

Give it to your AI client:
  Claude Code   claude mcp add vendetta -- %s mcp
  Cursor        in ~/.cursor/mcp.json:
                {"mcpServers": {"vendetta": {"command": "%s", "args": ["mcp"]}}}

Add a machine of yours:
  %s node add build1 you@host

Stop and remove what this made:
  make quickstart-down`,
		filepath.Join(q.stateDir, "server", "server.sock"), node, q.workspace, q.program, q.workspace, q.program, q.program, q.program)
}

// down removes what an earlier up recorded, in the opposite order. What others
// have come to use since stays, and is named.
func (q *quickstart) down(ctx context.Context) error {
	if q.made == (made{}) {
		q.say("quickstart made nothing that is still here")
		return nil
	}
	if q.made.Workspace != "" {
		if _, there := q.quietly(ctx, "workspace", "status", q.made.Workspace); there {
			// Only the demonstration's own file goes unasked; rm keeps a workspace
			// in which somebody has worked since.
			q.quietly(ctx, "workspace", "exec", q.made.Workspace, "--", "rm", "-f", demoFile)
			if _, err := q.vendetta(ctx, "workspace", "rm", q.made.Workspace); err != nil {
				q.say("the workspace %s stays; to remove it with that work: %s workspace rm %s --force", q.made.Workspace, q.program, q.made.Workspace)
				return err
			}
		}
		q.made.Workspace = ""
	}
	if q.made.Node {
		if others, _ := q.quietly(ctx, "workspace", "list", "-q", "--node", node); strings.TrimSpace(others) != "" {
			q.say("the node %s stays: other workspaces are on it", node)
			return q.saveMade()
		}
		if _, there := q.quietly(ctx, "node", "status", node); there {
			if _, err := q.vendetta(ctx, "node", "rm", node); err != nil {
				return err
			}
		}
		q.made.Node = false
	}
	if q.made.Server {
		if others, _ := q.quietly(ctx, "node", "list", "-q"); strings.TrimSpace(others) != "" {
			q.say("the server stays: it has other nodes")
			return q.saveMade()
		}
		if _, err := q.vendetta(ctx, "server", "stop"); err != nil {
			return err
		}
		if err := os.RemoveAll(q.stateDir); err != nil {
			return err
		}
		q.say("removed %s", q.stateDir)
		return nil
	}
	return os.Remove(q.madeFile())
}
