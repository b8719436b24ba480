package coordination

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

const (
	nodeReady = vendettav1.NodeState_NODE_STATE_READY
	nodeLost  = vendettav1.NodeState_NODE_STATE_LOST
	running   = vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
	unknown   = vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN
	succeeded = vendettav1.OperationState_OPERATION_STATE_SUCCEEDED
	pending   = vendettav1.OperationState_OPERATION_STATE_PENDING
)

// pass lets fake time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// The agent is killed in the middle of an operation: the server starts it again
// and repeats the operation under the same id.
func TestAgentDiesInMidApply(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		agent.set(func() { agent.hold = nil })
		agent.kill()
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetState() != succeeded {
			t.Fatalf("%v", op)
		}
		if w.fleet.starts != 1 {
			t.Errorf("the agent was started %d times", w.fleet.starts)
		}
		if len(agent.applied) != 2 || agent.applied[0].GetOperationId() != agent.applied[1].GetOperationId() ||
			agent.applied[0].GetGeneration() != agent.applied[1].GetGeneration() {
			t.Errorf("sent: %v", agent.applied)
		}
		if agent.done[resp.GetOperation().GetId()] != 1 {
			t.Errorf("carried out %d times", agent.done[resp.GetOperation().GetId()])
		}
		if w.node(ctx, "local").GetState() != nodeReady {
			t.Error("the node is not ready again")
		}
	})
}

// An agent that says that it is ending has not failed the operation.
func TestEndingAgentLeavesOperationsPending(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		agent.set(func() { agent.refuse = api.Errorf(api.Unavailable, "the agent is ending") })
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		op, err := w.server.WaitOperation(ctx, &vendettav1.WaitOperationRequest{Id: resp.GetOperation().GetId()})
		if err != nil || op.GetState() != pending {
			t.Fatalf("%v, %v", op, err)
		}
		agent.set(func() { agent.refuse = nil })
		if op := w.wait(ctx, op.GetId()); op.GetState() != succeeded {
			t.Fatalf("%v", op)
		}
	})
}

// The server is killed between the acknowledgement and the outcome: the next
// one on the same store goes on under the same server id and operation id.
func TestServerRestartsInMidApply(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		id := w.server.ID()
		w.halt()
		agent.set(func() { agent.hold = nil })
		w.start()
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetState() != succeeded {
			t.Fatalf("%v", op)
		}
		if w.server.ID() != id || len(agent.servers) != 1 || !agent.servers[id] {
			t.Errorf("server ids: %s, then %s; the agent saw %v", id, w.server.ID(), agent.servers)
		}
		if agent.done[resp.GetOperation().GetId()] != 1 {
			t.Errorf("carried out %d times", agent.done[resp.GetOperation().GetId()])
		}
		// A call that comes before the link is up waits for it.
		w.halt()
		w.start()
		if _, _, err := w.server.Guest(ctx, "x", false); err != nil {
			t.Error(err)
		}
	})
}

// A node without a sign of life loses its lease; its workspaces are unknown, and
// real again when it is back.
func TestLease(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "build1")
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("build1")
		pass(time.Hour) // heartbeats alone keep it
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady || time.Since(n.GetLastHeartbeat().AsTime()) > heartbeatInterval {
			t.Fatalf("%v", n)
		}
		agent.set(func() { agent.mute = true })
		pass(leaseTTL - heartbeatInterval - time.Second)
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady {
			t.Fatalf("too early: %v", n)
		}
		pass(heartbeatInterval + 2*time.Second)
		n := w.node(ctx, "build1")
		if n.GetState() != nodeLost || n.GetMessage() == "" {
			t.Fatalf("%v", n)
		}
		if ws := w.get(ctx, "x"); ws.GetState() != unknown || ws.GetMessage() == "" || ws.GetNext() == "" {
			t.Fatalf("%v", ws)
		}
		for verb, call := range changes(ctx, w.server, "x", "") {
			if _, err := call(); verb != "create" {
				wantError(t, err, api.Unavailable, "build1 is lost")
			}
		}
		_, _, err := w.server.Guest(ctx, "x", false)
		wantError(t, err, api.Unavailable, "build1 is lost")
		_, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "y"})
		wantError(t, err, api.Unavailable, "build1 is lost")

		pass(time.Hour)
		if ws := w.get(ctx, "x"); ws.GetState() != unknown {
			t.Fatalf("%v", ws)
		}
		sent := len(agent.applied)
		agent.set(func() {
			agent.mute = false
			agent.cut() // what was taken while mute leads nowhere
		})
		pass(5 * time.Second)
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady {
			t.Fatalf("not back within 5 s: %v", n)
		}
		if ws := w.get(ctx, "x"); ws.GetState() != running || ws.GetMessage() != "" {
			t.Fatalf("%v", ws)
		}
		if len(agent.applied) != sent {
			t.Error("something was sent to a node that has all it should")
		}
	})
}

