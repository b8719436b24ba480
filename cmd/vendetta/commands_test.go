package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

// everyCommand is a valid line of each command that asks the server.
var everyCommand = []string{
	"node list", "node status build1", "node test build1", "node logs build1", "node label build1 a=b", "node drain build1",
	"node undrain build1", "node spares build1 --provider docker --count 1", "node rm build1", "node add two --local", "node add two dev@192.0.2.9", "workspace list", "workspace status w",
	"workspace create w2", "workspace up w", "workspace stop w", "workspace down w", "workspace rm w", "workspace exec w -- echo",
	"workspace exec -d w -- echo", "workspace cp go.mod w:x", "workspace cp w:x .", "workspace ps w", "workspace logs w p", "workspace kill w p",
	"workspace snapshot create w s", "workspace snapshot list w", "workspace snapshot restore w s", "workspace snapshot rm w s", "workspace fork w w2",
	"workspace pause w", "workspace resume w", "workspace resize w --cpus 2", "workspace stats w",
	"image list", "image pull debian:12", "image import -", "image prune", "server start", "mcp",
}

func TestServerCannotBeReached(t *testing.T) {
	for _, line := range everyCommand {
		t.Run(line, func(t *testing.T) {
			var out strings.Builder
			a := newApp(strings.NewReader(""), &out, &out, func(string) string { return "" })
			a.connect = func(context.Context) (*client.Client, error) {
				return nil, api.Errorf(api.Unavailable, "server: none runs").WithNext("vendetta server start")
			}
			want := 6
			if strings.Contains(line, "exec") {
				want = exitOwnFailure
			}
			code := run(context.Background(), a, append([]string{"--state-dir", t.TempDir()}, strings.Fields(line)...))
			if code != want || out.String() != "vendetta: server: none runs\n  next: vendetta server start\n" {
				t.Errorf("exit code %d, want %d; %q", code, want, out.String())
			}
		})
	}
}

// A server that was killed may still take a connection and answer nothing on it.
func TestStartWhileAnotherServerEnds(t *testing.T) {
	s := newStage(t)
	ending := func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		return ours, theirs.Close()
	}
	for name, dying := range map[string]int{"one": 2, "all": startTries} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			a := newApp(strings.NewReader(""), &out, &out, func(name string) string { return s.env[name] })
			connects := 0
			a.connect = func(context.Context) (*client.Client, error) {
				if connects++; connects <= dying {
					return client.New(ending), nil
				}
				return client.New(s.server.Dial), nil
			}
			code := run(context.Background(), a, []string{"server", "start"})
			if started := code == 0 && strings.Contains(out.String(), "running"); started != (dying < startTries) {
				t.Errorf("exit code %d after %d connections: %s", code, connects, out.String())
			}
		})
	}
}

func TestServerAnswersAnError(t *testing.T) {
	for _, line := range everyCommand {
		if line == "mcp" { // it asks nothing before its client does
			continue
		}
		t.Run(line, func(t *testing.T) {
			s := newStage(t)
			s.server.AddNode("build1")
			s.server.AddWorkspace(t, "w")
			s.nodes.breaks("vendetta.")
			want := 1
			if strings.Contains(line, "exec") {
				want = exitOwnFailure
			}
			if strings.HasPrefix(line, "workspace cp go.mod") {
				line = "workspace cp " + filepath.Join("..", "..", "go.mod") + " w:x"
			}
			s.fails(want, line, "vendetta: ", "the server is out of order")
		})
	}
}

