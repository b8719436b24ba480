package coordination

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sourcegraph/conc"
	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestWorkspaceLife(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		if n := w.addLocal(ctx); n.GetState() != vendettav1.NodeState_NODE_STATE_READY {
			t.Fatalf("node is %s: %s", n.GetState(), n.GetMessage())
		}
		op := w.create(ctx, "hello", nil)
		if op.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED || op.GetPrincipal() != "tester" {
			t.Fatalf("create: %v", op)
		}
		ws := w.get(ctx, "hello")
		if ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING || ws.GetInstance() == "" || ws.GetSpec().GetProvider() != "docker" {
			t.Fatalf("created: %v", ws)
		}
		steps := []struct {
			call func() (*vendettav1.ChangeResponse, error)
			want vendettav1.WorkspaceState
		}{
			{func() (*vendettav1.ChangeResponse, error) {
				return w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "hello", GraceSeconds: 3})
			}, vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED},
			{func() (*vendettav1.ChangeResponse, error) {
				return w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "hello"})
			}, vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING},
			{func() (*vendettav1.ChangeResponse, error) {
				return w.server.DownWorkspace(ctx, &vendettav1.DownWorkspaceRequest{Name: "hello"})
			}, vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN},
		}
		for i, step := range steps {
			resp, err := step.call()
			if err != nil {
				t.Fatal(err)
			}
			if got := w.wait(ctx, resp.GetOperation().GetId()); got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED || got.GetGeneration() != int64(i)+2 {
				t.Fatalf("step %d: %v", i, got)
			}
			if got := w.get(ctx, "hello").GetState(); got != step.want {
				t.Fatalf("step %d: %s, want %s", i, got, step.want)
			}
		}
		resp, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "hello"})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.wait(ctx, resp.GetOperation().GetId()); got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED {
			t.Fatalf("rm: %v", got)
		}
		_, err = w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: "hello"})
		wantError(t, err, "not_found", "hello")
		ops, err := w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{Workspace: "hello"})
		if err != nil || len(ops.GetOperations()) != 5 {
			t.Fatalf("%d operations stay, %v", len(ops.GetOperations()), err)
		}
	})
}

// changes are the calls that take a workspace's name.
func changes(ctx context.Context, s *Server, name, key string) map[string]func() (*vendettav1.ChangeResponse, error) {
	return map[string]func() (*vendettav1.ChangeResponse, error){
		"create": func() (*vendettav1.ChangeResponse, error) {
			return s.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: name, IdempotencyKey: key})
		},
		"up": func() (*vendettav1.ChangeResponse, error) {
			return s.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: name, IdempotencyKey: key})
		},
		"stop": func() (*vendettav1.ChangeResponse, error) {
			return s.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: name, IdempotencyKey: key})
		},
		"down": func() (*vendettav1.ChangeResponse, error) {
			return s.DownWorkspace(ctx, &vendettav1.DownWorkspaceRequest{Name: name, IdempotencyKey: key})
		},
		"rm": func() (*vendettav1.ChangeResponse, error) {
			return s.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: name, IdempotencyKey: key})
		},
	}
}

func TestWorkspaceNames(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		for _, name := range []string{"", ".", "..", "a/b", "../etc", "-x", "x-", "Upper", "a b", "a\x00b", strings.Repeat("x", 300), strings.Repeat("é", 30)} {
			for verb, call := range changes(ctx, w.server, name, "") {
				_, err := call()
				if api.CodeOf(err) != api.InvalidArgument {
					t.Errorf("%s %q: %v", verb, name, err)
				}
				wantError(t, err, api.InvalidArgument, "workspace name")
				if len(err.Error()) > 200 {
					t.Errorf("%s: the message has %d bytes", verb, len(err.Error()))
				}
			}
		}
		for verb, call := range changes(ctx, w.server, "absent", "") {
			if verb != "create" {
				_, err := call()
				wantError(t, err, api.NotFound, "absent")
			}
		}
	})
}

