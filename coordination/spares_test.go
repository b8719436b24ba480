package coordination

import (
	"context"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sourcegraph/conc"
	"pgregory.net/rapid"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/sqlite"
)

// debian is what the spares of these tests are made from.
func debian() *vendettav1.WorkspaceSpec {
	return &vendettav1.WorkspaceSpec{Provider: "docker", Image: "debian:12"}
}

func (w *world) setSpares(ctx context.Context, node string, count int32) {
	w.t.Helper()
	if _, err := w.server.SetSpares(ctx, &vendettav1.SetSparesRequest{Node: node, Provider: "docker", Image: "debian:12", Count: count}); err != nil {
		w.t.Fatalf("set spares: %v", err)
	}
}

// spares returns the records of spares, those that are on their way out aside.
func (w *world) spares(ctx context.Context) []store.Workspace {
	w.t.Helper()
	var all []store.Workspace
	if err := w.store.View(ctx, func(tx store.Tx) (err error) {
		all, err = tx.Workspaces("")
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(ws store.Workspace) bool {
		return !ws.Spare || ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED
	})
}

// shown is what the node's status says of its only kind of spares.
func (w *world) shown(ctx context.Context, node string) string {
	w.t.Helper()
	s := w.node(ctx, node).GetSpares()
	if len(s) != 1 {
		return fmt.Sprintf("%d kinds", len(s))
	}
	return fmt.Sprintf("%s %s %d/%d %s", s[0].GetProvider(), s[0].GetImage(), s[0].GetReady(), s[0].GetCount(), s[0].GetMessage())
}

func TestSparesAreMadeOneAfterTheOther(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 3)
		synctest.Wait()
		if got := len(w.spares(ctx)); got != 1 {
			t.Errorf("%d spares at once", got)
		}
		pass(spareInterval)
		if got := w.shown(ctx, "local"); got != "docker debian:12 2/3 " {
			t.Error(got)
		}
		pass(5 * spareInterval)
		if got := w.shown(ctx, "local"); got != "docker debian:12 3/3 " {
			t.Error(got)
		}
		// Nobody sees them elsewhere.
		if n := w.node(ctx, "local"); n.GetWorkspaces() != 0 {
			t.Errorf("the node counts %d workspaces", n.GetWorkspaces())
		}
		status, err := w.server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{})
		if err != nil || status.GetWorkspaces() != 0 {
			t.Errorf("the server counts %d workspaces, %v", status.GetWorkspaces(), err)
		}
		list, err := w.server.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{})
		if err != nil || len(list.GetWorkspaces()) != 0 {
			t.Errorf("listed: %v, %v", list, err)
		}
		for _, ws := range w.spares(ctx) {
			_, err := w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: ws.Name})
			wantError(t, err, api.NotFound)
			_, _, err = w.server.Guest(ctx, ws.Name, false)
			wantError(t, err, api.NotFound)
		}
		for _, r := range w.fleet.agent("").applied {
			if !strings.HasPrefix(r.GetWorkspaceName(), "spare-") {
				t.Errorf("the node calls one %s", r.GetWorkspaceName())
			}
		}
		// A smaller number removes the newest.
		oldest := slices.MinFunc(w.spares(ctx), func(a, b store.Workspace) int { return a.CreatedAt.Compare(b.CreatedAt) })
		w.setSpares(ctx, "local", 1)
		pass(time.Second)
		if left := w.spares(ctx); len(left) != 1 || left[0].ID != oldest.ID {
			t.Errorf("left: %v", left)
		}
		w.setSpares(ctx, "local", 0)
		pass(time.Second)
		if got := w.shown(ctx, "local"); got != "0 kinds" || len(w.spares(ctx)) != 0 {
			t.Error(got, w.spares(ctx))
		}
	})
}