// The way to a node vanishes, packets and all, for a while.
func TestUnreachableNode(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "build1")
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("build1")
		w.fleet.mu.Lock()
		w.fleet.agents["build1"] = nil
		w.fleet.mu.Unlock()
		agent.set(agent.cut)
		pass(brokenGrace - time.Second)
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady {
			t.Fatalf("no grace: %v", n)
		}
		pass(2 * time.Second)
		if n := w.node(ctx, "build1"); n.GetState() != nodeLost {
			t.Fatalf("%v", n)
		}
		for _, outage := range []time.Duration{0, 3100 * time.Millisecond, 7700 * time.Millisecond} {
			w.fleet.mu.Lock()
			w.fleet.agents["build1"] = nil
			w.fleet.mu.Unlock()
			agent.set(agent.cut)
			pass(30*time.Second + outage)
			w.fleet.mu.Lock()
			w.fleet.agents["build1"] = agent
			w.fleet.mu.Unlock()
			// A dial begun before the repair hangs until its ceiling, unlike TCP,
			// which repeats itself; the next one follows at once.
			pass(connectCeiling + redialMost)
			if n := w.node(ctx, "build1"); n.GetState() != nodeReady {
				t.Fatalf("after %s: %v", outage, n)
			}
		}
	})
}

// A restart of the agent that is over within the grace is nobody's business.
func TestShortBreakIsNoLoss(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		agent.set(agent.cut)
		if _, _, err := w.server.Guest(ctx, "x", true); err != nil {
			t.Fatal(err)
		}
		if w.node(ctx, "local").GetState() != nodeReady {
			t.Error("the node is not ready")
		}
	})
}

// An agent that cannot be started is tried again, but not at every dial.
func TestAgentCannotBeStarted(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "build1")
		w.fleet.mu.Lock()
		w.fleet.startErr = errors.New("no space left on device")
		w.fleet.mu.Unlock()
		agent := w.fleet.agent("build1")
		agent.kill()
		pass(10 * time.Second)
		w.fleet.mu.Lock()
		starts := w.fleet.starts
		w.fleet.mu.Unlock()
		if starts != 1 {
			t.Errorf("%d starts within 10 s", starts)
		}
		if n := w.node(ctx, "build1"); n.GetState() != nodeLost {
			t.Fatalf("%v", n)
		}
		w.fleet.mu.Lock()
		w.fleet.startErr = nil
		w.fleet.mu.Unlock()
		pass(startInterval)
		if n := w.node(ctx, "build1"); n.GetState() != nodeReady {
			t.Fatalf("%v", n)
		}
	})
}

// An agent that lost its journal gets the latest operation again.
func TestJournalLost(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		op := w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		agent.set(func() {
			clear(agent.journal)
			clear(agent.answers)
			agent.changed()
		})
		pass(reconcileInterval + time.Second)
		if agent.done[op.GetId()] != 2 {
			t.Errorf("carried out %d times", agent.done[op.GetId()])
		}
		if ws := w.get(ctx, "x"); ws.GetState() != running {
			t.Errorf("%v", ws)
		}
	})
}

// What the node reports on its own account is shown; what it says of another
// generation, or of a workspace that is not there, is not.
func TestReportsAreTaken(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		id := w.get(ctx, "x").GetId()
		report := func(state vendettav1.WorkspaceState, generation int64) {
			agent.set(func() {
				agent.journal[id].State, agent.journal[id].Generation = state, generation
				agent.changed()
			})
			synctest.Wait()
		}
		report(vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED, 1)
		if ws := w.get(ctx, "x"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED {
			t.Errorf("%v", ws)
		}
		_, _, err := w.server.Guest(ctx, "x", false)
		wantError(t, err, api.FailedPrecondition, "stopped")
		report(running, 7)
		report(vendettav1.WorkspaceState_WORKSPACE_STATE_UNSPECIFIED, 1)
		if ws := w.get(ctx, "x"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED {
			t.Errorf("%v", ws)
		}
		agent.set(func() {
			agent.journal["stranger"] = agent.journal[id]
			agent.changed()
		})
		pass(time.Hour)
		if len(agent.applied) != 1 {
			t.Errorf("sent: %v", agent.applied)
		}
	})
}

