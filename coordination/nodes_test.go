package coordination

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/coordination/store/memory"
)

func TestAddNodeRefusesBadInput(t *testing.T) {
	inWorld(t, nil, func(ctx context.Context, w *world) {
		add := func(edit func(*vendettav1.AddNodeRequest)) error {
			req := &vendettav1.AddNodeRequest{Name: "build1", Address: &vendettav1.NodeAddress{Host: "build1"}}
			edit(req)
			_, err := w.server.AddNode(ctx, req)
			return err
		}
		long := map[string]string{}
		for i := range 100 {
			long[fmt.Sprint(i)] = "x"
		}
		bad := map[string]func(*vendettav1.AddNodeRequest){
			"name":             func(r *vendettav1.AddNodeRequest) { r.Name = "a/b" },
			"empty":            func(r *vendettav1.AddNodeRequest) { r.Name = "" },
			"no host":          func(r *vendettav1.AddNodeRequest) { r.Address = nil },
			"host is option":   func(r *vendettav1.AddNodeRequest) { r.Address.Host = "-oProxyCommand=x" },
			"host has slash":   func(r *vendettav1.AddNodeRequest) { r.Address.Host = "a/b" },
			"host has control": func(r *vendettav1.AddNodeRequest) { r.Address.Host = "a\tb" },
			"long host":        func(r *vendettav1.AddNodeRequest) { r.Address.Host = strings.Repeat("h", 3000) },
			"user":             func(r *vendettav1.AddNodeRequest) { r.Address.User = "-l" },
			"port":             func(r *vendettav1.AddNodeRequest) { r.Address.Port = 70000 },
			"jump":             func(r *vendettav1.AddNodeRequest) { r.Address.Jump = []string{"-J"} },
			"empty jump":       func(r *vendettav1.AddNodeRequest) { r.Address.Jump = []string{""} },
			"identity":         func(r *vendettav1.AddNodeRequest) { r.Address.Identity = "-i" },
			"both":             func(r *vendettav1.AddNodeRequest) { r.Address.Local = true },
			"fingerprint":      func(r *vendettav1.AddNodeRequest) { r.AcceptedFingerprints = []string{"MD5:00"} },
			"label":            func(r *vendettav1.AddNodeRequest) { r.Labels = map[string]string{"a=b": "c"} },
			"labels":           func(r *vendettav1.AddNodeRequest) { r.Labels = long },
		}
		for what, edit := range bad {
			if err := add(edit); api.CodeOf(err) != api.InvalidArgument {
				t.Errorf("%s: %v", what, err)
			}
		}
		list, err := w.server.ListNodes(ctx, &vendettav1.ListNodesRequest{})
		if err != nil || len(list.GetNodes()) != 0 {
			t.Errorf("half-made nodes: %v, %v", list, err)
		}

		// Logins are lent over the server's own socket only.
		login := &vendettav1.Login{Password: "secret"}
		remote := WithPrincipal(ctx, Principal{Name: "far", Scope: vendettav1.Scope_SCOPE_ADMIN})
		_, err = w.server.AddNode(remote, &vendettav1.AddNodeRequest{Name: "x", Address: &vendettav1.NodeAddress{Host: "x"}, Login: login})
		wantError(t, err, api.PermissionDenied, "own socket")
		_, err = w.server.ProbeNode(remote, &vendettav1.ProbeNodeRequest{Address: &vendettav1.NodeAddress{Host: "x"}, Login: login})
		wantError(t, err, api.PermissionDenied, "own socket")
	})
}

func TestProbeNode(t *testing.T) {
	inWorld(t, nil, func(ctx context.Context, w *world) {
		w.fleet.keys = []*vendettav1.HostKey{{Host: "build1", Fingerprint: "SHA256:abc"}}
		req := &vendettav1.ProbeNodeRequest{Address: &vendettav1.NodeAddress{Host: "build1"}, AcceptedFingerprints: []string{"SHA256:jump"}}
		resp, err := w.server.ProbeNode(ctx, req)
		if err != nil || len(resp.GetHostKeys()) != 1 || !slices.Equal(w.fleet.targets[0].HostKeys, req.GetAcceptedFingerprints()) {
			t.Fatalf("%v, %v, %v", resp, err, w.fleet.targets)
		}
		w.fleet.dialErr = api.Errorf(api.Unavailable, "host unreachable").WithNext("check the address")
		_, err = w.server.ProbeNode(ctx, req)
		wantError(t, err, api.Unavailable, "unreachable")
	})
}