func TestCreateTakesASpare(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 1)
		pass(time.Second)
		spare := w.spares(ctx)[0]
		pass(time.Hour)
		spec := debian()
		spec.Source = &vendettav1.Source{Path: "/src", Commit: "abc"}
		spec.Network = vendettav1.Network_NETWORK_PRIVATE
		request := &vendettav1.CreateWorkspaceRequest{Name: "web", Node: "local", Spec: spec, IdempotencyKey: "k1"}
		resp, err := w.server.CreateWorkspace(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetNote() != "from a spare" || resp.GetWorkspace().GetId() != spare.ID || resp.GetOperation().GetVerb() != verbCreate ||
			resp.GetOperation().GetState() != succeeded || resp.GetWorkspace().GetState() != running {
			t.Errorf("got %v", resp)
		}
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetState() != succeeded || op.GetPrincipal() != "tester" {
			t.Errorf("%v", op)
		}
		ws := w.get(ctx, "web")
		if ws.GetState() != running || ws.GetGeneration() != 2 || ws.GetSpec().GetSource().GetCommit() != "abc" ||
			!ws.GetCreatedAt().AsTime().After(spare.CreatedAt) || ws.GetInstance() != spare.Instance {
			t.Errorf("%v", ws)
		}
		again, err := w.server.CreateWorkspace(ctx, request)
		if err != nil || again.GetOperation().GetId() != resp.GetOperation().GetId() {
			t.Errorf("the same key: %v, %v", again, err)
		}
		synctest.Wait()
		agent := w.fleet.agent("")
		agent.mu.Lock()
		var last *nodeagentv1.ApplyRequest
		for _, r := range agent.applied {
			if r.GetOperationId() == resp.GetOperation().GetId() {
				last = r
			}
		}
		agent.mu.Unlock()
		if last.GetWorkspaceName() != "web" || last.GetGeneration() != 2 || last.GetWorkspaceId() != spare.ID || last.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_RUNNING {
			t.Errorf("sent %v", last)
		}
		// It is recorded as the user's, and another one takes its place.
		audit, err := w.server.ListAudit(ctx, &vendettav1.ListAuditRequest{Workspace: "web"})
		if err != nil || len(audit.GetEntries()) != 1 || audit.GetEntries()[0].GetPrincipal() != "tester" || !strings.Contains(audit.GetEntries()[0].GetFields(), `"image":"debian:12"`) {
			t.Errorf("audit %v, %v", audit, err)
		}
		pass(2 * time.Second)
		if got := w.shown(ctx, "local"); got != "docker debian:12 1/1 " || w.node(ctx, "local").GetWorkspaces() != 1 {
			t.Error(got)
		}
		if err := w.remove(ctx, "web", true); err != nil {
			t.Error(err)
		}
		if len(w.spares(ctx)) != 1 {
			t.Error("the removal of the workspace took the spare")
		}
	})
}

// What differs in anything from a spare is made as ever.
func TestCreateLeavesSpares(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 1)
		pass(time.Second)
		for i, change := range []func(*vendettav1.WorkspaceSpec){
			func(s *vendettav1.WorkspaceSpec) { s.Image = "debian:13" },
			func(s *vendettav1.WorkspaceSpec) { s.Image = "" },
			func(s *vendettav1.WorkspaceSpec) { s.Provider, s.Image = "native", "" },
			func(s *vendettav1.WorkspaceSpec) { s.Network = vendettav1.Network_NETWORK_NONE },
			func(s *vendettav1.WorkspaceSpec) { s.Resources = &vendettav1.Resources{Cpus: 1} },
			func(s *vendettav1.WorkspaceSpec) { s.Resources = &vendettav1.Resources{MemoryBytes: 1 << 30} },
			func(s *vendettav1.WorkspaceSpec) { s.Resources = &vendettav1.Resources{Pids: 10} },
			func(s *vendettav1.WorkspaceSpec) { s.Resources = &vendettav1.Resources{DiskBytes: 1 << 30} },
		} {
			spec := debian()
			change(spec)
			resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: fmt.Sprint("w", i), Spec: spec})
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(resp.GetNote(), "spare") || resp.GetWorkspace().GetGeneration() != 1 {
				t.Errorf("%v took a spare: %v", spec, resp)
			}
		}
		if len(w.spares(ctx)) != 1 {
			t.Error("the spare is gone")
		}
		// A name that is taken leaves it, too, and so does a spare whose guest is not there.
		_, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "w0", Spec: debian()})
		wantError(t, err, api.AlreadyExists)
		agent := w.fleet.agent("")
		agent.set(func() {
			for _, o := range agent.journal {
				o.Linked = false
			}
			agent.changed()
		})
		synctest.Wait()
		if got := w.shown(ctx, "local"); got != "docker debian:12 0/1 " {
			t.Error(got)
		}
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Spec: debian()})
		if err != nil || strings.Contains(resp.GetNote(), "spare") {
			t.Errorf("%v, %v", resp, err)
		}
	})
}

