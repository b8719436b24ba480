package coordination

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// The verbs of operations.
const (
	verbCreate = "create"
	verbUp     = "up"
	verbStop   = "stop"
	verbDown   = "down"
	verbRemove = "rm"
	verbPause  = "pause"
	verbResume = "resume"
	verbResize = "resize"
	verbFork   = "fork"

	verbSnapshotCreate  = "snapshot-create"
	verbSnapshotRestore = "snapshot-restore"
	verbSnapshotRemove  = "snapshot-rm"
)

// serverPrincipal stands in operations that the server began by itself.
const serverPrincipal = "server"

func noWorkspace(name string) *api.Error {
	return api.Errorf(api.NotFound, "workspace %q: there is none", clip(name)).WithNext("vendetta workspace list")
}

// CreateWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) CreateWorkspace(ctx context.Context, req *vendettav1.CreateWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	if err := checkName("workspace", req.GetName()); err != nil {
		return nil, err
	}
	if req.GetNode() != "" {
		if err := checkName("node", req.GetNode()); err != nil {
			return nil, err
		}
	}
	if err := checkSpec(req.GetSpec()); err != nil {
		return nil, err
	}
	if req.GetSpec().GetPrivileged() && !PrincipalFrom(ctx).May(vendettav1.Scope_SCOPE_ADMIN) {
		return nil, api.Errorf(api.PermissionDenied, "create workspace %s: who makes a privileged workspace is root on its node, which needs the scope admin", req.GetName()).
			WithNext("leave --privileged out, or have somebody with that scope create it")
	}
	if err := s.awaitRun(ctx); err != nil {
		return nil, err
	}
	who := principalName(ctx)
	if resp, err := s.existing(ctx, who, req); resp != nil || err != nil {
		return resp, err
	}
	choice, err := s.place(ctx, req.GetNode(), req.GetSpec())
	if err != nil {
		return nil, err
	}
	spec := &vendettav1.WorkspaceSpec{}
	if req.GetSpec() != nil {
		spec = proto.CloneOf(req.GetSpec())
	}
	spec.Provider, spec.ImageDigest = choice.provider, ""

	wsID, err := s.newID(workspaceIDLength)
	if err != nil {
		return nil, api.From(err)
	}
	now := s.now()
	ws := store.Workspace{
		ID: wsID, Name: req.GetName(), NodeID: choice.nodeID, Spec: spec,
		State: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING, CreatedAt: now, UpdatedAt: now,
	}
	spared := false
	c := change{verb: verbCreate, desired: vendettav1.DesiredState_DESIRED_STATE_RUNNING, principal: who, key: req.GetIdempotencyKey()}
	c.edit = func(_ *store.Workspace, op *store.Operation) {
		if spared { // it runs and its guest answers: there is nothing to wait for
			op.State, op.FinishedAt = vendettav1.OperationState_OPERATION_STATE_SUCCEEDED, now
		}
	}
	op, superseded, err := s.accept(ctx, c, func(tx store.Tx) (store.Workspace, bool, error) {
		n, err := tx.Node(choice.nodeID)
		switch {
		case errors.Is(err, store.ErrNotFound) || n.State == vendettav1.NodeState_NODE_STATE_REMOVED:
			return ws, false, noNode(choice.node)
		case err != nil:
			return ws, false, err
		case n.Draining:
			return ws, false, drainingNode(n.Name)
		}
		spare, found, err := s.claim(tx, n.ID, spec)
		if err != nil || !found {
			return ws, true, err
		}
		spared = true
		spec.ImageDigest = spare.Spec.GetImageDigest()
		spare.Name, spare.Spare, spare.Spec, spare.CreatedAt = ws.Name, false, spec, now
		return spare, false, nil
	}, &ws)
	if errors.Is(err, store.ErrExists) { // another caller was quicker
		resp, err := s.existing(ctx, who, req)
		if resp == nil && err == nil {
			err = api.Errorf(api.Conflict, "workspace %s: it was created and removed in the meantime", req.GetName()).
				WithNext("repeat the command")
		}
		return resp, err
	}
	if err != nil {
		return nil, s.storeError(ctx, "create workspace", err)
	}
	if spared {
		choice.note = joinNotes(choice.note, "from a spare")
		s.spareMemory.moved(choice.nodeID, s.now())
		time.AfterFunc(spareInterval, s.reconcileSoon) // another one is to take its place
	}
	s.dispatch(op, superseded)
	return &vendettav1.ChangeResponse{Workspace: s.workspaceView(ws, choice.node), Operation: operationView(op), Note: choice.note}, nil
}