func TestAddNodeWhereInstallationFails(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		req := &vendettav1.AddNodeRequest{
			Name: "build1", Address: &vendettav1.NodeAddress{Host: "build1"}, AcceptedFingerprints: []string{"SHA256:abc"},
			Login: &vendettav1.Login{Password: "secret"}, Labels: map[string]string{"zone": "a"},
		}
		changed := api.Errorf(api.FailedPrecondition, "host build1: its key has changed").WithNext("ssh-keygen -R build1")
		w.fleet.install = func(target Target, login *vendettav1.Login) error {
			if !slices.Equal(target.HostKeys, []string{"SHA256:abc"}) || login.GetPassword() != "secret" || target.ID == "" {
				t.Errorf("target %v, login %v", target, login)
			}
			return changed
		}
		_, err := w.server.AddNode(ctx, req)
		wantError(t, err, api.FailedPrecondition, "key has changed")
		_, err = w.server.GetNode(ctx, &vendettav1.GetNodeRequest{Name: "build1"})
		wantError(t, err, api.NotFound)
		if len(w.fleet.forgotten) != 1 {
			t.Error("the dialer still keeps the node")
		}

		// A repair that fails keeps the record.
		w.fleet.install = nil
		if _, err := w.server.AddNode(ctx, req); err != nil {
			t.Fatal(err)
		}
		w.fleet.install = func(Target, *vendettav1.Login) error { return changed }
		_, err = w.server.AddNode(ctx, req)
		wantError(t, err, api.FailedPrecondition)
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady || n.GetLabels()["zone"] != "a" || n.GetAddress().GetSocket() == "" {
			t.Errorf("%v", n)
		}
	})
}

func TestAddNodeWhoseAgentStaysSilent(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		agent := w.fleet.agent("build1")
		agent.set(func() { agent.mute = true })
		req := &vendettav1.AddNodeRequest{Name: "build1", Address: &vendettav1.NodeAddress{Host: "build1", User: "dev", Port: 2222, Jump: []string{"gate"}}}
		_, err := w.server.AddNode(ctx, req)
		wantError(t, err, api.Unavailable, "does not answer")
		n := w.node(ctx, "build1")
		if n.GetState() != vendettav1.NodeState_NODE_STATE_JOINING || n.GetMessage() == "" {
			t.Fatalf("%v", n)
		}
		_, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		wantError(t, err, api.Unavailable, "build1")
		agent.set(func() { agent.mute = false; agent.cut() })
		if _, err := w.server.AddNode(ctx, req); err != nil {
			t.Fatal(err)
		}
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady || n.GetMessage() != "" {
			t.Fatalf("%v", n)
		}
	})
}

func TestAddNodeAgain(t *testing.T) {
	inWorld(t, []string{"", "build1"}, func(ctx context.Context, w *world) {
		first := w.addRemote(ctx, "build1")
		again, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{
			Name: "build1", Address: &vendettav1.NodeAddress{Host: "build1", User: "dev", Identity: "/keys/id"},
			AcceptedFingerprints: []string{"SHA256:new"}, Labels: map[string]string{"zone": "b"},
		})
		if err != nil || again.GetId() != first.GetId() || again.GetLabels()["zone"] != "b" || again.GetAddress().GetIdentity() != "/keys/id" {
			t.Fatalf("%v, %v", again, err)
		}
		if !slices.Equal(w.fleet.forgotten, []string{first.GetId()}) {
			t.Errorf("the dialer keeps what was made without the new key: %v", w.fleet.forgotten)
		}
		_, err = w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "build1", Address: &vendettav1.NodeAddress{Host: "other"}})
		wantError(t, err, api.AlreadyExists, "dev@build1")
		_, err = w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "build2", Address: &vendettav1.NodeAddress{Host: "build1", User: "dev"}})
		wantError(t, err, api.AlreadyExists, "node build1 already")

		// While it is being added nobody else adds or removes it.
		entered, leave := make(chan struct{}), make(chan struct{})
		w.fleet.install = func(Target, *vendettav1.Login) error {
			close(entered)
			<-leave
			return nil
		}
		added := make(chan error, 1)
		go func() {
			_, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "local", Address: &vendettav1.NodeAddress{Local: true}})
			added <- err
		}()
		<-entered
		_, err = w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "local", Address: &vendettav1.NodeAddress{Local: true}})
		wantError(t, err, api.Conflict, "local")
		_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local"})
		wantError(t, err, api.Conflict, "local")
		close(leave)
		if err := <-added; err != nil {
			t.Fatal(err)
		}
	})
}