// A create that took a spare has no need of the node: it hears of it later, also
// when server or agent died in between, and a spare that died unseen is brought
// up as what it has become.
func TestTakenSparesReachTheirNode(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 1)
		pass(time.Second)
		spare := w.spares(ctx)[0]
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "web", Spec: debian()})
		if err != nil || resp.GetWorkspace().GetState() != running {
			t.Fatalf("%v, %v", resp, err)
		}
		if id, _, err := w.server.Guest(ctx, "web", false); err != nil || id != spare.ID {
			t.Errorf("guest of %s, %v", id, err)
		}
		w.halt()
		agent.set(func() { agent.hold = nil })
		agent.kill()
		close(hold)
		agent.start()
		w.start()
		pass(time.Second)
		agent.mu.Lock()
		o := agent.journal[spare.ID]
		agent.mu.Unlock()
		if o.GetGeneration() != 2 || w.get(ctx, "web").GetState() != running {
			t.Errorf("the node has %v", o)
		}
		// A node that cannot do it says so, and the workspace reads failed.
		pass(5 * time.Second)
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_RUNNING] = api.Errorf(api.ResourceExhausted, "the disk is full")
		})
		if resp, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "db", Spec: debian()}); err != nil || !strings.Contains(resp.GetNote(), "spare") {
			t.Fatalf("%v, %v", resp, err)
		}
		pass(time.Second)
		if ws := w.get(ctx, "db"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED || ws.GetMessage() != "the disk is full" {
			t.Errorf("%v", ws)
		}
	})
}

// Creates at the same time never get the same spare, on either store.
func TestSparesAreClaimedOnce(t *testing.T) {
	const spares, creates = 4, 12
	check := func(t *testing.T, ctx context.Context, w *world) {
		t.Helper()
		for len(w.spares(ctx)) < spares || w.node(ctx, "local").GetSpares()[0].GetReady() < spares {
			<-time.After(10 * time.Millisecond)
		}
		waiting := map[string]bool{}
		for _, ws := range w.spares(ctx) {
			waiting[ws.ID] = true
		}
		var mu sync.Mutex
		ids, claimed := map[string]string{}, 0
		var g conc.WaitGroup
		for i := range creates {
			g.Go(func() {
				name := fmt.Sprint("w", i)
				resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: name, Spec: debian(), IdempotencyKey: name})
				if err != nil {
					t.Error(err)
					return
				}
				id := resp.GetWorkspace().GetId()
				mu.Lock()
				defer mu.Unlock()
				if other := ids[id]; other != "" {
					t.Errorf("%s and %s are one workspace", name, other)
				}
				ids[id] = name
				if strings.Contains(resp.GetNote(), "from a spare") {
					claimed++
					delete(waiting, id)
				} else if waiting[id] {
					t.Errorf("%s is a spare and does not say so", name)
				}
			})
		}
		g.Wait()
		if claimed < spares || len(waiting) > 0 {
			t.Errorf("%d creates took a spare, and %d spares were left", claimed, len(waiting))
		}
		list, err := w.server.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{})
		if err != nil || len(list.GetWorkspaces()) != creates {
			t.Errorf("%d workspaces, %v", len(list.GetWorkspaces()), err)
		}
		for _, ws := range list.GetWorkspaces() {
			if ids[ws.GetId()] != ws.GetName() {
				t.Errorf("%s is %s", ws.GetId(), ws.GetName())
			}
			if op := w.wait(ctx, ws.GetOperation()); op.GetState() != succeeded {
				t.Errorf("%v", op)
			}
		}
	}
	t.Run("memory", func(t *testing.T) {
		inWorld(t, []string{""}, func(ctx context.Context, w *world) {
			w.addLocal(ctx)
			w.setSpares(ctx, "local", spares)
			check(t, ctx, w)
		})
	})
	t.Run("sqlite", func(t *testing.T) {
		agent := newFakeAgent()
		defer agent.kill()
		ctx, cancel := context.WithTimeout(WithPrincipal(t.Context(), Principal{Name: "tester", Local: true}), time.Minute)
		defer cancel()
		db, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "vendetta.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		w := &world{t: t, fleet: &fleet{agents: map[string]*fakeAgent{"": agent}}, store: db}
		w.start()
		defer w.halt()
		w.addLocal(ctx)
		w.setSpares(ctx, "local", spares)
		check(t, ctx, w)
	})
}

