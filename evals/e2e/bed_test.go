//go:build linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// patience bounds every wait of these tests.
const patience = 90 * time.Second

// bed is a user's machine in a network namespace of its own: a home with a key,
// and the state of one server.
type bed struct {
	t       *testing.T
	program string
	where   *testbed.Namespace
	home    string
	state   string
	env     []string
	// PublicKey is the line of the user's key.
	publicKey string
}

// newBed makes the user's machine; where nil is this machine's own network.
func newBed(t *testing.T, where *testbed.Namespace) *bed {
	t.Helper()
	home, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, program: testbed.Programs(t), where: where, home: home, state: filepath.Join(home, "s")}
	b.env = append(os.Environ(), "HOME="+home, "VENDETTA_STATE_DIR="+b.state, "SSH_AUTH_SOCK=", "GOCOVERDIR="+testbed.CoverDir(t))
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(home, ".ssh", "id_ed25519")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	line, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	b.publicKey = strings.TrimSpace(string(line))
	t.Cleanup(b.remove)
	return b
}

// remove takes everything down that the test left, so that no container, process
// or folder outlives it.
func (b *bed) remove() {
	if b.t.Failed() {
		if log, err := os.ReadFile(filepath.Join(b.state, "server", "server.log")); err == nil {
			b.t.Logf("server.log:\n%s", tailOf(string(log), 40))
		}
	}
	if _, err := os.Stat(filepath.Join(b.state, "server", "server.sock")); err == nil {
		for _, name := range strings.Fields(b.try("workspace", "list", "-q").stdout) {
			b.try("workspace", "rm", name, "--force")
		}
		for _, name := range strings.Fields(b.try("node", "list", "-q").stdout) {
			b.try("node", "rm", name)
		}
		b.try("server", "stop")
	}
	if err := os.RemoveAll(b.home); err != nil {
		b.t.Errorf("remove the bed: %v", err)
	}
}