func TestNodeCommands(t *testing.T) {
	s := newStage(t)
	if r := s.ok("node list"); !strings.Contains(r.err, "no nodes yet") {
		t.Errorf("an empty list says %q", r.err)
	}
	n := s.server.AddNode("build1")
	s.ok("node list", "NAME", "build1", "ready", "dev@192.0.2.7", "docker", "4.0 GiB")
	if r := s.ok("node list -q"); r.out != "build1\n" {
		t.Errorf("quiet: %q", r.out)
	}
	n.Message = "all\x1b[31m well"
	s.ok("node status build1", "usable, version 28.0", "not usable: user namespaces", "fix: sudo sysctl", "zone=a", "all [31m well", "4.0 GiB free of 8.0 GiB")
	if r := s.ok("node status build1 -q"); r.out != "build1\n" {
		t.Errorf("quiet: %q", r.out)
	}
	s.fails(3, "node status nothere", "next: vendetta node list")
	s.ok("node logs build1 --tail 2", "first line\nsecond line\n")
	s.ok("node label build1 disk=fast old-", "build1")
	if got := s.nodes.label; got.GetSet()["disk"] != "fast" || !slices.Equal(got.GetRemove(), []string{"old"}) {
		t.Errorf("label: %v", got)
	}
	for _, bad := range []string{"=x", "word", "-"} {
		s.fails(2, "node label build1 -- "+bad, "neither key=value nor key-")
	}
	s.ok("node drain build1", "build1")
	if !s.nodes.drain.GetDrain() {
		t.Error("drain did not drain")
	}
	s.ok("node undrain build1 --json", `"name": "build1"`)
	if s.nodes.drain.GetDrain() {
		t.Error("undrain drained")
	}
	if r := s.ok("node rm build1 --force"); !strings.Contains(r.err, "stays on the machine") || !s.nodes.remove.GetForce() {
		t.Errorf("rm: %q, %v", r.err, s.nodes.remove)
	}
}

func TestNodeTestJudgesItsChecks(t *testing.T) {
	ok := func(name string) *vendettav1.NodeCheck {
		return &vendettav1.NodeCheck{Name: name, Ok: true, Millis: 1.5}
	}
	bad := func(name string) *vendettav1.NodeCheck {
		return &vendettav1.NodeCheck{Name: name, Message: "it is not there", Fix: "apt-get install it"}
	}
	for _, c := range []struct {
		name   string
		checks []*vendettav1.NodeCheck
		code   int
		word   string
	}{
		{"all is well", []*vendettav1.NodeCheck{ok("connection"), ok("provider docker")}, 0, "1.5 ms"},
		{"one provider is enough", []*vendettav1.NodeCheck{ok("provider docker"), bad("provider native")}, 0, "missing"},
		{"no provider", []*vendettav1.NodeCheck{ok("connection"), bad("provider native")}, 5, "failed"},
		{"no connection", []*vendettav1.NodeCheck{bad("connection"), ok("provider docker")}, 5, "it is not there; fix: apt-get install it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			s.server.AddNode("build1")
			s.nodes.checks = c.checks
			r := s.run("node", "test", "build1")
			if r.code != c.code || !strings.Contains(r.out, c.word) {
				t.Errorf("exit code %d, want %d; %q is to be in:\n%s%s", r.code, c.code, c.word, r.out, r.err)
			}
		})
	}
}

