package coordination

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	// longestWait is the most that one WaitOperation waits.
	longestWait = 5 * time.Minute

	defaultOperations = 50
	mostOperations    = 1000
)

// waiters wakes those who wait for the end of an operation, by its id, or for a
// change of a workspace, by its workspaceKey.
type waiters struct {
	mu    sync.Mutex
	byKey map[string]*waited
}

// waited is closed when what it stands for happens.
type waited struct {
	happened chan struct{}
	waiting  int
}

// wait returns a channel that is closed when key is woken, and a function that
// gives it back.
func (w *waiters) wait(key string) (<-chan struct{}, func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byKey == nil {
		w.byKey = map[string]*waited{}
	}
	event := w.byKey[key]
	if event == nil {
		event = &waited{happened: make(chan struct{})}
		w.byKey[key] = event
	}
	event.waiting++
	return event.happened, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if event.waiting--; event.waiting == 0 && w.byKey[key] == event {
			delete(w.byKey, key)
		}
	}
}

func (w *waiters) wake(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if event := w.byKey[key]; event != nil {
		close(event.happened)
		delete(w.byKey, key)
	}
}

// WaitOperation implements vendettav1connect.OperationServiceHandler.
func (s *Server) WaitOperation(ctx context.Context, req *vendettav1.WaitOperationRequest) (*vendettav1.Operation, error) {
	d := min(time.Duration(max(req.GetSeconds(), 0))*time.Second, longestWait)
	op, err := s.waitOperation(ctx, req.GetId(), d)
	if err != nil {
		return nil, err
	}
	return operationView(op), nil
}

// waitOperation returns the operation as it is when it ended or d is over.
func (s *Server) waitOperation(ctx context.Context, id string, d time.Duration) (store.Operation, error) {
	ended, giveBack := s.waiters.wait(id)
	defer giveBack()
	op, err := s.operationByID(ctx, id)
	if err != nil || d == 0 || op.State != vendettav1.OperationState_OPERATION_STATE_PENDING {
		return op, err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	case <-ctx.Done():
		return op, api.From(ctx.Err())
	}
	return s.operationByID(ctx, id)
}