// existing answers a create whose key or name is known already; nil when neither is.
func (s *Server) existing(ctx context.Context, who string, req *vendettav1.CreateWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	if resp, err := s.repeated(ctx, who, req.GetIdempotencyKey(), verbCreate, req.GetName(), ""); resp != nil || err != nil {
		return resp, err
	}
	var resp *vendettav1.ChangeResponse
	err := s.store.View(ctx, func(tx store.Tx) error {
		ws, err := tx.WorkspaceByName(req.GetName())
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
			return beingRemoved(ws)
		}
		node, err := nodeName(tx, ws.NodeID)
		if err != nil {
			return err
		}
		if diff := specDifference(req.GetNode(), node, req.GetSpec(), ws.Spec); diff != "" {
			if ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED {
				return api.Errorf(api.AlreadyExists, "workspace %s: it exists, failed, with another %s", ws.Name, diff).
					WithNext("vendetta workspace rm %s", ws.Name)
			}
			return api.Errorf(api.AlreadyExists, "workspace %s: it exists with another %s", ws.Name, diff).
				WithNext("vendetta workspace status %s, or create one under another name", ws.Name)
		}
		op, err := tx.Operation(ws.OperationID)
		if err != nil {
			return err
		}
		resp = &vendettav1.ChangeResponse{Workspace: s.workspaceView(ws, node), Operation: operationView(op)}
		return nil
	})
	if err != nil {
		return nil, s.storeError(ctx, "create workspace", err)
	}
	return resp, nil
}

func beingRemoved(ws store.Workspace) *api.Error {
	return api.Errorf(api.Conflict, "workspace %s: it is being removed", ws.Name).
		WithNext("vendetta workspace status %s; if the removal failed, vendetta workspace rm %s", ws.Name, ws.Name)
}

// repeated answers a call whose idempotency key was used before; nil when it was
// not. An argument is part of what the call is.
func (s *Server) repeated(ctx context.Context, who, key, verb, name, argument string) (*vendettav1.ChangeResponse, error) {
	if key == "" {
		return nil, nil //nolint:nilnil // no answer is the answer
	}
	var resp *vendettav1.ChangeResponse
	err := s.store.View(ctx, func(tx store.Tx) error {
		op, err := tx.OperationByKey(who, key)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if op.Verb != verb || op.WorkspaceName != name || argument != "" && op.Argument != argument {
			return api.Errorf(api.Conflict, "%s workspace %s: the idempotency key %q was used for %s of %s", verb, name, clip(key), op.Verb, op.WorkspaceName).
				WithNext("use a new key for each change")
		}
		resp = &vendettav1.ChangeResponse{Operation: operationView(op)}
		ws, err := tx.Workspace(op.WorkspaceID)
		if errors.Is(err, store.ErrNotFound) {
			resp.Workspace = &vendettav1.Workspace{Id: op.WorkspaceID, Name: op.WorkspaceName, Operation: op.ID}
			return nil
		}
		if err != nil {
			return err
		}
		node, err := nodeName(tx, ws.NodeID)
		resp.Workspace = s.workspaceView(ws, node)
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, verb+" workspace", err)
	}
	return resp, nil
}

// change is an intent before it is accepted.
type change struct {
	verb    string
	desired vendettav1.DesiredState
	// stays: what is desired stays as it is.
	stays bool
	// state is shown until the node says otherwise; unspecified leaves what is shown.
	state     vendettav1.WorkspaceState
	principal string
	key       string
	grace     int32
	argument  string
	// edit changes the workspace further, and notes in the operation what was.
	edit func(*store.Workspace, *store.Operation)
}

// under tells whether op, which is pending, is this very change.
func (c change) under(op store.Operation, ws store.Workspace) bool {
	if once(c.verb) || once(op.Verb) {
		return c.verb == op.Verb && c.argument == op.Argument && c.edit == nil
	}
	return ws.Desired == c.desired
}