// A removal that failed is tried again until it succeeds.
func TestRemovalIsRetried(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		removed := vendettav1.DesiredState_DESIRED_STATE_REMOVED
		agent.set(func() { agent.fail[removed] = api.Errorf(api.Unavailable, "docker does not run") })
		resp, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetErrorCode() != "unavailable" {
			t.Fatalf("%v", op)
		}
		if ws := w.get(ctx, "x"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED || ws.GetMessage() == "" {
			t.Fatalf("%v", ws)
		}
		_, err = w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "x"})
		wantError(t, err, api.Conflict, "being removed")
		pass(removeRetry / 2)
		if len(agent.applied) != 2 {
			t.Fatalf("retried at once: %v", agent.applied)
		}
		agent.set(func() { delete(agent.fail, removed) })
		pass(removeRetry)
		_, err = w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: "x"})
		wantError(t, err, api.NotFound)
		ops, err := w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{Workspace: "x", Limit: 1})
		if err != nil || len(ops.GetOperations()) != 1 || ops.GetOperations()[0].GetPrincipal() != serverPrincipal {
			t.Errorf("%v, %v", ops, err)
		}
	})
}

// A store that fails loses nothing: nothing is accepted, and an outcome that
// could not be written is fetched again.
func TestStoreFails(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		faulty := w.store.(*faultyStore)
		broken := errors.New("disk full")

		faulty.fault(nil, broken)
		for verb, call := range changes(ctx, w.server, "x", "k") {
			if _, err := call(); verb != "create" {
				wantError(t, err, api.Internal, "store")
			}
		}
		_, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "y"})
		wantError(t, err, api.Internal)
		_, err = w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "z", Address: &vendettav1.NodeAddress{Host: "z"}})
		wantError(t, err, api.Internal)
		_, err = w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "local"})
		wantError(t, err, api.Internal)
		_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local"})
		wantError(t, err, api.Internal)
		if len(agent.applied) != 1 {
			t.Errorf("something was sent that was not accepted: %v", agent.applied)
		}

		faulty.fault(broken, nil)
		for _, call := range changes(ctx, w.server, "x", "k") {
			_, err := call()
			wantError(t, err, api.Internal, "store")
		}
		reads := map[string]func() error{
			"get": func() error {
				_, err := w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: "x"})
				return err
			},
			"list":  func() error { _, err := w.server.ListWorkspaces(ctx, nil); return err },
			"node":  func() error { _, err := w.server.GetNode(ctx, &vendettav1.GetNodeRequest{Name: "x"}); return err },
			"nodes": func() error { _, err := w.server.ListNodes(ctx, nil); return err },
			"test":  func() error { _, err := w.server.TestNode(ctx, &vendettav1.TestNodeRequest{Name: "local"}); return err },
			"operation": func() error {
				_, err := w.server.WaitOperation(ctx, &vendettav1.WaitOperationRequest{Id: "x"})
				return err
			},
			"history": func() error { _, err := w.server.ListOperations(ctx, nil); return err },
			"status":  func() error { _, err := w.server.ServerStatus(ctx, nil); return err },
			"audit":   func() error { _, err := w.server.ListAudit(ctx, nil); return err },
			"place":   func() error { _, err := w.server.place(ctx, "", nil); return err },
			"ran":     func() error { _, err := w.server.everRan(ctx, "x"); return err },
		}
		for what, read := range reads {
			if err := read(); api.CodeOf(err) != api.Internal {
				t.Errorf("%s: %v", what, err)
			}
		}
		pass(reconcileInterval)
		faulty.fault(nil, nil)

		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		resp, err := w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		faulty.fault(nil, broken)
		close(hold)
		pass(time.Second)
		agent.kill() // its states cannot be recorded either
		pass(time.Second)
		faulty.fault(nil, nil)
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetState() != succeeded {
			t.Errorf("%v", op)
		}
		if agent.done[resp.GetOperation().GetId()] != 1 {
			t.Error("carried out twice")
		}
	})
}
