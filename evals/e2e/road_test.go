//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// network is three machines in a row: the user's, a gate, and the nodes behind
// it. Packets pass the gate; its link to the nodes can be cut.
type network struct {
	user, gate, nodes *testbed.Namespace
	cable             *testbed.Link
}

const (
	userAddress  = "192.0.2.1"
	gateAddress  = "192.0.2.2"
	innerAddress = "198.51.100.1"
	nodeAddress  = "198.51.100.2"
)

func newNetwork(t *testing.T) *network {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n := testbed.NewNetwork()
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Errorf("remove the network: %v", err)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w := &network{}
	var err error
	w.user, err = n.Add(ctx, "user")
	must(err)
	w.gate, err = n.Add(ctx, "gate")
	must(err)
	w.nodes, err = n.Add(ctx, "nodes")
	must(err)
	_, err = n.Connect(ctx, w.user, userAddress+"/24", w.gate, gateAddress+"/24")
	must(err)
	w.cable, err = n.Connect(ctx, w.gate, innerAddress+"/24", w.nodes, nodeAddress+"/24")
	must(err)
	must(w.gate.Forward(ctx))
	must(w.user.Route(ctx, "198.51.100.0/24", gateAddress))
	must(w.nodes.Route(ctx, "192.0.2.0/24", innerAddress))
	return w
}

// dockerNode is a machine in the node's namespace with the host's Docker socket.
func (w *network) dockerNode(b *bed) *remote {
	return b.newRemote(w.nodes, nodeAddress, map[string]string{"DOCKER_HOST": testbed.Docker(b.t)})
}

// providers are all that a workspace can be made with.
var providers = []string{"docker", "lxc", "qemu", "native"}

// An MCP client on the user's machine works in a workspace on another machine,
// over SSH, across three network namespaces; the same on every provider.
func TestWholeRoad(t *testing.T) {
	for _, provider := range providers {
		t.Run(provider, func(t *testing.T) {
			testbed.Wants(t, provider)
			testWholeRoad(t, provider)
		})
	}
}

func testWholeRoad(t *testing.T, provider string) {
	w := newNetwork(t)
	b := newBed(t, w.user)
	env, store := map[string]string{}, "node"
	switch provider {
	case "docker":
		env["DOCKER_HOST"], store = testbed.Docker(t), "docker"
	case "qemu":
		env["VENDETTA_QEMU_KERNEL"] = testbed.Kernel(t)
	}
	r := b.newRemote(w.nodes, nodeAddress, env)
	b.refuse([]string{r.sshd.Fingerprint, "--host-key"}, "node", "add", "build1", r.sshd.User+"@"+nodeAddress, "--port", fmt.Sprint(r.sshd.Port))
	b.add("build1", r)
	b.run("image", "import", testbed.Archive(t), "--node", "build1", "--store", store, "--name", testbed.BaseImage)
	s := b.mcp()
	s.must([]string{"build1", "ready"}, "node_list", nil)
	s.must([]string{provider}, "node_status", map[string]any{"name": "build1"})
	s.must([]string{"fix-login", "running"}, "workspace_create", map[string]any{
		"name": "fix-login", "node": "build1", "provider": provider, "image": testbed.BaseImage,
	})
	in := func(args map[string]any) map[string]any {
		args["workspace"] = "fix-login"
		return args
	}
	s.must([]string{"hello from there"}, "exec", in(map[string]any{"argv": []string{"echo", "hello from there"}}))
	s.must([]string{"7"}, "exec", in(map[string]any{"script": "exit 7"}))
	s.must(nil, "file_write", in(map[string]any{"path": "a/b.txt", "content": "one\ntwo\n"}))
	s.must(nil, "file_edit", in(map[string]any{"path": "a/b.txt", "old_text": "two", "new_text": "three"}))
	s.must([]string{"one\nthree"}, "file_read", in(map[string]any{"path": "a/b.txt"}))
	s.must([]string{"a/b.txt"}, "file_search", in(map[string]any{"pattern": "thr.e"}))
	s.must([]string{"b.txt"}, "file_list", in(map[string]any{"path": "a"}))
	text := s.must([]string{"running"}, "exec", in(map[string]any{"script": "read line; echo got $line; sleep 1; echo end", "stdin_open": true, "wait_seconds": 1}))
	id := processID(t, text)
	s.must(nil, "process_input", in(map[string]any{"process_id": id, "text": "words\n"}))
	s.must([]string{"got words", "end"}, "process_output", in(map[string]any{"process_id": id, "wait_seconds": 20}))
	s.must([]string{id}, "process_list", in(map[string]any{}))
	named := map[string]any{"name": "fix-login"}
	s.must(nil, "workspace_stop", named)
	s.must(nil, "workspace_up", named)
	s.must([]string{"one\nthree"}, "file_read", in(map[string]any{"path": "a/b.txt"}))
	s.must(nil, "workspace_rm", named)
	if text, failed := s.call("workspace_status", named); !failed || !strings.Contains(text, "fix-login") {
		t.Errorf("the status of a removed workspace: %s", text)
	}
	b.run("node", "rm", "build1")
	keys, err := os.ReadFile(r.sshd.AuthorizedKeys)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(keys), "vendetta-server") {
		t.Errorf("the server's key is left on the node:\n%s", keys)
	}
	if left, err := os.ReadDir(r.state); err == nil && len(left) > 0 {
		t.Errorf("left of the agent on the node: %v", left)
	}
}