// accept makes a change durable in one transaction: intent, idempotency key,
// generation and audit row. load returns the workspace as it is and whether it
// is new. The operation that it takes the place of is returned too, if one was
// pending.
func (s *Server) accept(ctx context.Context, c change, load func(store.Tx) (store.Workspace, bool, error), out *store.Workspace) (op store.Operation, superseded string, err error) {
	opID, err := s.newID(operationIDLength)
	if err != nil {
		return op, "", err
	}
	now := s.now()
	err = s.store.Update(ctx, func(tx store.Tx) error {
		superseded = ""
		ws, fresh, err := load(tx)
		if err != nil {
			return err
		}
		if !fresh {
			if superseded, err = supersede(tx, ws, now); err != nil {
				return err
			}
			if c.state != vendettav1.WorkspaceState_WORKSPACE_STATE_UNSPECIFIED {
				ws.State = c.state
				ws.ErrorCode, ws.Message, ws.Next = "", "", ""
			}
		}
		if !c.stays {
			ws.Desired = c.desired
		}
		ws.OperationID, ws.UpdatedAt = opID, now
		ws.Generation++
		op = store.Operation{
			ID: opID, WorkspaceID: ws.ID, WorkspaceName: ws.Name, NodeID: ws.NodeID, Verb: c.verb,
			Principal: c.principal, IdempotencyKey: c.key, Generation: ws.Generation, GraceSeconds: c.grace,
			Argument: c.argument, State: vendettav1.OperationState_OPERATION_STATE_PENDING, CreatedAt: now,
		}
		if c.edit != nil {
			c.edit(&ws, &op)
		}
		if fresh {
			err = tx.CreateWorkspace(ws)
		} else {
			err = tx.UpdateWorkspace(ws)
		}
		if err != nil {
			return err
		}
		if err := tx.CreateOperation(op); err != nil {
			return err
		}
		fields, err := json.Marshal(auditFields(op, ws))
		if err != nil {
			return err
		}
		if _, err := tx.AppendAudit(store.Audit{
			At: now, Principal: c.principal, Method: "operation." + c.verb, Workspace: ws.Name, Fields: string(fields),
		}); err != nil {
			return err
		}
		*out = ws
		return nil
	})
	return op, superseded, err
}

func auditFields(op store.Operation, ws store.Workspace) map[string]any {
	f := map[string]any{"operation": op.ID, "generation": op.Generation}
	switch op.Verb {
	case verbSnapshotCreate, verbSnapshotRestore, verbSnapshotRemove:
		f["snapshot"] = op.Argument
	case verbFork:
		f["origin_id"] = op.Argument
	case verbResize:
		f["before"], f["limits"] = op.Before, limitsOf(ws.Spec.GetResources())
	}
	if op.Verb == verbCreate || op.Verb == verbFork {
		f["provider"], f["image"], f["node_id"] = ws.Spec.GetProvider(), ws.Spec.GetImage(), ws.NodeID
	}
	return f
}

// supersede ends the pending operation of a workspace, if there is one.
func supersede(tx store.Tx, ws store.Workspace, now time.Time) (string, error) {
	prev, err := tx.Operation(ws.OperationID)
	if err != nil {
		return "", err
	}
	if prev.State != vendettav1.OperationState_OPERATION_STATE_PENDING {
		return "", nil
	}
	prev.State, prev.FinishedAt = vendettav1.OperationState_OPERATION_STATE_SUPERSEDED, now
	prev.Message = "a newer operation took its place"
	return prev.ID, tx.UpdateOperation(prev)
}

// dispatch sends an accepted operation on its way.
func (s *Server) dispatch(op store.Operation, superseded string) {
	l := s.linkTo(op.NodeID)
	if superseded != "" {
		s.waiters.wake(superseded)
		if l != nil {
			l.dispatcher.drop(superseded)
		}
	}
	if l != nil {
		// What a spare was taken for has been done already, and its node is yet to
		// hear of it.
		l.dispatcher.send(op.ID, op.State != vendettav1.OperationState_OPERATION_STATE_PENDING)
	}
}

// UpWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) UpWorkspace(ctx context.Context, req *vendettav1.UpWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return s.change(ctx, req.GetName(), change{
		verb: verbUp, desired: vendettav1.DesiredState_DESIRED_STATE_RUNNING,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING, key: req.GetIdempotencyKey(),
	}, s.mayStart)
}

// mayStart refuses to start a fork that failed: it would come up empty, under the
// name of a fork.
func (s *Server) mayStart(ctx context.Context, ws store.Workspace) error {
	if ws.State != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED {
		return nil
	}
	var op store.Operation
	var origin store.Workspace
	err := s.store.View(ctx, func(tx store.Tx) (err error) {
		if op, err = tx.Operation(ws.OperationID); err != nil || op.Verb != verbFork {
			return err
		}
		origin, err = tx.Workspace(op.Argument)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return s.storeError(ctx, "up workspace", err)
	}
	if op.Verb != verbFork || op.State != vendettav1.OperationState_OPERATION_STATE_FAILED {
		return nil
	}
	e := api.Errorf(api.FailedPrecondition, "up workspace %s: its fork failed, so there is nothing of it to start", ws.Name)
	if origin.Name == "" {
		return e.WithNext("vendetta workspace rm %s", ws.Name)
	}
	return e.WithNext("vendetta workspace rm %s, then vendetta workspace fork %s %s", ws.Name, origin.Name, ws.Name)
}

// mostGrace bounds how long the processes of a workspace may take to end.
const mostGrace = 3600

// StopWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) StopWorkspace(ctx context.Context, req *vendettav1.StopWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	if g := req.GetGraceSeconds(); g < 0 || g > mostGrace {
		return nil, api.Errorf(api.InvalidArgument, "stop workspace %q: a grace of %d seconds is none", clip(req.GetName()), g).
			WithNext("use 1 to %d seconds, or 0 for the default", mostGrace)
	}
	return s.change(ctx, req.GetName(), change{
		verb: verbStop, desired: vendettav1.DesiredState_DESIRED_STATE_STOPPED,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPING, key: req.GetIdempotencyKey(), grace: req.GetGraceSeconds(),
	}, func(_ context.Context, ws store.Workspace) error {
		if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_DOWN {
			return api.Errorf(api.FailedPrecondition, "stop workspace %s: it is down, there is nothing to stop", ws.Name).
				WithNext("vendetta workspace up %s", ws.Name)
		}
		return nil
	})
}

// DownWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) DownWorkspace(ctx context.Context, req *vendettav1.DownWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return s.change(ctx, req.GetName(), change{
		verb: verbDown, desired: vendettav1.DesiredState_DESIRED_STATE_DOWN,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPING, key: req.GetIdempotencyKey(),
	}, nil)
}

// RemoveWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) RemoveWorkspace(ctx context.Context, req *vendettav1.RemoveWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	c := change{
		verb: verbRemove, desired: vendettav1.DesiredState_DESIRED_STATE_REMOVED,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING, key: req.GetIdempotencyKey(),
	}
	if req.GetForce() {
		return s.change(ctx, req.GetName(), c, nil)
	}
	return s.change(ctx, req.GetName(), c, s.mayRemove)
}