func TestCreateRefusesBadSpecs(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		specs := map[string]*vendettav1.WorkspaceSpec{
			"provider":  {Provider: "../docker"},
			"image":     {Image: "-rf"},
			"blank":     {Image: "debian 12"},
			"long":      {Image: strings.Repeat("x", 2000)},
			"cpus":      {Resources: &vendettav1.Resources{Cpus: -1}},
			"nan":       {Resources: &vendettav1.Resources{Cpus: math.NaN()}},
			"memory":    {Resources: &vendettav1.Resources{MemoryBytes: math.MaxUint64}},
			"processes": {Resources: &vendettav1.Resources{Pids: -5}},
			"disk":      {Resources: &vendettav1.Resources{DiskBytes: 1}},
			"much disk": {Resources: &vendettav1.Resources{DiskBytes: math.MaxUint64}},
			"checksum":  {Provider: "qemu", Image: "https://example.org/a.qcow2", Checksum: "sha512:" + strings.Repeat("a", 64)},
			"checked":   {Provider: "qemu", Image: "debian:12", Checksum: "sha256:" + strings.Repeat("a", 64)},
			"root":      {Provider: "docker", Privileged: true},
			"any root":  {Privileged: true},
			"network":   {Network: 77},
			"source":    {Source: &vendettav1.Source{Path: "/a\nb"}},
		}
		for what, spec := range specs {
			if _, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Spec: spec}); api.CodeOf(err) != api.InvalidArgument {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Node: "a/b"})
		wantError(t, err, api.InvalidArgument, "node name")
		_, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Node: "other"})
		wantError(t, err, api.NotFound, "other")
	})
}

func TestPrivilegedNeedsAdmin(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		request := &vendettav1.CreateWorkspaceRequest{Name: "x", Spec: &vendettav1.WorkspaceSpec{Provider: "lxc", Privileged: true}}
		operator := WithPrincipal(ctx, Principal{Name: "op", Scope: vendettav1.Scope_SCOPE_OPERATE})
		_, err := w.server.CreateWorkspace(operator, request)
		wantError(t, err, api.PermissionDenied, "admin")
		// The node of this test has no lxc, which is all that stands in an admin's way.
		_, err = w.server.CreateWorkspace(ctx, request)
		wantError(t, err, api.FailedPrecondition, "lxc")
	})
}

func TestCreateIsIdempotent(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		_, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		wantError(t, err, api.FailedPrecondition, "no node")
		w.addLocal(ctx)
		spec := &vendettav1.WorkspaceSpec{
			Image: "debian:12", Resources: &vendettav1.Resources{Cpus: 2, MemoryBytes: 1 << 30, Pids: 100},
			Source: &vendettav1.Source{Path: "/src", Commit: "a"},
		}
		create := func(key, node string, edit func(*vendettav1.WorkspaceSpec)) (*vendettav1.ChangeResponse, error) {
			asked := proto.CloneOf(spec)
			if edit != nil {
				edit(asked)
			}
			return w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Node: node, Spec: asked, IdempotencyKey: key})
		}
		first, err := create("k1", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(first.GetNote(), "local") || !strings.Contains(first.GetNote(), "docker") {
			t.Errorf("note %q", first.GetNote())
		}
		same := map[string]func() (*vendettav1.ChangeResponse, error){
			"key":  func() (*vendettav1.ChangeResponse, error) { return create("k1", "", nil) },
			"name": func() (*vendettav1.ChangeResponse, error) { return create("k2", "local", nil) },
			"moved": func() (*vendettav1.ChangeResponse, error) {
				return create("", "", func(s *vendettav1.WorkspaceSpec) {
					s.Source.Commit, s.Network, s.Provider = "b", vendettav1.Network_NETWORK_PRIVATE, "docker"
				})
			},
		}
		for what, call := range same {
			again, err := call()
			if err != nil || again.GetWorkspace().GetId() != first.GetWorkspace().GetId() || again.GetOperation().GetId() != first.GetOperation().GetId() {
				t.Errorf("%s: %v, %v", what, again, err)
			}
		}
		different := map[string]func(*vendettav1.WorkspaceSpec){
			"provider":           func(s *vendettav1.WorkspaceSpec) { s.Provider, s.Image = "native", "" },
			"image":              func(s *vendettav1.WorkspaceSpec) { s.Image = "" },
			"cpus":               func(s *vendettav1.WorkspaceSpec) { s.Resources.Cpus = 3 },
			"memory":             func(s *vendettav1.WorkspaceSpec) { s.Resources.MemoryBytes = 64 << 20 },
			"limit of processes": func(s *vendettav1.WorkspaceSpec) { s.Resources = &vendettav1.Resources{Cpus: 2, MemoryBytes: 1 << 30} },
			"disk limit":         func(s *vendettav1.WorkspaceSpec) { s.Resources.DiskBytes = 1 << 30 },
			"network":            func(s *vendettav1.WorkspaceSpec) { s.Network = vendettav1.Network_NETWORK_NONE },
			"host":               func(s *vendettav1.WorkspaceSpec) { s.Network = vendettav1.Network_NETWORK_HOST },
			"source":             func(s *vendettav1.WorkspaceSpec) { s.Source = nil },
		}
		for word, edit := range different {
			_, err := create("", "", edit)
			wantError(t, err, api.AlreadyExists, word)
		}
		_, err = create("", "elsewhere", nil)
		wantError(t, err, api.AlreadyExists, "node (local, not elsewhere)")

		_, err = w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "x", IdempotencyKey: "k1"})
		wantError(t, err, api.Conflict, "key")
		w.wait(ctx, first.GetOperation().GetId())
		if got := len(w.fleet.agent("").applied); got != 1 {
			t.Errorf("%d operations were sent", got)
		}
	})
}