// A kind that fails rests longer each time, says why, and holds up no other.
func TestSparesThatFail(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_RUNNING] = api.Errorf(api.FailedPrecondition, "the image does not exist")
		})
		w.setSpares(ctx, "local", 1)
		pass(time.Second)
		if got := w.shown(ctx, "local"); got != "docker debian:12 0/1 the image does not exist" {
			t.Error(got)
		}
		if left := w.spares(ctx); len(left) != 0 {
			t.Errorf("what failed stays: %v", left)
		}
		pass(time.Hour)
		agent.mu.Lock()
		tries := 0
		for _, r := range agent.applied {
			if r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_RUNNING {
				tries++
			}
		}
		agent.mu.Unlock()
		if tries < 6 || tries > 14 {
			t.Errorf("%d tries in an hour", tries)
		}
		agent.set(func() { agent.fail = map[vendettav1.DesiredState]*api.Error{} })
		if _, err := w.server.SetSpares(ctx, &vendettav1.SetSparesRequest{Node: "local", Provider: "native", Count: 1}); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		spares := w.node(ctx, "local").GetSpares()
		if len(spares) != 2 || spares[0].GetReady() != 0 || spares[1].GetReady() != 1 {
			t.Errorf("%v", spares)
		}
		pass(spareRetryMost)
		if spares := w.node(ctx, "local").GetSpares(); spares[0].GetReady() != 1 || spares[0].GetMessage() != "" {
			t.Errorf("%v", spares)
		}
		// One that died and cannot be brought back is made anew.
		dead := w.spares(ctx)[0]
		agent.set(func() {
			o := agent.journal[dead.ID]
			o.State, o.ErrorCode, o.Message, o.Linked = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED, "internal", "it died", false
			agent.changed()
		})
		pass(reconcileInterval + 2*time.Second)
		for _, ws := range w.spares(ctx) {
			if ws.ID == dead.ID {
				t.Error("the dead one is still there")
			}
		}
		if len(w.spares(ctx)) != 2 {
			t.Errorf("%v", w.spares(ctx))
		}
	})
}