func TestRemoveNode(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		_, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local"})
		wantError(t, err, api.NotFound, "local")
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		for _, force := range []bool{false, true} {
			_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local", Force: force})
			wantError(t, err, api.FailedPrecondition, "on it: x")
		}
		if err := w.remove(ctx, "x", false); err != nil {
			t.Fatal(err)
		}
		w.fleet.uninstall = func(Target) error { return errors.New("connection reset") }
		_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local"})
		wantError(t, err, api.Internal, "could not be removed")
		pass(time.Second)
		if n := w.node(ctx, "local"); n.GetState() != nodeReady {
			t.Fatalf("not as before: %v", n)
		}
		w.fleet.uninstall = nil
		if resp, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local"}); err != nil || resp.GetMessage() != "" {
			t.Fatalf("%v, %v", resp, err)
		}
		_, err = w.server.GetNode(ctx, &vendettav1.GetNodeRequest{Name: "local"})
		wantError(t, err, api.NotFound)
		w.addLocal(ctx)
	})
}

// A removal that a dead server left half done is listed, takes no workspaces,
// and can be repeated or taken back by adding the node again.
func TestRemovalOfNodeIsInterrupted(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		if _, _, err := w.server.leavingNode(ctx, "local", false); err != nil {
			t.Fatal(err)
		}
		w.halt()
		w.start()
		if n := w.node(ctx, "local"); n.GetState() != vendettav1.NodeState_NODE_STATE_REMOVED || n.GetMessage() == "" {
			t.Fatalf("%v", n)
		}
		_, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		wantError(t, err, api.FailedPrecondition, "no node")
		_, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Node: "local"})
		wantError(t, err, api.NotFound, "local")
		err = w.server.NodeLogs(ctx, &vendettav1.NodeLogsRequest{Name: "local"}, nil)
		wantError(t, err, api.Unavailable, "being removed")
		if n := w.addLocal(ctx); n.GetState() != nodeReady {
			t.Fatalf("%v", n)
		}
	})
}

func TestDrain(t *testing.T) {
	inWorld(t, []string{"a", "b"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "a")
		w.create(ctx, "x", nil)
		n, err := w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "a", Drain: true})
		if err != nil || n.GetState() != vendettav1.NodeState_NODE_STATE_DRAINING || !n.GetDraining() {
			t.Fatalf("%v, %v", n, err)
		}
		for _, node := range []string{"", "a"} {
			_, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "y", Node: node})
			wantError(t, err, api.FailedPrecondition, "a: it is draining")
		}
		// What is there goes on.
		if _, err := w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		w.addRemote(ctx, "b")
		w.create(ctx, "y", nil)
		if ws := w.get(ctx, "y"); ws.GetNode() != "b" {
			t.Errorf("%v", ws)
		}
		if n, err = w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "a"}); err != nil || n.GetState() != nodeReady {
			t.Fatalf("%v, %v", n, err)
		}
		_, err = w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "none"})
		wantError(t, err, api.NotFound, "none")
	})
}

func TestLabels(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		if _, err := w.server.LabelNode(ctx, &vendettav1.LabelNodeRequest{Name: "local", Set: map[string]string{"zone": "a", "disk": "ssd"}}); err != nil {
			t.Fatal(err)
		}
		n, err := w.server.LabelNode(ctx, &vendettav1.LabelNodeRequest{Name: "local", Set: map[string]string{"zone": "b"}, Remove: []string{"disk", "none"}})
		if err != nil || len(n.GetLabels()) != 1 || n.GetLabels()["zone"] != "b" {
			t.Fatalf("%v, %v", n, err)
		}
		_, err = w.server.LabelNode(ctx, &vendettav1.LabelNodeRequest{Name: "local", Set: map[string]string{"": "b"}})
		wantError(t, err, api.InvalidArgument, "label")
		many := map[string]string{}
		for i := range maxLabels {
			many[fmt.Sprint("k", i)] = ""
		}
		_, err = w.server.LabelNode(ctx, &vendettav1.LabelNodeRequest{Name: "local", Set: many})
		wantError(t, err, api.InvalidArgument, "too many")
	})
}