// change accepts and dispatches a change of an existing workspace. check may
// refuse it; it looks before the transaction and may take its time. A change
// that is under way already is answered with its operation.
func (s *Server) change(ctx context.Context, name string, c change, check func(context.Context, store.Workspace) error) (*vendettav1.ChangeResponse, error) {
	if err := checkName("workspace", name); err != nil {
		return nil, err
	}
	if err := s.awaitRun(ctx); err != nil {
		return nil, err
	}
	c.principal = principalName(ctx)
	if resp, err := s.repeated(ctx, c.principal, c.key, c.verb, name, c.argument); resp != nil || err != nil {
		return resp, err
	}
	ws, node, op, err := s.workspace(ctx, name)
	if err != nil {
		return nil, err
	}
	removal := c.desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED
	if op.State == vendettav1.OperationState_OPERATION_STATE_PENDING {
		if c.under(op, ws) {
			return &vendettav1.ChangeResponse{Workspace: s.workspaceView(ws, node), Operation: operationView(op)}, nil
		}
		if !removal && (once(c.verb) || once(op.Verb)) && ws.Desired != vendettav1.DesiredState_DESIRED_STATE_REMOVED {
			if err := s.quiet(ctx, c.verb, ws, op); err != nil {
				return nil, err
			}
			if ws, node, _, err = s.workspace(ctx, name); err != nil {
				return nil, err
			}
		}
	}
	if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
		if !removal {
			return nil, beingRemoved(ws)
		}
		check = nil // the user has decided already
	}
	// A forced removal alone is accepted for a node that is lost: it waits there
	// until the node comes back, or until the node itself is removed.
	if !removal || check != nil {
		if err := s.reachable(ctx, ws.NodeID, node); err != nil {
			return nil, s.lostChange(c.verb, ws.Name, err)
		}
	}
	if check != nil {
		if err := check(ctx, ws); err != nil {
			return nil, err
		}
	}
	seen := ws.Generation
	op, superseded, err := s.accept(ctx, c, func(tx store.Tx) (store.Workspace, bool, error) {
		now, err := tx.Workspace(ws.ID)
		if errors.Is(err, store.ErrNotFound) {
			return now, false, noWorkspace(name)
		}
		if err == nil && now.Generation != seen {
			err = api.Errorf(api.Conflict, "%s workspace %s: another change was accepted in the meantime", c.verb, name).
				WithNext("vendetta workspace status %s, then repeat the command", name)
		}
		return now, false, err
	}, &ws)
	if errors.Is(err, store.ErrExists) { // the same key, a moment ago
		if resp, err := s.repeated(ctx, c.principal, c.key, c.verb, name, c.argument); resp != nil || err != nil {
			return resp, err
		}
	}
	if err != nil {
		return nil, s.storeError(ctx, c.verb+" workspace", err)
	}
	s.dispatch(op, superseded)
	return &vendettav1.ChangeResponse{Workspace: s.workspaceView(ws, node), Operation: operationView(op)}, nil
}

// lostChange says why a change was not accepted, and for a removal how to force it.
func (s *Server) lostChange(verb, name string, err error) error {
	e := api.From(err)
	e = &api.Error{Code: e.Code, Message: fmt.Sprintf("%s workspace %s: %s", verb, name, e.Message), Next: e.Next, Cause: err}
	if verb == verbRemove {
		e = e.WithNext("%s; or vendetta workspace rm %s --force", e.Next, name)
	}
	return e
}

// reachable waits until a node's link is up or known to be lost.
func (s *Server) reachable(ctx context.Context, nodeID, name string) error {
	l := s.linkTo(nodeID)
	if l == nil {
		return api.Errorf(api.Unavailable, "node %s: it is being removed", name).WithNext("vendetta node list")
	}
	ctx, cancel := context.WithTimeout(ctx, connectCeiling)
	defer cancel()
	return l.await(ctx)
}

// renewRemoval accepts a new removal in place of the failed one with this id.
func (s *Server) renewRemoval(ctx context.Context, workspaceID, failed string) error {
	c := change{
		verb: verbRemove, desired: vendettav1.DesiredState_DESIRED_STATE_REMOVED,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING, principal: serverPrincipal,
	}
	var ws store.Workspace
	op, superseded, err := s.accept(ctx, c, func(tx store.Tx) (store.Workspace, bool, error) {
		now, err := tx.Workspace(workspaceID)
		if errors.Is(err, store.ErrNotFound) || (err == nil && now.OperationID != failed) {
			err = errOvertaken
		}
		return now, false, err
	}, &ws)
	if errors.Is(err, errOvertaken) {
		return nil
	}
	if err != nil {
		return err
	}
	s.dispatch(op, superseded)
	return nil
}