func TestSparesAreDroppedWhenMemoryIsShort(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		agent := w.fleet.agent("")
		memory := func(free uint64) {
			agent.set(func() {
				agent.report.Capacity.MemoryBytes, agent.report.Capacity.MemoryFreeBytes = 100<<30, free<<30
				agent.changed()
			})
			synctest.Wait()
		}
		memory(50)
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 3)
		pass(5 * time.Second)
		memory(9)
		pass(reconcileInterval)
		if got := w.shown(ctx, "local"); got != "docker debian:12 2/3 memory is short: 9.0 GiB free of 100.0 GiB" {
			t.Error(got)
		}
		memory(12) // enough to keep them, too little for another one
		pass(time.Minute)
		if got := w.shown(ctx, "local"); got != "docker debian:12 2/3 memory is short: 12.0 GiB free of 100.0 GiB" {
			t.Error(got)
		}
		memory(1)
		pass(time.Minute)
		if got := w.shown(ctx, "local"); got != "docker debian:12 0/3 memory is short: 1.0 GiB free of 100.0 GiB" {
			t.Error(got)
		}
		memory(50)
		pass(time.Minute)
		if got := w.shown(ctx, "local"); got != "docker debian:12 3/3 " {
			t.Error(got)
		}
	})
}

func TestDrainedNodesKeepNoSpares(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 2)
		pass(5 * time.Second)
		if _, err := w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "local", Drain: true}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if got := w.shown(ctx, "local"); got != "docker debian:12 0/2 the node is draining" || len(w.spares(ctx)) != 0 {
			t.Error(got)
		}
		if _, err := w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "local"}); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		if got := w.shown(ctx, "local"); got != "docker debian:12 2/2 " {
			t.Error(got)
		}
	})
}

func TestNodesWithSparesAreRemoved(t *testing.T) {
	inWorld(t, []string{"far"}, func(ctx context.Context, w *world) {
		agent := w.fleet.agent("far")
		w.fleet.uninstall = func(Target) error {
			agent.mu.Lock()
			defer agent.mu.Unlock()
			if len(agent.journal) > 0 {
				return api.Errorf(api.FailedPrecondition, "uninstall: %d workspaces are there", len(agent.journal))
			}
			return nil
		}
		w.addRemote(ctx, "far")
		w.setSpares(ctx, "far", 3)
		pass(5 * time.Second)
		// A user's workspace keeps the node, and the spares with it.
		w.create(ctx, "web", nil)
		_, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far"})
		wantError(t, err, api.FailedPrecondition, "workspaces are on it: web")
		pass(5 * time.Second)
		if got := w.shown(ctx, "far"); got != "docker debian:12 3/3 " {
			t.Error(got)
		}
		if err := w.remove(ctx, "web", true); err != nil {
			t.Fatal(err)
		}
		// One that cannot be removed is said.
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_REMOVED] = api.Errorf(api.Internal, "it is stuck")
		})
		_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far"})
		wantError(t, err, api.Internal, "a spare on it could not be removed: it is stuck")
		agent.set(func() { agent.fail = map[vendettav1.DesiredState]*api.Error{} })
		pass(2 * removeRetry)
		resp, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far"})
		if err != nil || resp.GetMessage() != "" {
			t.Fatalf("%v, %v", resp, err)
		}
		if left := w.spares(ctx); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// A node that hangs keeps a removal waiting for its spares, for a while.
func TestRemovalOfANodeWaitsForItsSpares(t *testing.T) {
	inWorld(t, []string{"far"}, func(ctx context.Context, w *world) {
		agent := w.fleet.agent("far")
		w.addRemote(ctx, "far")
		w.setSpares(ctx, "far", 1)
		pass(5 * time.Second)
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		_, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far"})
		wantError(t, err, api.Unavailable, "is not removed yet")
		agent.set(func() { agent.hold = nil })
		close(hold)
		pass(time.Second)
		if _, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far"}); err != nil {
			t.Error(err)
		}
	})
}