func TestTestNode(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		_, err := w.server.TestNode(ctx, &vendettav1.TestNodeRequest{Name: "build1"})
		wantError(t, err, api.NotFound, "build1")
		w.addRemote(ctx, "build1")
		agent := w.fleet.agent("build1")
		check := func() map[string]*vendettav1.NodeCheck {
			t.Helper()
			resp, err := w.server.TestNode(ctx, &vendettav1.TestNodeRequest{Name: "build1"})
			if err != nil {
				t.Fatal(err)
			}
			byName := map[string]*vendettav1.NodeCheck{}
			for _, c := range resp.GetChecks() {
				byName[c.GetName()] = c
				if c.GetMessage() == "" || !c.GetOk() && c.GetFix() == "" {
					t.Errorf("says too little: %v", c)
				}
			}
			return byName
		}
		agent.set(func() {
			agent.report.Providers = []*vendettav1.ProviderStatus{
				{Name: "docker", Reason: "the daemon does not run", Fix: "systemctl start docker"}, {Name: "native", Usable: true, Version: "1"},
			}
		})
		got := check()
		for name, ok := range map[string]bool{"connection": true, "node agent": true, "protocol": true, "provider docker": false, "provider native": true, "disk": true} {
			if got[name] == nil || got[name].GetOk() != ok {
				t.Errorf("%s: %v", name, got[name])
			}
		}
		agent.set(func() {
			agent.report.Providers, agent.report.Capacity.DiskFreeBytes, agent.protocol = nil, 1, 99
		})
		got = check()
		for _, name := range []string{"protocol", "disk", "providers"} {
			if got[name].GetOk() {
				t.Errorf("%s: %v", name, got[name])
			}
		}
		if fix := got["protocol"].GetFix(); fix != "vendetta node add build1 dev@build1" {
			t.Errorf("fix %q", fix)
		}
		agent.set(func() { agent.mute = true })
		if got = check(); len(got) != 2 || got["node agent"].GetOk() {
			t.Errorf("%v", got)
		}
		w.fleet.dialErr = errors.New("no route to host")
		if got = check(); len(got) != 1 || got["connection"].GetOk() {
			t.Errorf("%v", got)
		}
	})
}

// An agent of another protocol is not spoken to; the message says how to mend it.
func TestProtocolMismatch(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		w.fleet.agent("build1").protocol = 99
		_, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{
			Name: "build1", Address: &vendettav1.NodeAddress{Host: "build1", Port: 22, Jump: []string{"gate"}},
		})
		wantError(t, err, api.Unavailable, "protocol")
	})
}

func TestNodeLogs(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.fleet.agent("").logs = []string{"one\n", "two\n"}
		logs := w.overWire(ctx)
		read := func(name string, tail int32) (string, error) {
			in, err := logs.NodeLogs(ctx, &vendettav1.NodeLogsRequest{Name: name, Tail: tail})
			if err != nil {
				return "", err
			}
			defer func() { _ = in.Close() }()
			var got strings.Builder
			for in.Receive() {
				got.Write(in.Msg().GetData())
			}
			return got.String(), in.Err()
		}
		if got, err := read("local", 0); err != nil || got != "one\ntwo\n" {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := read("none", 1); err == nil {
			t.Error("logs of no node")
		}
		if _, err := read("local", -1); err == nil {
			t.Error("a negative number of lines")
		}
	})
}

// overWire is a client of the world's server over a connection.
func (w *world) overWire(ctx context.Context) vendettav1connect.NodeServiceClient {
	client, server := net.Pipe()
	mux := http.NewServeMux()
	mux.Handle(vendettav1connect.NewNodeServiceHandler(w.server))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		wire.Serve(ctx, server, mux)
	}()
	w.t.Cleanup(func() {
		_ = client.Close()
		<-ended
	})
	return vendettav1connect.NewNodeServiceClient(wire.Client(func(context.Context) (net.Conn, error) { return client, nil }), wire.BaseURL)
}

func TestBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, fleet: &fleet{agents: map[string]*fakeAgent{"": newFakeAgent()}}, store: &faultyStore{Store: memory.New()}}
		w.start()
		w.halt()
		s, err := New(t.Context(), Options{Store: w.store, Dialer: w.fleet, Installer: w.fleet})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		calls := map[string]func() error{
			"add node": func() error {
				_, err := s.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "local", Address: &vendettav1.NodeAddress{Local: true}})
				return err
			},
			"rm node": func() error { _, err := s.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "x"}); return err },
			"create": func() error {
				_, err := s.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
				return err
			},
			"up":    func() error { _, err := s.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "x"}); return err },
			"guest": func() error { _, _, err := s.Guest(ctx, "x", false); return err },
			"logs":  func() error { return s.NodeLogs(ctx, &vendettav1.NodeLogsRequest{Name: "x"}, nil) },
		}
		for what, call := range calls {
			if err := call(); api.CodeOf(err) != api.Unavailable {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}