// workspace reads a workspace with its node's name and its latest operation.
func (s *Server) workspace(ctx context.Context, name string) (ws store.Workspace, node string, op store.Operation, err error) {
	err = s.store.View(ctx, func(tx store.Tx) error {
		if ws, err = tx.WorkspaceByName(name); err != nil {
			return err
		}
		if ws.Spare {
			return store.ErrNotFound
		}
		if op, err = tx.Operation(ws.OperationID); err != nil {
			return err
		}
		node, err = nodeName(tx, ws.NodeID)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return ws, "", op, noWorkspace(name)
	}
	if err != nil {
		return ws, "", op, s.storeError(ctx, "read workspace", err)
	}
	return ws, node, op, nil
}

func nodeName(tx store.Tx, id string) (string, error) {
	n, err := tx.Node(id)
	return n.Name, err
}

// GetWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) GetWorkspace(ctx context.Context, req *vendettav1.GetWorkspaceRequest) (*vendettav1.Workspace, error) {
	ws, node, _, err := s.workspace(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return s.workspaceView(ws, node), nil
}

// ListWorkspaces implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) ListWorkspaces(ctx context.Context, req *vendettav1.ListWorkspacesRequest) (*vendettav1.ListWorkspacesResponse, error) {
	resp := &vendettav1.ListWorkspacesResponse{}
	err := s.store.View(ctx, func(tx store.Tx) error {
		resp.Workspaces = nil
		nodes, err := tx.Nodes()
		if err != nil {
			return err
		}
		names := map[string]string{}
		only := ""
		for _, n := range nodes {
			names[n.ID] = n.Name
			if n.Name == req.GetNode() {
				only = n.ID
			}
		}
		if req.GetNode() != "" && only == "" {
			return noNode(req.GetNode())
		}
		list, err := tx.Workspaces(only)
		for _, ws := range withoutSpares(list) {
			resp.Workspaces = append(resp.Workspaces, s.workspaceView(ws, names[ws.NodeID]))
		}
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, "list workspaces", err)
	}
	return resp, nil
}

// workspaceView is a workspace as callers see it: the store's record, and
// unknown while its node is lost.
func (s *Server) workspaceView(ws store.Workspace, node string) *vendettav1.Workspace {
	v := &vendettav1.Workspace{
		Id:         ws.ID,
		Name:       ws.Name,
		Node:       node,
		Spec:       ws.Spec,
		State:      ws.State,
		Desired:    ws.Desired,
		Generation: ws.Generation,
		Message:    ws.Message,
		Next:       ws.Next,
		CreatedAt:  timestamppb.New(ws.CreatedAt),
		UpdatedAt:  timestamppb.New(ws.UpdatedAt),
		Instance:   ws.Instance,
		Operation:  ws.OperationID,
	}
	if link := s.linkTo(ws.NodeID).view(); link.lost {
		v.State = vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN
		v.Message = "node " + node + " is lost: " + unprefixed(node, link.failure.Message)
		v.Next = link.failure.Next
	}
	return v
}

// recordObserved writes what a node reported of workspaces, where that is news.
func (s *Server) recordObserved(ctx context.Context, nodeID string, observed []*nodeagentv1.ObservedWorkspace) {
	if len(observed) == 0 {
		return
	}
	var news []string
	err := s.store.Update(ctx, func(tx store.Tx) error {
		news = nil
		for _, o := range observed {
			ws, err := tx.Workspace(o.GetWorkspaceId())
			if errors.Is(err, store.ErrNotFound) || (err == nil && ws.NodeID != nodeID) {
				continue // not ours any more, or from before a restore: left alone
			}
			if err != nil {
				return err
			}
			if applyObserved(&ws, o) {
				ws.UpdatedAt = s.now()
				if err := tx.UpdateWorkspace(ws); err != nil {
					return err
				}
				news = append(news, ws.ID)
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.log.ErrorContext(ctx, "record observed workspaces", "error", err)
	}
	for _, id := range news {
		s.waiters.wake(workspaceKey(id))
	}
}

// applyObserved takes an observation into ws and tells whether it changed
// anything. One of another generation says nothing about what is wanted now.
func applyObserved(ws *store.Workspace, o *nodeagentv1.ObservedWorkspace) bool {
	if o.GetGeneration() != ws.Generation || o.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_UNSPECIFIED {
		return false
	}
	before := *ws
	ws.State, ws.Instance = o.GetState(), o.GetInstance()
	ws.ErrorCode, ws.Message, ws.Next = o.GetErrorCode(), o.GetMessage(), o.GetNext()
	if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED && ws.State != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED {
		ws.State = vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING
	}
	return ws.State != before.State || ws.Instance != before.Instance ||
		ws.ErrorCode != before.ErrorCode || ws.Message != before.Message || ws.Next != before.Next
}

func principalName(ctx context.Context) string { return PrincipalFrom(ctx).Name }