func (s *Server) operationByID(ctx context.Context, id string) (store.Operation, error) {
	var op store.Operation
	err := s.store.View(ctx, func(tx store.Tx) (err error) {
		op, err = tx.Operation(id)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return op, api.Errorf(api.NotFound, "operation %q: there is none", clip(id)).WithNext("vendetta workspace status NAME")
	}
	if err != nil {
		return op, s.storeError(ctx, "read operation", err)
	}
	return op, nil
}

// ListOperations implements vendettav1connect.OperationServiceHandler.
func (s *Server) ListOperations(ctx context.Context, req *vendettav1.ListOperationsRequest) (*vendettav1.ListOperationsResponse, error) {
	limit := int(req.GetLimit())
	switch {
	case limit < 0:
		return nil, api.Errorf(api.InvalidArgument, "list operations: limit %d is negative", limit)
	case limit == 0:
		limit = defaultOperations
	}
	limit = min(limit, mostOperations)
	var ops []store.Operation
	err := s.store.View(ctx, func(tx store.Tx) (err error) {
		ops, err = operationsOf(tx, req.GetWorkspace(), limit)
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, "list operations", err)
	}
	resp := &vendettav1.ListOperationsResponse{}
	for _, op := range ops {
		resp.Operations = append(resp.Operations, operationView(op))
	}
	return resp, nil
}

// operationsOf returns the operations of a workspace by name, one that was
// removed included.
func operationsOf(tx store.Tx, name string, limit int) ([]store.Operation, error) {
	if name == "" {
		return tx.Operations("", limit)
	}
	ws, err := tx.WorkspaceByName(name)
	if err == nil {
		return tx.Operations(ws.ID, limit)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	all, err := tx.Operations("", mostOperations)
	if err != nil {
		return nil, err
	}
	var ops []store.Operation
	for _, op := range all {
		if op.WorkspaceName == name && len(ops) < limit {
			ops = append(ops, op)
		}
	}
	if len(ops) == 0 {
		return nil, noWorkspace(name)
	}
	return ops, nil
}

// operation reads an operation with its workspace, as they are now.
func (s *Server) operation(ctx context.Context, id string) (op store.Operation, ws store.Workspace, err error) {
	err = s.store.View(ctx, func(tx store.Tx) error {
		if op, err = tx.Operation(id); err != nil {
			return err
		}
		ws, err = tx.Workspace(op.WorkspaceID)
		return err
	})
	return op, ws, err
}

// finish records the outcome of an operation, unless another one took its place.
func finish(tx store.Tx, operationID string, out outcome, now time.Time) error {
	op, err := tx.Operation(operationID)
	if err != nil {
		return err
	}
	if op.State == vendettav1.OperationState_OPERATION_STATE_PENDING {
		op.State, op.FinishedAt, op.Note = vendettav1.OperationState_OPERATION_STATE_SUCCEEDED, now, out.observed.GetNote()
		if out.failure != nil {
			op.State = vendettav1.OperationState_OPERATION_STATE_FAILED
			op.ErrorCode, op.Message, op.Next = string(out.failure.Code), out.failure.Message, out.failure.Next
		}
		if err := tx.UpdateOperation(op); err != nil {
			return err
		}
	}
	ws, err := tx.Workspace(op.WorkspaceID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || ws.OperationID != op.ID {
		return err
	}
	ws.UpdatedAt = now
	if out.failure != nil {
		revert(&ws, op)
		if out.leaves(op.Verb) {
			if o := out.observed; o != nil {
				ws.State, ws.Instance = o.GetState(), o.GetInstance()
				ws.ErrorCode, ws.Message, ws.Next = "", "", ""
			}
			return tx.UpdateWorkspace(ws)
		}
		ws.State = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
		ws.ErrorCode, ws.Message, ws.Next = string(out.failure.Code), out.failure.Message, out.failure.Next
		ws.Instance = out.observed.GetInstance()
		return tx.UpdateWorkspace(ws)
	}
	if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
		return tx.DeleteWorkspace(ws.ID)
	}
	ws.State, ws.Instance = out.observed.GetState(), out.observed.GetInstance()
	ws.ErrorCode, ws.Message, ws.Next = "", "", ""
	if digest := out.observed.GetImageDigest(); digest != "" && digest != ws.Spec.GetImageDigest() && ws.Spec != nil {
		// What the image means is settled when an instance is first made of it.
		ws.Spec = proto.CloneOf(ws.Spec)
		ws.Spec.ImageDigest = digest
	}
	return tx.UpdateWorkspace(ws)
}

func operationView(op store.Operation) *vendettav1.Operation {
	v := &vendettav1.Operation{
		Id:          op.ID,
		WorkspaceId: op.WorkspaceID,
		Workspace:   op.WorkspaceName,
		Verb:        op.Verb,
		State:       op.State,
		Generation:  op.Generation,
		ErrorCode:   op.ErrorCode,
		Message:     op.Message,
		Next:        op.Next,
		CreatedAt:   timestamppb.New(op.CreatedAt),
		Principal:   op.Principal,
		Note:        op.Note,
	}
	if !op.FinishedAt.IsZero() {
		v.FinishedAt = timestamppb.New(op.FinishedAt)
	}
	return v
}

// storeError logs what happened to the store and says so to the caller without
// the details. Errors that are the caller's own come back as they are.
func (s *Server) storeError(ctx context.Context, what string, err error) error {
	var own *api.Error
	if errors.As(err, &own) {
		return own
	}
	if ctx.Err() != nil {
		return api.From(ctx.Err())
	}
	s.log.ErrorContext(ctx, "the store did not work", "doing", what, "error", err)
	return (&api.Error{Code: api.Internal, Message: what + ": the server's store did not work", Cause: err}).
		WithNext("vendetta doctor")
}