func TestNodeAddOptions(t *testing.T) {
	for _, c := range []struct {
		line string
		want nodeAddOptions
		bad  string
	}{
		{line: "node add b dev@h", want: nodeAddOptions{name: "b", address: "dev@h"}},
		{line: "node add --local", want: nodeAddOptions{name: "local", local: true}},
		{line: "node add here --local", want: nodeAddOptions{name: "here", local: true}},
		{
			line: "node add b h --port 2222 --jump a --jump b@c:1 --identity key --host-key SHA256:x --label k=v",
			want: nodeAddOptions{name: "b", address: "h", port: 2222, jump: []string{"a", "b@c:1"}, identity: "key", hostKeys: []string{"SHA256:x"}, labels: map[string]string{"k": "v"}},
		},
		{line: "node add", bad: "takes 2 argument(s), got 0"},
		{line: "node add b", bad: "takes 2"},
		{line: "node add b h --local", bad: "takes 1"},
		{line: "node add b h --port x", bad: "invalid argument"},
	} {
		t.Run(c.line, func(t *testing.T) {
			a := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, func(string) string { return "" })
			var got nodeAddOptions
			cmd := newNodeAdd(a, func(_ context.Context, _ *app, o nodeAddOptions) error { got = o; return nil })
			cmd.SetArgs(strings.Fields(c.line)[2:])
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			err := cmd.Execute()
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.name != c.want.name || got.address != c.want.address || got.local != c.want.local || got.port != c.want.port || got.identity != c.want.identity ||
				!slices.Equal(got.jump, c.want.jump) || !slices.Equal(got.hostKeys, c.want.hostKeys) || len(got.labels) != len(c.want.labels) {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestNodeAddSends(t *testing.T) {
	s := newStage(t)
	s.env["SSH_AUTH_SOCK"] = "/run/agent.sock"
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.nodes.probes = [][]*vendettav1.HostKey{{{Host: "192.0.2.9", Fingerprint: "SHA256:b", Known: true}}}
	r := s.ok("node add two dev@192.0.2.9:2222 --jump gate --identity "+key+" --label k=v", "two")
	if !strings.Contains(r.err, "node two is ready; usable here: docker") {
		t.Errorf("said %q", r.err)
	}
	got := s.nodes.added
	if a := got.GetAddress(); a.GetHost() != "192.0.2.9" || a.GetUser() != "dev" || a.GetPort() != 2222 || a.GetJump()[0] != "gate" || a.GetIdentity() != key {
		t.Errorf("address %v", a)
	}
	if got.GetLogin().GetAgentSocket() != "/run/agent.sock" || got.GetLogin().GetIdentities()[0] != key || got.GetLabels()["k"] != "v" || got.GetIdempotencyKey() == "" {
		t.Errorf("request %v", got)
	}
	s.fails(2, "node add three -- -oProxyCommand=x", "not a host name")
	s.fails(2, "node add three h --jump a/b", "not a host name")
	s.fails(2, "node add three h --identity /nothere", "name a private key file")
}

func TestHostKeyWithoutATerminal(t *testing.T) {
	s := newStage(t)
	unknown := func(host, print string) *vendettav1.HostKey {
		return &vendettav1.HostKey{Host: host, Type: "ssh-ed25519", Fingerprint: print}
	}
	s.nodes.probes = [][]*vendettav1.HostKey{{unknown("192.0.2.9", "SHA256:b")}}
	s.fails(5, "node add two dev@192.0.2.9", "192.0.2.9", "ssh-ed25519 SHA256:b", "--host-key SHA256:b")
	if s.nodes.added != nil {
		t.Error("the node was added all the same")
	}
	s.nodes.probes = [][]*vendettav1.HostKey{{unknown("192.0.2.9", "SHA256:b")}}
	s.ok("node add two dev@192.0.2.9 --host-key SHA256:b")
	if !slices.Equal(s.nodes.added.GetAcceptedFingerprints(), []string{"SHA256:b"}) {
		t.Errorf("accepted %v", s.nodes.added.GetAcceptedFingerprints())
	}
}

func TestParseAddress(t *testing.T) {
	for _, c := range []struct {
		in   string
		port int
		want string
	}{
		{"host", 0, "host"},
		{"dev@host", 22, "dev@host:22"},
		{"dev@host:2222", 0, "dev@host:2222"},
		{"dev@host:22", 22, "dev@host:22"},
		{"dev@[2001:db8::1]:22", 0, "dev@2001:db8::1:22"},
		{"[2001:db8::1]", 0, "2001:db8::1"},
		{"2001:db8::1", 0, "2001:db8::1"},
		{"@host", 0, ""},
		{"", 0, ""},
		{"dev@", 0, ""},
		{"-oProxyCommand=x", 0, ""},
		{"-l@host", 0, ""},
		{"dev@-host", 0, ""},
		{"a b@host", 0, ""},
		{"dev@ho/st", 0, ""},
		{"dev@gate@host", 0, ""},
		{"host:ssh", 0, ""},
		{"host:", 0, ""},
		{"host:22", 23, ""},
		{"host", -1, ""},
		{"host:70000", 0, ""},
	} {
		got, err := parseAddress(c.in, c.port)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q was taken as %v", c.in, got)
		case c.want == "" && api.From(err).Next == "":
			t.Errorf("%q: %v has no next step", c.in, err)
		case c.want != "" && err != nil:
			t.Errorf("%q: %v", c.in, err)
		case c.want != "" && addressText(got) != c.want:
			t.Errorf("%q is %s, want %s", c.in, addressText(got), c.want)
		}
	}
}

func TestCreateOptions(t *testing.T) {
	a := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, func(string) string { return "" })
	var got createOptions
	cmd := newWorkspaceCreate(a, func(_ context.Context, _ *app, o createOptions) error { got = o; return nil })
	cmd.SetArgs(strings.Fields("w --node n --provider docker --image i --from . --clean --cpus 1.5 --memory 2G --disk 10G --checksum sha256:00 --pids 100 --network none --privileged"))
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	want := createOptions{name: "w", node: "n", provider: "docker", image: "i", from: ".", clean: true, cpus: 1.5, memory: "2G", disk: "10G", checksum: "sha256:00", pids: 100, network: "none", privileged: true}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	spec, err := got.spec()
	if err != nil {
		t.Fatal(err)
	}
	if r := spec.GetResources(); r.GetCpus() != 1.5 || r.GetMemoryBytes() != 2<<30 || r.GetDiskBytes() != 10<<30 || spec.GetChecksum() != "sha256:00" || r.GetPids() != 100 || spec.GetNetwork() != vendettav1.Network_NETWORK_NONE {
		t.Errorf("spec %v", spec)
	}
	for name, bad := range map[string]createOptions{
		"a network that is none": {network: "moon"},
		"memory without number":  {network: "none", memory: "lots"},
		"disk without number":    {network: "none", disk: "all"},
		"negative processors":    {network: "none", cpus: -1},
		"negative processes":     {network: "none", pids: -1},
		"clean without from":     {network: "none", clean: true},
	} {
		if _, err := bad.spec(); api.CodeOf(err) != api.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"": 0, "1": 1, "512b": 512, "512M": 512 << 20, "2g": 2 << 30, "2GB": 2 << 30, "2GiB": 2 << 30, "1K": 1024, "3T": 3 << 40,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"0", "-1", "1.5G", "G", "5I", "2X", "99999999999999999999", "99999999T", " 1", "1 G"} {
		if got, err := parseSize(bad); err == nil {
			t.Errorf("%q was taken as %d", bad, got)
		}
	}
}

func TestCreate(t *testing.T) {
	s := newStage(t)
	s.server.AddNode("build1")
	r := s.ok("workspace create w --memory 1G", "w\n")
	if !strings.Contains(r.err, "the only one") || !strings.Contains(r.err, "workspace w is running on build1") {
		t.Errorf("said %q", r.err)
	}
	s.ok("workspace status w", "memory", "1.0 GiB")
	if r := s.ok("workspace create quiet -q"); r.err != "" {
		t.Errorf("quiet said %q", r.err)
	}
	s.fails(2, "workspace create bad", "no name")
	s.fails(2, "workspace create w5 --network moon")

	s.server.Lock()
	s.server.Hold = true
	s.server.Unlock()
	done := make(chan result)
	go func() { done <- s.run("workspace", "create", "late") }()
	s.await("a waiting call", func() bool { return s.server.Count("WaitOperation") > 0 })
	s.server.Release("there is no such image")
	if r := <-done; r.code != 3 || !strings.Contains(r.err, "create late: there is no such image\n  next: name another image") {
		t.Errorf("a failed create: %+v", r)
	}
	s.ok("workspace list", "failed", "there is no such image")
	s.ok("workspace status late", "next", "name another image")
}

func TestInterruptedWaitSaysThatItGoesOn(t *testing.T) {
	s := newStage(t)
	s.server.Hold = true
	ctx, cancel := context.WithCancel(context.Background())
	a := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, func(string) string { return "" })
	a.connect = func(context.Context) (*client.Client, error) { return client.New(s.server.Dial), nil }
	done := make(chan error)
	go func() { done <- runWorkspaceCreate(ctx, a, createOptions{name: "w", network: "private"}) }()
	s.await("a waiting call", func() bool { return s.server.Count("WaitOperation") > 0 })
	cancel()
	err := <-done
	if e := api.From(err); e == nil || !strings.Contains(e.Message, "it goes on") || e.Next != "vendetta workspace status w" {
		t.Errorf("got %v", err)
	}
}

func TestCreateFromBringsTheRepositoryOnce(t *testing.T) {
	s := newStage(t)
	s.server.AddNode("build1")
	dir := t.TempDir()
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "-q", "--allow-empty", "-m", "first"}} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git: %v\n%s", err, out)
		}
	}
	s.ok("workspace create w --from " + dir)
	if s.server.Count("Import") != 1 {
		t.Fatalf("%d imports", s.server.Count("Import"))
	}
	s.ok("workspace status w", "from", "main at ", "git version", "changed files", "none")
	s.fails(5, "workspace create w2 --from "+t.TempDir(), "git")
	s.nodes.breaks("Import")
	s.fails(1, "workspace create w3 --from "+dir, "repeat the command to go on")
	s.nodes.breaks("ProjectStatus")
	s.fails(1, "workspace create w4 --from "+dir)
	s.ok("workspace status w", "not known: the server is out of order")
}