func TestRoadThroughAJumpHost(t *testing.T) {
	testbed.Wants(t, "docker")
	w := newNetwork(t)
	b := newBed(t, w.user)
	gate := b.newRemote(w.gate, gateAddress, nil)
	r := w.dockerNode(b)
	jump := fmt.Sprintf("%s@%s:%d", gate.sshd.User, gateAddress, gate.sshd.Port)
	b.refuse([]string{gate.sshd.Fingerprint}, "node", "add", "inner", r.sshd.User+"@"+nodeAddress, "--port", fmt.Sprint(r.sshd.Port), "--jump", jump)
	b.add("inner", r, "--jump", jump, "--host-key", gate.sshd.Fingerprint)
	s := b.mcp()
	s.must([]string{"running"}, "workspace_create", map[string]any{"name": "w", "provider": "docker", "image": testbed.Image(t)})
	s.must([]string{"through the gate"}, "exec", map[string]any{"workspace": "w", "argv": []string{"echo", "through the gate"}})
}

func TestFiveNodesAtOnce(t *testing.T) {
	testbed.Wants(t, "docker")
	w := newNetwork(t)
	b := newBed(t, w.user)
	image := testbed.Image(t)
	names := []string{"n1", "n2", "n3", "n4", "n5"}
	remotes := map[string]*remote{}
	for _, name := range names {
		remotes[name] = w.dockerNode(b)
	}
	b.run("server", "start")
	var all sync.WaitGroup
	for _, name := range names {
		all.Add(1)
		go func() {
			defer all.Done()
			r := remotes[name]
			o := b.try("node", "add", name, r.sshd.User+"@"+nodeAddress, "--port", fmt.Sprint(r.sshd.Port), "--host-key", r.sshd.Fingerprint)
			if o.code != 0 {
				t.Errorf("add %s: %s", name, o.stderr)
				return
			}
			if o := b.try("workspace", "create", "w-"+name, "--node", name, "--provider", "docker", "--image", image); o.code != 0 {
				t.Errorf("create on %s: %s", name, o.stderr)
				return
			}
			if o := b.try("workspace", "exec", "w-"+name, "--", "hostname"); o.stdout != "w-"+name+"\n" {
				t.Errorf("exec on %s: %q %s", name, o.stdout, o.stderr)
			}
		}()
	}
	all.Wait()
	if got := strings.Count(b.run("node", "list"), " ready "); got != len(names) {
		t.Errorf("%d of %d nodes are ready:\n%s", got, len(names), b.run("node", "list"))
	}
}

// The cable is pulled for 30 seconds in the middle of a command. The command goes
// on meanwhile, its reader within five seconds of the repair, and nothing is
// lost or started twice.
func TestLinkIsCutFor30Seconds(t *testing.T) {
	testbed.Wants(t, "docker")
	w := newNetwork(t)
	b := newBed(t, w.user)
	b.add("build1", w.dockerNode(b))
	b.run("workspace", "create", "w", "--provider", "docker", "--image", testbed.Image(t))

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	lines := newLineLog()
	cmd := b.command(ctx, "workspace", "exec", "w", "--", "sh", "-c", "echo started >>starts; for i in $(seq 1 45); do echo line $i; sleep 1; done; exit 5")
	cmd.Stdout = lines
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.await("the first lines", 20*time.Second, func() bool { return lines.count() >= 3 })
	if err := w.cable.Cut(ctx); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	timer := time.NewTimer(30 * time.Second)
	<-timer.C
	during := lines.count()
	if err := w.cable.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	repaired := time.Now()
	b.await("output after the repair", 5*time.Second, func() bool { return lines.count() > during+20 })
	t.Logf("cut for %s; output went on %s after the repair", repaired.Sub(cut).Round(time.Second), time.Since(repaired).Round(10*time.Millisecond))
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit code %d, the command's own is 5", code)
	}
	var want strings.Builder
	for i := 1; i <= 45; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := lines.String(); got != want.String() {
		t.Errorf("the output is not complete:\n%s", got)
	}
	if got := b.run("workspace", "exec", "w", "--", "cat", "starts"); got != "started\n" {
		t.Errorf("starts: %q", got)
	}
	if during > 10 {
		t.Errorf("%d lines arrived while the cable was cut: it was not", during)
	}
}

// Where the sshd forbids forwarding to sockets, the road goes over a session's
// stdin and stdout, and is the same above.
func TestRoadWhereSocketsAreForbidden(t *testing.T) {
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	r := b.newRemoteAt(nil, "127.0.0.1", 0, nil, "AllowStreamLocalForwarding no")
	b.add("build1", r)
	b.run("workspace", "create", "w", "--provider", "native")
	if got := b.run("workspace", "exec", "w", "--", "echo", "by another road"); got != "by another road\n" {
		t.Errorf("exec: %q", got)
	}
	whileRunning(t, b, 6, func() { r.sshd.Disconnect() })
}
