package coordination

import (
	"context"
	"time"

	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// removeRetry is how long a failed removal rests before it is tried again.
const removeRetry = time.Minute

// Desired is what should be, as the store has it.
type Desired struct {
	Workspaces []store.Workspace
	// Operations holds the latest operation of each workspace, by its id.
	Operations map[string]store.Operation
	// Left holds the ids of what was left behind on nodes.
	Left []string
}

// Observed is what is, as the node agents last reported it. A node that is not
// here cannot be reached, and nothing is known of it.
type Observed map[string]map[string]*nodeagentv1.ObservedWorkspace

// ActionKind says what the reconciler wants done.
type ActionKind string

// The kinds of action.
const (
	// ActionApply sends the workspace's latest operation to its node, again or
	// for the first time.
	ActionApply ActionKind = "apply"
	// ActionRemove accepts a new removal in place of one that failed: the node
	// agent answers a repeat from its journal, so the same one would fail again.
	ActionRemove ActionKind = "remove"
)

// Action is one decision of the reconciler.
type Action struct {
	Kind        ActionKind
	NodeID      string
	WorkspaceID string
	OperationID string
	// Again: the operation has ended before, and the node does not know it. What
	// an operation does once is not in it then.
	Again bool
	// Reason is for the log.
	Reason string
}

// Reconcile compares what should be with what is and decides what to send. It
// does no I/O and forgets nothing into the next call: the same input gives the
// same actions. It never acts on a node that is not observed, never on a
// workspace that the store does not know, and removes only what the user wants
// removed. Sending an action twice is harmless, since node agents answer a
// repeated operation from their journals.
func Reconcile(desired Desired, observed Observed, now time.Time) []Action {
	var actions []Action
	for _, ws := range desired.Workspaces {
		node, reachable := observed[ws.NodeID]
		if !reachable {
			continue
		}
		op, known := desired.Operations[ws.OperationID]
		if !known {
			continue
		}
		a := Action{NodeID: ws.NodeID, WorkspaceID: ws.ID, OperationID: op.ID}
		switch o, there := node[ws.ID]; {
		case op.State == vendettav1.OperationState_OPERATION_STATE_PENDING:
			a.Kind, a.Reason = ActionApply, "the operation is pending"
		case ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED:
			if op.State == vendettav1.OperationState_OPERATION_STATE_FAILED && now.Sub(op.FinishedAt) < removeRetry {
				continue
			}
			a.Kind, a.Reason = ActionRemove, "the removal did not succeed"
		case !settled(op, ws):
			continue // it failed; the user decides what comes next
		case !there && ws.Desired == vendettav1.DesiredState_DESIRED_STATE_DOWN:
			continue // nothing there is what down means
		case !there:
			a.Kind, a.Again, a.Reason = ActionApply, true, "the node does not have it"
		case o.GetGeneration() < ws.Generation:
			a.Kind, a.Again, a.Reason = ActionApply, true, "the node has an older generation"
		default:
			continue
		}
		actions = append(actions, a)
	}
	return actions
}

// settled tells whether what is desired is what should be now: the latest
// operation succeeded, or failed and left the workspace as it was.
func settled(op store.Operation, ws store.Workspace) bool {
	return op.State == vendettav1.OperationState_OPERATION_STATE_SUCCEEDED ||
		op.State == vendettav1.OperationState_OPERATION_STATE_FAILED && besides(op.Verb) &&
			ws.State != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
}

// reconcile runs Reconcile on all nodes that are up and carries out what it decides.
func (s *Server) reconcile(ctx context.Context) {
	// In this order: an outcome is observed before it is stored, so what the store
	// calls done is not missed among what is observed.
	desired, err := s.desired(ctx)
	if err != nil {
		s.log.ErrorContext(ctx, "reconcile", "error", err)
		return
	}
	s.sweep(desired)
	for _, a := range Reconcile(desired, s.observed(), s.now()) {
		switch a.Kind {
		case ActionApply:
			if l := s.linkTo(a.NodeID); l != nil && l.dispatcher.send(a.OperationID, a.Again) {
				s.log.InfoContext(ctx, "reconcile", "workspace", a.WorkspaceID, "operation", a.OperationID, "reason", a.Reason)
			}
		case ActionRemove:
			if err := s.renewRemoval(ctx, a.WorkspaceID, a.OperationID); err != nil {
				s.log.ErrorContext(ctx, "reconcile", "workspace", a.WorkspaceID, "error", err)
			}
		}
	}
}

func (s *Server) observed() Observed {
	s.mu.Lock()
	links := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	observed := Observed{}
	for _, l := range links {
		if v := l.view(); v.up {
			observed[l.nodeID] = v.observed
		}
	}
	return observed
}

func (s *Server) desired(ctx context.Context) (Desired, error) {
	d := Desired{Operations: map[string]store.Operation{}}
	err := s.store.View(ctx, func(tx store.Tx) error {
		var err error
		if d.Workspaces, err = tx.Workspaces(""); err != nil {
			return err
		}
		for _, ws := range d.Workspaces {
			op, err := tx.Operation(ws.OperationID)
			if err != nil {
				return err
			}
			d.Operations[op.ID] = op
		}
		d.Left, err = leftBehind(tx)
		return err
	})
	return d, err
}