func tailOf(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// outcome of one command line.
type outcome struct {
	stdout, stderr string
	code           int
}

// command is a vendetta command in the user's namespace.
func (b *bed) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := b.where.Argv(append([]string{b.program}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = b.env
	cmd.Dir = b.home
	return cmd
}

// try runs a command and returns what came of it.
func (b *bed) try(args ...string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := b.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	code := cmd.ProcessState.ExitCode()
	if err != nil && ctx.Err() != nil {
		fmt.Fprintf(&stderr, "\n(ended by the test after %s)", patience)
	}
	return outcome{stdout.String(), stderr.String(), code}
}

// run runs a command that must succeed and returns its stdout.
func (b *bed) run(args ...string) string {
	b.t.Helper()
	o := b.try(args...)
	if o.code != 0 {
		b.t.Fatalf("vendetta %s: exit code %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
	}
	return o.stdout
}

// refuse runs a command that must fail, with every one of the words on stderr.
func (b *bed) refuse(words []string, args ...string) outcome {
	b.t.Helper()
	o := b.try(args...)
	if o.code == 0 {
		b.t.Errorf("vendetta %s succeeded:\n%s", strings.Join(args, " "), o.stdout)
	}
	for _, w := range words {
		if !strings.Contains(o.stderr, w) {
			b.t.Errorf("vendetta %s: stderr lacks %q:\n%s", strings.Join(args, " "), w, o.stderr)
		}
	}
	return o
}

// await polls until the condition holds.
func (b *bed) await(what string, limit time.Duration, holds func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: not within %s", what, limit)
		}
		<-tick.C
	}
}

// remote is a machine that the user reaches by SSH, with a home of its own.
type remote struct {
	sshd  *testbed.SSHD
	home  string
	state string
	where *testbed.Namespace
}

// newRemote starts a machine's sshd. env adds to the environment of its logins.
func (b *bed) newRemote(where *testbed.Namespace, address string, env map[string]string) *remote {
	b.t.Helper()
	return b.newRemoteAt(where, address, 0, env)
}

// newRemoteAt is newRemote on a port of the caller's choice, 0 for a free one, with
// lines for its sshd's config.
func (b *bed) newRemoteAt(where *testbed.Namespace, address string, port int, env map[string]string, config ...string) *remote {
	b.t.Helper()
	home, err := os.MkdirTemp("", "n")
	if err != nil {
		b.t.Fatal(err)
	}
	r := &remote{home: home, state: filepath.Join(home, "s"), where: where}
	if err := os.Mkdir(filepath.Join(home, "sshd"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	environment := map[string]string{
		"HOME": home, "VENDETTA_STATE_DIR": r.state,
		"VENDETTA_AUTHORIZED_KEYS": filepath.Join(home, "sshd", "authorized_keys"),
		"GOCOVERDIR":               testbed.CoverDir(b.t),
		"PATH":                     os.Getenv("PATH"),
	}
	for k, v := range env {
		environment[k] = v
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.sshd, err = testbed.StartSSHD(ctx, testbed.SSHDOptions{
		Dir: filepath.Join(home, "sshd"), Namespace: where, Address: address, Port: port,
		AuthorizedKeys: []string{b.publicKey}, Environment: environment, Config: config,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if b.t.Failed() {
			if log, err := os.ReadFile(filepath.Join(r.state, "agent", "agent.log")); err == nil {
				b.t.Logf("agent.log of %s:\n%s", address, tailOf(string(log), 40))
			}
		}
		r.sshd.Stop()
		if err := os.RemoveAll(home); err != nil {
			b.t.Errorf("remove a node: %v", err)
		}
	})
	// The bed's own removal needs the sshd, so it must come first.
	b.t.Cleanup(b.leave)
	return r
}

// leave removes workspaces and nodes while their machines still answer.
func (b *bed) leave() {
	if _, err := os.Stat(filepath.Join(b.state, "server", "server.sock")); err != nil {
		return
	}
	for _, name := range strings.Fields(b.try("workspace", "list", "-q").stdout) {
		b.try("workspace", "rm", name, "--force")
	}
	for _, name := range strings.Fields(b.try("node", "list", "-q").stdout) {
		b.try("node", "rm", name)
	}
}

// add adds the machine as a node by its accepted key.
func (b *bed) add(name string, r *remote, more ...string) {
	b.t.Helper()
	args := []string{"node", "add", name, r.sshd.User + "@" + r.sshd.Host, "--port", fmt.Sprint(r.sshd.Port), "--host-key", r.sshd.Fingerprint}
	b.run(append(args, more...)...)
}

// session is an MCP client that started the gateway over stdio.
type session struct {
	t *testing.T
	c *client.Client
}

func (b *bed) mcp() *session {
	b.t.Helper()
	argv := b.where.Argv(b.program, "mcp")
	c, err := client.NewStdioMCPClientWithOptions(argv[0], b.env, argv[1:],
		transport.WithCommandFunc(func(ctx context.Context, command string, env []string, args []string) (*exec.Cmd, error) {
			cmd := exec.CommandContext(ctx, command, args...)
			cmd.Env = env
			cmd.Dir = "/"
			return cmd, nil
		}))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	hello := mcp.InitializeRequest{}
	hello.Params.ProtocolVersion = mcp.LATEST_PROTOCOL_VERSION
	hello.Params.ClientInfo = mcp.Implementation{Name: "e2e", Version: "1"}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := c.Initialize(ctx, hello); err != nil {
		b.t.Fatalf("initialize: %v", err)
	}
	return &session{b.t, c}
}

// call calls a tool and returns its text, and whether it is an error.
func (s *session) call(tool string, args map[string]any) (string, bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req := mcp.CallToolRequest{}
	req.Params.Name = tool
	req.Params.Arguments = args
	result, err := s.c.CallTool(ctx, req)
	if err != nil {
		s.t.Fatalf("%s: %v", tool, err)
	}
	var text strings.Builder
	for _, c := range result.Content {
		if tc, ok := c.(mcp.TextContent); ok {
			text.WriteString(tc.Text)
		}
	}
	return text.String(), result.IsError
}

// must calls a tool that has to succeed and mention every one of the words.
func (s *session) must(words []string, tool string, args map[string]any) string {
	s.t.Helper()
	text, failed := s.call(tool, args)
	if failed {
		s.t.Fatalf("%s %v: %s", tool, args, text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.t.Fatalf("%s %v: the answer lacks %q:\n%s", tool, args, w, text)
		}
	}
	return text
}