func TestSpecDifference(t *testing.T) {
	have := &vendettav1.WorkspaceSpec{Provider: "lxc", Image: "https://example.org/a", Checksum: "sha256:1", Privileged: true}
	for word, edit := range map[string]func(*vendettav1.WorkspaceSpec){
		"":             func(*vendettav1.WorkspaceSpec) {},
		"checksum":     func(s *vendettav1.WorkspaceSpec) { s.Checksum = "" },
		"unprivileged": func(s *vendettav1.WorkspaceSpec) { s.Privileged = false },
	} {
		want := proto.CloneOf(have)
		edit(want)
		if got := specDifference("", "n", want, have); (got == "") != (word == "") || !strings.Contains(got, word) {
			t.Errorf("%q: %q", word, got)
		}
	}
}

// A key answers with its operation even when the workspace has gone since.
func TestKeysOutliveWorkspaces(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		rm := changes(ctx, w.server, "x", "key")["rm"]
		first, err := rm()
		if err != nil {
			t.Fatal(err)
		}
		w.wait(ctx, first.GetOperation().GetId())
		again, err := rm()
		if err != nil || again.GetOperation().GetId() != first.GetOperation().GetId() || again.GetWorkspace().GetId() != first.GetWorkspace().GetId() {
			t.Fatalf("%v, %v", again, err)
		}
	})
}

func TestFailedCreate(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		running := vendettav1.DesiredState_DESIRED_STATE_RUNNING
		agent.set(func() {
			agent.fail[running] = api.Errorf(api.NotFound, "image nope: it does not exist").WithNext("check the name of the image")
		})
		op := w.create(ctx, "x", &vendettav1.WorkspaceSpec{Image: "nope", Source: &vendettav1.Source{Path: "/src"}})
		if op.GetState() != vendettav1.OperationState_OPERATION_STATE_FAILED || op.GetErrorCode() != "not_found" ||
			!strings.Contains(op.GetMessage(), "nope") || op.GetNext() == "" {
			t.Fatalf("%v", op)
		}
		ws := w.get(ctx, "x")
		if ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED || ws.GetNext() != "check the name of the image" {
			t.Fatalf("%v", ws)
		}
		_, _, err := w.server.Guest(ctx, "x", false)
		wantError(t, err, api.FailedPrecondition, "nope")

		// It is not tried again by itself.
		<-time.After(10 * time.Minute)
		if got := len(agent.applied); got != 1 {
			t.Fatalf("%d operations were sent", got)
		}
		// With the cause gone it comes up.
		agent.set(func() { delete(agent.fail, running) })
		up, err := w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.wait(ctx, up.GetOperation().GetId()); got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED {
			t.Fatalf("%v", got)
		}
		if ws := w.get(ctx, "x"); ws.GetMessage() != "" || ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING {
			t.Fatalf("%v", ws)
		}
	})
}

