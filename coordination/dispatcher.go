package coordination

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc/pool"
	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// applyLimit is how many operations one node works on at once for this server.
const applyLimit = 8

// dispatcher carries the operations of one node to its agent. An operation that
// does not arrive, or whose answer is lost, stays pending and is sent again,
// under the same id, when the link is back.
type dispatcher struct {
	server *Server
	link   *link

	mu       sync.Mutex
	queue    []queued
	inflight map[string]context.CancelFunc // by operation id; queued ones with nil
	wake     chan struct{}
}

// queued is an operation on its way. One that has ended is sent only again.
type queued struct {
	operationID string
	again       bool
}

func newDispatcher(s *Server, l *link) *dispatcher {
	return &dispatcher{server: s, link: l, inflight: map[string]context.CancelFunc{}, wake: make(chan struct{}, 1)}
}

// send queues an operation unless it is under way. It never blocks. Only with
// again is one sent that has succeeded before.
func (d *dispatcher) send(operationID string, again bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, under := d.inflight[operationID]; under {
		return false
	}
	d.inflight[operationID] = nil
	d.queue = append(d.queue, queued{operationID, again})
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return true
}

// drop stops waiting for an operation whose place another one took. The node
// agent finishes or abandons it as the newer generation demands.
func (d *dispatcher) drop(operationID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel := d.inflight[operationID]; cancel != nil {
		cancel()
	}
}

// run sends until ctx is done, then waits for what is under way.
func (d *dispatcher) run(ctx context.Context) {
	p := pool.New().WithMaxGoroutines(applyLimit)
	defer p.Wait()
	for {
		next, ok := d.next(ctx)
		if !ok {
			return
		}
		p.Go(func() {
			if ctx.Err() == nil {
				d.apply(ctx, next)
			}
		})
	}
}

func (d *dispatcher) next(ctx context.Context) (queued, bool) {
	for {
		d.mu.Lock()
		if len(d.queue) > 0 {
			next := d.queue[0]
			d.queue = d.queue[1:]
			d.mu.Unlock()
			return next, true
		}
		d.mu.Unlock()
		select {
		case <-d.wake:
		case <-ctx.Done():
			return queued{}, false
		}
	}
}

// apply sends one operation and records what came of it.
func (d *dispatcher) apply(ctx context.Context, next queued) {
	operationID := next.operationID
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.inflight[operationID] = cancel
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.inflight, operationID)
		d.mu.Unlock()
	}()

	log := d.link.log.With("operation", operationID)
	op, ws, err := d.server.operation(ctx, operationID)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			log.ErrorContext(ctx, "dispatch", "error", err)
		}
		return
	}
	if ws.OperationID != op.ID || (op.State != vendettav1.OperationState_OPERATION_STATE_PENDING && !next.again) {
		return // a newer one took its place, or it ended, while it was queued
	}
	resp, err := d.link.agent.Apply(callCtx, applyRequest(op, ws))
	if err != nil && lostAnswer(err) {
		log.WarnContext(ctx, "dispatch: no answer, the operation stays pending", "error", err)
		return
	}
	d.server.recordOutcome(ctx, d.link, op, ws, outcomeOf(op, ws, resp.GetObserved(), err))
}

// applyRequest is an operation as a node agent gets it. What is done once is in
// it only while the operation is pending: one that has ended is sent again to
// restore what is desired, not to do that once more.
func applyRequest(op store.Operation, ws store.Workspace) *nodeagentv1.ApplyRequest {
	r := &nodeagentv1.ApplyRequest{
		OperationId:   op.ID,
		WorkspaceId:   ws.ID,
		WorkspaceName: nameOnNode(ws),
		Generation:    op.Generation,
		Spec:          ws.Spec,
		Desired:       ws.Desired,
		GraceSeconds:  op.GraceSeconds,
	}
	if op.State != vendettav1.OperationState_OPERATION_STATE_PENDING {
		return r
	}
	switch op.Verb {
	case verbSnapshotCreate:
		r.Action = &nodeagentv1.ApplyRequest_CreateSnapshot{CreateSnapshot: op.Argument}
	case verbSnapshotRestore:
		r.Action = &nodeagentv1.ApplyRequest_RestoreSnapshot{RestoreSnapshot: op.Argument}
	case verbSnapshotRemove:
		r.Action = &nodeagentv1.ApplyRequest_RemoveSnapshot{RemoveSnapshot: op.Argument}
	case verbFork:
		r.Action = &nodeagentv1.ApplyRequest_ForkOf{ForkOf: op.Argument}
	case verbResize:
		r.Action = &nodeagentv1.ApplyRequest_Resize{Resize: true}
	}
	return r
}

