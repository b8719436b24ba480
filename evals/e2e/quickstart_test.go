//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// buildQuickstart builds the program behind `make quickstart` once.
var buildQuickstart sync.Once

// quickstart runs the program in a checkout of the user's.
func (b *bed) quickstart(args ...string) string {
	b.t.Helper()
	// It lies beside the other programs and is removed with them.
	program := filepath.Join(filepath.Dir(b.program), "quickstart")
	buildQuickstart.Do(func() {
		if out, err := exec.Command("go", "build", "-o", program, "github.com/vendetta-dev/vendetta/evals/quickstart").CombinedOutput(); err != nil {
			b.t.Fatalf("build quickstart: %v\n%s", err, out)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-program", b.program}, args...)...)
	cmd.Env, cmd.Dir = b.env, b.checkout()
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Fatalf("quickstart %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// checkout is a small repository of the user's, made once.
func (b *bed) checkout() string {
	b.t.Helper()
	dir := filepath.Join(b.home, "project")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"init", "-q", "-b", "main"},
		{"-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "-q", "--allow-empty", "-m", "the first commit"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, argv...)...).CombinedOutput(); err != nil {
			b.t.Fatalf("git %v: %v\n%s", argv, err, out)
		}
	}
	return dir
}

func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

// belongings are the processes that run for a state folder.
func belongings(t *testing.T, state string) []string {
	t.Helper()
	var found []string
	for _, p := range processes(t) {
		if strings.Contains(p.args, state) || bytes.Contains([]byte(p.args), []byte("vendetta-guest")) && ownedBy(p.pid, state) {
			found = append(found, strings.ReplaceAll(p.args, "\x00", " "))
		}
	}
	return found
}

// Up twice and down twice; nothing is left.
func TestQuickstartWorksTwice(t *testing.T) {
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	first := b.quickstart()
	contains(t, first,
		"$ vendetta server start", "$ vendetta node add local --local", "$ vendetta workspace create hello",
		"-> tools/list", "file_write", "-> exec", "the first commit", "written through MCP", "<- step 3", "done",
		"claude mcp add vendetta", `"mcpServers"`, "make quickstart-down")
	if got := b.run("workspace", "list"); !strings.Contains(got, "running") {
		t.Errorf("the workspace does not run:\n%s", got)
	}
	second := b.quickstart()
	contains(t, second, "it is used again", "written through MCP", "make quickstart-down")
	if got := b.run("workspace", "list", "-q"); got != "hello\n" {
		t.Errorf("workspaces after the second run: %q", got)
	}
	// A workspace that was stopped in between is no obstacle.
	b.run("workspace", "stop", "hello")
	contains(t, b.quickstart(), "written through MCP")

	contains(t, b.quickstart("-down"), "removed "+b.state)
	if _, err := os.Stat(b.state); !errors.Is(err, os.ErrNotExist) {
		entries, _ := filepath.Glob(b.state + "/*/*")
		t.Errorf("the state is left: %v %v", err, entries)
	}
	b.await("the end of all processes", patience, func() bool { return len(belongings(t, b.state)) == 0 })
	contains(t, b.quickstart("-down"), "nothing that is still here")
}

// What others made, or put there since, stays.
func TestQuickstartDownRemovesOnlyItsOwn(t *testing.T) {
	testbed.Wants(t, "native")
	t.Run("a workspace made since", func(t *testing.T) {
		b := newBed(t, nil)
		b.quickstart()
		b.run("workspace", "create", "mine", "--provider", "native")
		b.run("workspace", "exec", "mine", "--", "sh", "-c", "echo kept >file")
		contains(t, b.quickstart("-down"), "the node local stays")
		if got := b.run("workspace", "list", "-q"); got != "mine\n" {
			t.Errorf("workspaces: %q", got)
		}
		if got := b.run("workspace", "exec", "mine", "--", "cat", "file"); got != "kept\n" {
			t.Errorf("the file: %q", got)
		}
		// Without it the rest goes too.
		b.run("workspace", "rm", "mine")
		contains(t, b.quickstart("-down"), "removed "+b.state)
	})
	t.Run("a node made since", func(t *testing.T) {
		b := newBed(t, nil)
		b.quickstart()
		r := b.newRemote(nil, "127.0.0.1", nil)
		b.add("build1", r)
		contains(t, b.quickstart("-down"), "the server stays")
		if got := b.run("node", "list", "-q"); got != "build1\n" {
			t.Errorf("nodes: %q", got)
		}
	})
	t.Run("all was there before", func(t *testing.T) {
		b := newBed(t, nil)
		b.run("node", "add", "local", "--local")
		b.run("workspace", "create", "hello", "--provider", "native", "--from", b.checkout())
		b.quickstart()
		b.quickstart("-down")
		if got := b.run("workspace", "list", "-q"); got != "hello\n" {
			t.Errorf("workspaces: %q", got)
		}
		b.run("node", "status", "local")
		b.run("server", "status")
	})
}
