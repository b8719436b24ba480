package coordination

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

var everyVerb = []string{
	verbCreate, verbUp, verbStop, verbDown, verbRemove, verbPause, verbResume, verbResize, verbFork,
	verbSnapshotCreate, verbSnapshotRestore, verbSnapshotRemove,
}

// drawWorld makes any state of store and nodes, also such as should not occur.
func drawWorld(t *rapid.T) (Desired, Observed) {
	desired := Desired{Operations: map[string]store.Operation{}}
	observed := Observed{}
	for n := range rapid.IntRange(1, 3).Draw(t, "nodes") {
		if rapid.Bool().Draw(t, "reachable") {
			observed[fmt.Sprint("n", n)] = map[string]*nodeagentv1.ObservedWorkspace{}
		}
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "workspaces") {
		ws := store.Workspace{
			ID: fmt.Sprint("w", i), NodeID: fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node")),
			Desired:    vendettav1.DesiredState(rapid.Int32Range(1, 5).Draw(t, "desired")),
			State:      vendettav1.WorkspaceState(rapid.Int32Range(1, 9).Draw(t, "shown")),
			Generation: rapid.Int64Range(1, 3).Draw(t, "generation"), OperationID: fmt.Sprint("o", i),
		}
		desired.Workspaces = append(desired.Workspaces, ws)
		if rapid.IntRange(0, 9).Draw(t, "orphan") > 0 {
			desired.Operations[ws.OperationID] = store.Operation{
				ID: ws.OperationID, WorkspaceID: ws.ID, Generation: ws.Generation, Argument: "w0",
				Verb:       rapid.SampledFrom(everyVerb).Draw(t, "verb"),
				State:      vendettav1.OperationState(rapid.Int32Range(1, 3).Draw(t, "operation")),
				FinishedAt: epoch.Add(-time.Duration(rapid.IntRange(0, 120).Draw(t, "age")) * time.Second),
			}
		}
		if node := observed[ws.NodeID]; node != nil && rapid.Bool().Draw(t, "there") {
			node[ws.ID] = &nodeagentv1.ObservedWorkspace{
				WorkspaceId: ws.ID, Generation: rapid.Int64Range(0, 4).Draw(t, "observed generation"),
				State: vendettav1.WorkspaceState(rapid.Int32Range(1, 9).Draw(t, "state")),
			}
		}
	}
	for id, node := range observed {
		if rapid.Bool().Draw(t, "stranger") {
			node["stranger"] = &nodeagentv1.ObservedWorkspace{WorkspaceId: "stranger", Generation: 1, OperationId: id}
		}
	}
	return desired, observed
}

func TestReconcileProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		desired, observed := drawWorld(t)
		actions := Reconcile(desired, observed, epoch)
		if again := Reconcile(desired, observed, epoch); !reflect.DeepEqual(actions, again) {
			t.Fatalf("two answers to one question: %v and %v", actions, again)
		}
		byID := map[string]store.Workspace{}
		for _, ws := range desired.Workspaces {
			byID[ws.ID] = ws
		}
		seen := map[string]bool{}
		for _, a := range actions {
			ws, known := byID[a.WorkspaceID]
			if !known {
				t.Fatalf("acts on a workspace that is not the server's: %v", a)
			}
			if _, reachable := observed[a.NodeID]; !reachable || a.NodeID != ws.NodeID {
				t.Fatalf("acts on a node that nobody sees, or another one: %v", a)
			}
			if a.OperationID != ws.OperationID {
				t.Fatalf("sends an operation that is not the latest: %v", a)
			}
			if a.Kind == ActionRemove && ws.Desired != vendettav1.DesiredState_DESIRED_STATE_REMOVED {
				t.Fatalf("removes what nobody wants removed: %v", a)
			}
			if seen[a.WorkspaceID] {
				t.Fatalf("two actions on one workspace: %v", actions)
			}
			seen[a.WorkspaceID] = true
			op := desired.Operations[a.OperationID]
			if a.Again != (a.Kind == ActionApply && op.State != pending) {
				t.Fatalf("again, or not: %v", a)
			}
			if a.Again && op.State != succeeded && (!besides(op.Verb) || ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED) {
				t.Fatalf("tries again what failed: %v", a)
			}
			if a.Reason == "" {
				t.Fatalf("no reason: %v", a)
			}
			if a.Kind != ActionApply {
				continue
			}
			if r := applyRequest(op, ws); r.GetDesired() != ws.Desired || (r.GetAction() != nil) != (!a.Again && once(op.Verb)) {
				t.Fatalf("sends %v for %v", r, a)
			}
		}
	})
}

// Carrying out what Reconcile decides leads to a state in which it decides
// nothing, when nothing else happens and the nodes do as they are told.
func TestReconcileConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		desired, observed := drawWorld(t)
		now := epoch
		var actions []Action
		for round := range 12 { // each retry of a removal takes two
			actions = Reconcile(desired, observed, now)
			for _, a := range actions {
				i := indexOf(desired.Workspaces, a.WorkspaceID)
				ws := &desired.Workspaces[i]
				op := desired.Operations[a.OperationID]
				if a.Kind == ActionRemove {
					ws.Generation++
					ws.OperationID = fmt.Sprint(a.OperationID, "-", round)
					op.ID, op.Generation, op.State = ws.OperationID, ws.Generation, pending
					desired.Operations[op.ID] = op
					continue
				}
				switch node := observed[a.NodeID]; {
				case node[ws.ID].GetGeneration() > op.Generation:
					op.State = vendettav1.OperationState_OPERATION_STATE_FAILED
					op.FinishedAt = now
				case ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED:
					delete(node, ws.ID)
					desired.Workspaces = append(desired.Workspaces[:i], desired.Workspaces[i+1:]...)
					op.State = succeeded
				default:
					node[ws.ID] = &nodeagentv1.ObservedWorkspace{WorkspaceId: ws.ID, Generation: op.Generation}
					op.State = succeeded
				}
				desired.Operations[op.ID] = op
			}
			now = now.Add(2 * removeRetry)
		}
		if len(actions) > 0 {
			t.Fatalf("still something to do: %v", actions)
		}
	})
}

func indexOf(list []store.Workspace, id string) int {
	for i, ws := range list {
		if ws.ID == id {
			return i
		}
	}
	return -1
}