// lostAnswer tells an answer of the node agent from trouble on the way to it,
// after which nobody knows what became of the call.
func lostAnswer(err error) bool {
	if !connect.IsWireError(err) {
		return true
	}
	switch api.CodeOf(err) {
	case api.Unavailable, api.DeadlineExceeded:
		return true // the agent is ending, or a proxy spoke in its place
	default:
		return false
	}
}

// outcome is what became of an operation.
type outcome struct {
	failure  *api.Error // nil when it succeeded
	observed *nodeagentv1.ObservedWorkspace
}

// leaves tells whether a failure of verb left the workspace as it was: the node
// agent refused it before it began, or says that it is not failed.
func (o outcome) leaves(verb string) bool {
	return besides(verb) && (o.observed == nil || o.observed.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED)
}

// outcomeOf judges an answer of the node agent. Only the desired state is
// success, but for what leaves the instance in the state that it is in.
func outcomeOf(op store.Operation, ws store.Workspace, o *nodeagentv1.ObservedWorkspace, err error) outcome {
	if err != nil {
		return outcome{failure: api.From(err)}
	}
	if o.GetErrorCode() != "" {
		e := api.Errorf(api.Code(o.GetErrorCode()), "%s", o.GetMessage())
		if o.GetNext() != "" {
			e = e.WithNext("%s", o.GetNext())
		}
		return outcome{failure: e, observed: o}
	}
	if !inPlace(op.Verb) && !satisfies(o.GetState(), ws.Desired) {
		return outcome{observed: o, failure: api.Errorf(api.Internal, "workspace %s: %s ended with the workspace %s",
			ws.Name, op.Verb, stateWord(o.GetState()))}
	}
	return outcome{observed: o}
}

// satisfies tells whether an observed state is the desired one.
func satisfies(state vendettav1.WorkspaceState, desired vendettav1.DesiredState) bool {
	switch desired {
	case vendettav1.DesiredState_DESIRED_STATE_RUNNING:
		return state == vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
	case vendettav1.DesiredState_DESIRED_STATE_PAUSED:
		return state == vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED
	case vendettav1.DesiredState_DESIRED_STATE_STOPPED:
		return state == vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED
	case vendettav1.DesiredState_DESIRED_STATE_DOWN:
		return state == vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN
	case vendettav1.DesiredState_DESIRED_STATE_REMOVED:
		// There is no word for gone: an agent says down, or nothing.
		return state == vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN ||
			state == vendettav1.WorkspaceState_WORKSPACE_STATE_UNSPECIFIED ||
			state == vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING
	default:
		return false
	}
}

// recordOutcome writes what became of an operation and wakes who waits for it.
func (s *Server) recordOutcome(ctx context.Context, l *link, op store.Operation, ws store.Workspace, out outcome) {
	gone := out.failure == nil && ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED
	if gone {
		l.observe(ws.ID, nil)
	} else if o := out.observed; o != nil {
		if out.failure != nil && out.leaves(op.Verb) {
			o = proto.CloneOf(o) // the failure is the operation's alone
			o.ErrorCode, o.Message, o.Next = "", "", ""
		}
		l.observe(ws.ID, o)
	}
	err := s.store.Update(ctx, func(tx store.Tx) error {
		return finish(tx, op.ID, out, s.now())
	})
	if err != nil {
		// It stays pending and is sent again; the agent answers from its journal.
		l.log.ErrorContext(ctx, "record outcome", "operation", op.ID, "error", err)
		return
	}
	s.waiters.wake(op.ID)
	s.waiters.wake(workspaceKey(ws.ID))
	if ws.Spare {
		s.spareEnded(op, ws, out.failure)
	}
	if out.failure != nil {
		l.log.WarnContext(ctx, "operation failed", "operation", op.ID, "verb", op.Verb, "workspace", ws.Name, "error", fmt.Sprint(out.failure))
		return
	}
	l.log.InfoContext(ctx, "operation succeeded", "operation", op.ID, "verb", op.Verb, "workspace", ws.Name)
}