func TestLostNodesAreRemovedWithTheirSpares(t *testing.T) {
	inWorld(t, []string{"far"}, func(ctx context.Context, w *world) {
		agent := w.fleet.agent("far")
		w.addRemote(ctx, "far")
		w.setSpares(ctx, "far", 2)
		pass(5 * time.Second)
		w.fleet.startErr = api.Errorf(api.Unavailable, "no route to host")
		w.fleet.uninstall = func(Target) error { return api.Errorf(api.Unavailable, "no route to host") }
		agent.kill()
		pass(2 * brokenGrace)
		if got := w.shown(ctx, "far"); got != "docker debian:12 0/2 the node cannot be reached" {
			t.Error(got)
		}
		_, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far"})
		wantError(t, err, api.Unavailable, "no route")
		if len(w.spares(ctx)) != 2 {
			t.Errorf("%v", w.spares(ctx))
		}
		resp, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "far", Force: true})
		if err != nil || !strings.Contains(resp.GetMessage(), "so may 2 spares, until the node is added again") {
			t.Errorf("%v, %v", resp, err)
		}
		if len(w.spares(ctx)) != 0 {
			t.Errorf("%v", w.spares(ctx))
		}
		// The machine comes back with them, is added again, and they go.
		agent.start()
		agent.set(func() {
			agent.journal["stranger"] = &nodeagentv1.ObservedWorkspace{WorkspaceId: "stranger", Generation: 3}
		})
		w.addRemote(ctx, "far")
		pass(2 * reconcileInterval)
		agent.mu.Lock()
		left := len(agent.journal)
		_, stranger := agent.journal["stranger"]
		agent.mu.Unlock()
		if left != 1 || !stranger {
			t.Errorf("%d are there, a stranger among them: %v", left, stranger)
		}
		if err := w.store.View(ctx, func(tx store.Tx) error {
			ids, err := leftBehind(tx)
			if err == nil && len(ids) != 0 {
				t.Errorf("remembered: %v", ids)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatIsLeftBehindIsBounded(t *testing.T) {
	inWorld(t, nil, func(ctx context.Context, w *world) {
		if err := w.store.Update(ctx, func(tx store.Tx) error {
			for i := range mostLeftBehind + 5 {
				if err := leaveBehind(tx, []store.Workspace{{ID: fmt.Sprint("w", i)}}); err != nil {
					return err
				}
			}
			ids, err := leftBehind(tx)
			if len(ids) != mostLeftBehind || ids[0] != "w5" {
				t.Errorf("%d, the first is %s", len(ids), ids[0])
			}
			if err := foundAgain(tx, "w0"); err != nil { // forgotten already
				return err
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		if err := w.store.Update(ctx, func(tx store.Tx) error { return tx.SetMeta(metaLeftBehind, "{") }); err != nil {
			t.Fatal(err)
		}
		if err := w.store.Update(ctx, func(tx store.Tx) error { return leaveBehind(tx, []store.Workspace{{ID: "x"}}) }); err == nil {
			t.Error("what cannot be read was taken for nothing")
		}
	})
}

func TestPlacementPrefersSpares(t *testing.T) {
	inWorld(t, []string{"a", "b", "c"}, func(ctx context.Context, w *world) {
		for _, name := range []string{"a", "b", "c"} {
			w.addRemote(ctx, name)
		}
		agent := w.fleet.agent("a")
		agent.set(func() { agent.report.Capacity.MemoryFreeBytes = 64 << 30; agent.changed() })
		w.setSpares(ctx, "b", 1)
		pass(5 * time.Second)
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Spec: &vendettav1.WorkspaceSpec{Image: "debian:12"}})
		if err != nil || resp.GetNote() != "node b (it has a spare, of 3 ready with docker), provider docker, from a spare" {
			t.Errorf("%v, %v", resp, err)
		}
		resp, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "y", Spec: &vendettav1.WorkspaceSpec{Image: "debian:13"}})
		if err != nil || !strings.HasPrefix(resp.GetNote(), "node a (most free memory") {
			t.Errorf("%v, %v", resp, err)
		}
	})
}

func TestSparesRefused(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		for _, c := range []struct {
			r    *vendettav1.SetSparesRequest
			code api.Code
			says string
		}{
			{&vendettav1.SetSparesRequest{Node: "local", Count: 1}, api.InvalidArgument, "no provider"},
			{&vendettav1.SetSparesRequest{Node: "local", Provider: "docker", Count: -1}, api.InvalidArgument, "-1 are none"},
			{&vendettav1.SetSparesRequest{Node: "local", Provider: "docker", Count: mostSpares + 1}, api.InvalidArgument, "are none"},
			{&vendettav1.SetSparesRequest{Node: "local", Provider: "No", Count: 1}, api.InvalidArgument, "not a name"},
			{&vendettav1.SetSparesRequest{Node: "local", Provider: "lxc", Count: 1}, api.FailedPrecondition, `no provider "lxc"`},
			{&vendettav1.SetSparesRequest{Node: "far", Provider: "docker", Count: 1}, api.NotFound, "far"},
		} {
			_, err := w.server.SetSpares(ctx, c.r)
			wantError(t, err, c.code, c.says)
		}
		for i := range mostSpareKinds + 1 {
			_, err := w.server.SetSpares(ctx, &vendettav1.SetSparesRequest{Node: "local", Provider: "docker", Image: fmt.Sprint("debian:", i), Count: 1})
			if i < mostSpareKinds {
				if err != nil {
					t.Fatal(err)
				}
				continue
			}
			wantError(t, err, api.ResourceExhausted, "kinds of spares already")
		}
	})
}

// The spares of a server that was started anew are the ones it had.
func TestSparesOutliveTheServer(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.setSpares(ctx, "local", 2)
		pass(5 * time.Second)
		before := w.spares(ctx)
		w.halt()
		w.start()
		pass(5 * time.Second)
		after := w.spares(ctx)
		if len(before) != 2 || len(after) != 2 || before[0].ID != after[0].ID || before[1].ID != after[1].ID {
			t.Errorf("before %v, after %v", before, after)
		}
		if got := w.shown(ctx, "local"); got != "docker debian:12 2/2 " {
			t.Error(got)
		}
	})
}