func TestWorkspaceCommands(t *testing.T) {
	s := newStage(t)
	if r := s.ok("workspace list"); !strings.Contains(r.err, "no workspaces yet") {
		t.Errorf("an empty list says %q", r.err)
	}
	g := s.server.AddWorkspace(t, "w")
	s.ok("ws ls", "w", "running", "debian:12")
	if r := s.ok("workspace list --node other"); r.out != "" {
		t.Errorf("another node's: %q", r.out)
	}
	s.ok("workspace stop w", "w\n")
	s.ok("workspace status w", "stopped")
	s.ok("workspace up w", "w\n")
	s.ok("workspace down w --json", `"verb": "down"`)
	s.ok("workspace up w")
	g.SetChanges("a.txt", "b.txt")
	s.fails(5, "workspace rm w", "changes exist only there: a.txt", "next:")
	if r := s.ok("workspace status w -q"); r.out != "w\n" {
		t.Errorf("quiet: %q", r.out)
	}
	s.ok("workspace rm w --force", "w\n")
	s.fails(3, "workspace status w")
}

func TestProjectRows(t *testing.T) {
	if got := countAndNames(7, []string{"a", "b"}); got != "7: a, b, ..." {
		t.Error(got)
	}
	if got := countAndNames(2, []string{"a", "b"}); got != "2: a, b" {
		t.Error(got)
	}
	table := workspaceTable(&vendettav1.Workspace{Name: "w", Spec: &vendettav1.WorkspaceSpec{
		Resources: &vendettav1.Resources{Cpus: 1.5}, Source: &vendettav1.Source{Path: "/src", Commit: "0123456789abcdef", Dirty: true},
	}})
	text := ""
	for _, row := range table.rows {
		text += strings.Join(row, " ") + "\n"
	}
	for _, want := range []string{"cpus 1.5\n", "from /src, - at 0123456789ab, with uncommitted files\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
}

func TestMCPOptions(t *testing.T) {
	s := newStage(t)
	s.fails(2, "mcp --toolsets nonsense", "nonsense", "next: vendetta mcp --help")
	s.input = `{"jsonrpc":"2.0","id":1,"method":"ping"}` + "\n"
	s.ok("mcp --read-only", `"id":1`)
}

func TestErrorsBecomeExitCodes(t *testing.T) {
	for code, want := range exitCodes {
		if got := exitCode(api.Errorf(code, "x")); got != want {
			t.Errorf("%s: %d, want %d", code, got, want)
		}
	}
	if got := exitCode(errors.New("x")); got != 1 {
		t.Errorf("any other error: %d", got)
	}
}