// Only the desired state counts as success.
func TestWrongAnswersFail(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		agent.set(func() { agent.wrong = true })
		if op := w.create(ctx, "x", nil); op.GetState() != vendettav1.OperationState_OPERATION_STATE_FAILED || op.GetErrorCode() != "internal" {
			t.Fatalf("%v", op)
		}
		agent.set(func() {
			agent.wrong, agent.refuse = false, api.Errorf(api.InvalidArgument, "apply: a bad spec").WithNext("mend it")
		})
		if op := w.create(ctx, "y", nil); op.GetErrorCode() != "invalid_argument" || op.GetNext() != "mend it" {
			t.Fatalf("%v", op)
		}
	})
}

func TestStopNeedsAnInstance(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		for _, grace := range []int32{-1, 1 << 20} {
			_, err := w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x", GraceSeconds: grace})
			wantError(t, err, api.InvalidArgument, "grace")
		}
		down, err := w.server.DownWorkspace(ctx, &vendettav1.DownWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		w.wait(ctx, down.GetOperation().GetId())
		_, err = w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x"})
		wantError(t, err, api.FailedPrecondition, "down")
	})
}

// A newer change takes the place of a pending one; the same change joins it.
func TestChangesSupersede(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		created, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		joined, err := w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "x"})
		if err != nil || joined.GetOperation().GetId() != created.GetOperation().GetId() {
			t.Fatalf("up does not join create: %v, %v", joined, err)
		}
		synctest.Wait()
		waited := make(chan *vendettav1.Operation, 1)
		go func() { waited <- w.wait(ctx, created.GetOperation().GetId()) }()
		synctest.Wait()
		removed, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if got := <-waited; got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUPERSEDED {
			t.Fatalf("create: %v", got)
		}
		for verb, call := range changes(ctx, w.server, "x", "") {
			resp, err := call()
			if verb == "rm" {
				if err != nil || resp.GetOperation().GetId() != removed.GetOperation().GetId() {
					t.Errorf("rm does not join rm: %v, %v", resp, err)
				}
				continue
			}
			wantError(t, err, api.Conflict, "being removed")
		}
		if ws := w.get(ctx, "x"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING {
			t.Errorf("%v", ws)
		}
		_, _, err = w.server.Guest(ctx, "x", false)
		wantError(t, err, api.FailedPrecondition, "removing")
		close(hold)
		if got := w.wait(ctx, removed.GetOperation().GetId()); got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED {
			t.Fatalf("rm: %v", got)
		}
	})
}

// Two creates in the same moment are one.
func TestCreateRace(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		var g conc.WaitGroup
		ids := make([]string, 8)
		for i := range ids {
			g.Go(func() {
				resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", IdempotencyKey: "key"})
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				ids[i] = resp.GetOperation().GetId()
			})
		}
		g.Wait()
		if len(slices.Compact(ids)) != 1 {
			t.Errorf("several operations: %v", ids)
		}
	})
}

func TestListWorkspaces(t *testing.T) {
	inWorld(t, []string{"a", "b"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "a")
		w.addRemote(ctx, "b")
		for name, node := range map[string]string{"one": "a", "two": "b", "three": "b"} {
			resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: name, Node: node})
			if err != nil {
				t.Fatal(err)
			}
			w.wait(ctx, resp.GetOperation().GetId())
		}
		for node, want := range map[string]string{"": "one three two", "a": "one", "b": "three two"} {
			list, err := w.server.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{Node: node})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ws := range list.GetWorkspaces() {
				got = append(got, ws.GetName())
			}
			if strings.Join(got, " ") != want {
				t.Errorf("on %q: %v", node, got)
			}
		}
		_, err := w.server.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{Node: "c"})
		wantError(t, err, api.NotFound, "c")
		if n := w.node(ctx, "b"); n.GetWorkspaces() != 2 {
			t.Errorf("node b has %d workspaces", n.GetWorkspaces())
		}
	})
}