// Whatever the store does, spares are looked after again later.
func TestSparesWithABrokenStore(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		faulty := w.store.(*faultyStore)
		w.setSpares(ctx, "local", 2)
		for n := range 12 {
			faulty.after(n + 1)
			pass(reconcileInterval)
		}
		faulty.after(0)
		faulty.fault(errFault, nil)
		pass(reconcileInterval)
		faulty.fault(nil, errFault)
		pass(reconcileInterval)
		faulty.fault(nil, nil)
		pass(spareRetryMost)
		if got := w.shown(ctx, "local"); got != "docker debian:12 2/2 " {
			t.Error(got)
		}
	})
}

// drawSpares makes any state of a node's spares.
func drawSpares(t *rapid.T) (NodeSpares, time.Time) {
	kinds := []spareKind{{"docker", "debian:12"}, {"docker", ""}, {"native", ""}}
	n := NodeSpares{
		Node: store.Node{ID: "n", Name: "n"}, Operations: map[string]store.Operation{},
		Closed: rapid.Bool().Draw(t, "closed"), History: spareHistory{failures: map[spareKind]spareFailure{}},
	}
	ago := func(name string) time.Time {
		return epoch.Add(-time.Duration(rapid.IntRange(0, 100_000).Draw(t, name)) * time.Millisecond)
	}
	n.History.moved, n.History.dropped = ago("made"), ago("dropped")
	for _, k := range kinds {
		if rapid.Bool().Draw(t, "set") {
			n.Settings = append(n.Settings, store.Spares{Provider: k.provider, Image: k.image, Count: rapid.Int32Range(1, 4).Draw(t, "count")})
		}
		if rapid.Bool().Draw(t, "failed before") {
			n.History.failures[k] = spareFailure{times: rapid.IntRange(1, 40).Draw(t, "times"), at: ago("failed"), message: "it failed"}
		}
	}
	for i := range rapid.IntRange(0, 8).Draw(t, "spares") {
		k := rapid.SampledFrom(kinds).Draw(t, "kind")
		ws := store.Workspace{
			ID: fmt.Sprint("w", i), Spare: true, Spec: k.spec(), OperationID: fmt.Sprint("o", i), CreatedAt: ago("born"),
			Desired: rapid.SampledFrom([]vendettav1.DesiredState{vendettav1.DesiredState_DESIRED_STATE_RUNNING, vendettav1.DesiredState_DESIRED_STATE_REMOVED}).Draw(t, "desired"),
			State:   vendettav1.WorkspaceState(rapid.Int32Range(1, 8).Draw(t, "state")),
		}
		n.Spares = append(n.Spares, ws)
		n.Operations[ws.OperationID] = store.Operation{ID: ws.OperationID, State: vendettav1.OperationState(rapid.Int32Range(1, 3).Draw(t, "operation"))}
	}
	if rapid.IntRange(0, 4).Draw(t, "up") > 0 {
		n.Report = &vendettav1.NodeReport{
			Capacity:  &vendettav1.Capacity{MemoryBytes: 100, MemoryFreeBytes: rapid.Uint64Range(0, 100).Draw(t, "free")},
			Providers: []*vendettav1.ProviderStatus{{Name: "docker", Usable: rapid.Bool().Draw(t, "usable")}, {Name: "native", Usable: true}},
		}
	}
	return n, epoch
}

func TestSparePlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, now := drawSpares(t)
		p := PlanSpares(n, now)
		if again := PlanSpares(n, now); !reflect.DeepEqual(p, again) {
			t.Fatalf("two answers to one question: %v and %v", p, again)
		}
		byID := map[string]store.Workspace{}
		making, removing := 0, 0
		alive := map[spareKind]int{}
		for _, ws := range n.Spares {
			byID[ws.ID] = ws
			pending := n.Operations[ws.OperationID].State == vendettav1.OperationState_OPERATION_STATE_PENDING
			if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
				if pending {
					removing++
				}
				continue
			}
			alive[kindOf(ws.Spec)]++
			if pending {
				making++
			}
		}
		wanted := map[spareKind]int{}
		for _, s := range n.Settings {
			wanted[kindOfSetting(s)] += int(s.Count)
		}
		if n.Report == nil && (p.Make != nil || len(p.Remove) > 0) {
			t.Fatalf("acts on a node that nobody sees: %v", p)
		}
		if len(p.Remove) > 0 && len(p.Remove)+removing > spareRemovals {
			t.Fatalf("removes %d beside %d", len(p.Remove), removing)
		}
		short := n.Report.GetCapacity().GetMemoryFreeBytes() < 10
		for _, id := range p.Remove {
			ws, known := byID[id]
			if !known || ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
				t.Fatalf("removes what is none: %s", id)
			}
			kind := kindOf(ws.Spec)
			failed := n.Operations[ws.OperationID].State == vendettav1.OperationState_OPERATION_STATE_FAILED
			if !n.Closed && !failed && alive[kind] <= wanted[kind] && !short {
				t.Fatalf("removes %s for no reason", id)
			}
			delete(byID, id)
		}
		if p.Make != nil {
			kind := kindOfSetting(*p.Make)
			switch {
			case n.Closed, making > 0, now.Sub(n.History.moved) < spareInterval, n.Report.GetCapacity().GetMemoryFreeBytes() < 14:
				t.Fatalf("makes one now: %v", p)
			case wanted[kind] == 0:
				t.Fatalf("makes what nobody wants: %v", kind)
			case kind.provider == "docker" && !n.Report.GetProviders()[0].GetUsable():
				t.Fatalf("makes what cannot be made: %v", kind)
			case now.Before(n.History.failures[kind].until()):
				t.Fatalf("makes one too soon after a failure")
			}
		}
		if !p.Again.IsZero() && !p.Again.After(now) {
			t.Fatalf("looks again at %v, which is over", p.Again)
		}
		if len(p.Messages) != len(n.Settings) {
			t.Fatalf("%d messages for %d settings", len(p.Messages), len(n.Settings))
		}
	})
}
