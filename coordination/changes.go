package coordination

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// oncePatience is how long a change waits for one that must not be taken the
// place of.
const oncePatience = 10 * time.Second

// once tells whether a verb stands for something that is done one time, beside
// what is desired. Only a removal takes the place of such an operation, and it
// takes the place of none.
func once(verb string) bool {
	switch verb {
	case verbSnapshotCreate, verbSnapshotRestore, verbSnapshotRemove, verbResize, verbFork:
		return true
	default:
		return false
	}
}

// besides tells whether a verb's failure leaves the workspace as it was.
func besides(verb string) bool { return verb == verbPause || once(verb) && verb != verbFork }

// inPlace tells whether a verb leaves the instance in the state that it is in,
// whichever that is.
func inPlace(verb string) bool {
	return verb == verbSnapshotCreate || verb == verbSnapshotRemove || verb == verbResize
}

// revert puts back what a failed operation had changed of what is wanted.
func revert(ws *store.Workspace, op store.Operation) {
	switch op.Verb {
	case verbPause:
		ws.Desired = vendettav1.DesiredState_DESIRED_STATE_RUNNING
	case verbResize:
		ws.Spec = proto.CloneOf(ws.Spec)
		ws.Spec.Resources = resourcesFrom(op.Before)
	}
}

func limitsOf(r *vendettav1.Resources) store.Limits {
	return store.Limits{CPUs: r.GetCpus(), MemoryBytes: r.GetMemoryBytes(), PIDs: r.GetPids(), DiskBytes: r.GetDiskBytes()}
}

func resourcesFrom(l store.Limits) *vendettav1.Resources {
	if l == (store.Limits{}) {
		return nil
	}
	return &vendettav1.Resources{Cpus: l.CPUs, MemoryBytes: l.MemoryBytes, Pids: l.PIDs, DiskBytes: l.DiskBytes}
}

// quiet waits, within oncePatience, until no operation is under way on a
// workspace that a new one must not meet.
func (s *Server) quiet(ctx context.Context, verb string, ws store.Workspace, op store.Operation) error {
	after, err := s.waitOperation(ctx, op.ID, oncePatience)
	if err != nil {
		return err
	}
	if after.State == vendettav1.OperationState_OPERATION_STATE_PENDING {
		return api.Errorf(api.Conflict, "%s workspace %s: its %s is under way", verb, ws.Name, op.Verb).
			WithNext("vendetta workspace status %s, and repeat the command when that has ended", ws.Name)
	}
	return nil
}

// PauseWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) PauseWorkspace(ctx context.Context, req *vendettav1.PauseWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return s.change(ctx, req.GetName(), change{
		verb: verbPause, desired: vendettav1.DesiredState_DESIRED_STATE_PAUSED, key: req.GetIdempotencyKey(),
	}, func(_ context.Context, ws store.Workspace) error {
		switch ws.Desired {
		case vendettav1.DesiredState_DESIRED_STATE_RUNNING, vendettav1.DesiredState_DESIRED_STATE_PAUSED:
			return s.ready(ws, capabilityPause, "pause")
		default:
			return api.Errorf(api.FailedPrecondition, "pause workspace %s: it is %s", ws.Name, stateWord(ws.State)).
				WithNext("vendetta workspace up %s", ws.Name)
		}
	})
}

// ResumeWorkspace implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) ResumeWorkspace(ctx context.Context, req *vendettav1.ResumeWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return s.change(ctx, req.GetName(), change{
		verb: verbResume, desired: vendettav1.DesiredState_DESIRED_STATE_RUNNING,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING, key: req.GetIdempotencyKey(),
	}, func(_ context.Context, ws store.Workspace) error {
		if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_PAUSED || ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED {
			return nil
		}
		e := api.Errorf(api.FailedPrecondition, "resume workspace %s: it is %s, not paused", ws.Name, stateWord(ws.State))
		if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_RUNNING {
			return e.WithNext("vendetta workspace status %s", ws.Name)
		}
		return e.WithNext("vendetta workspace up %s", ws.Name)
	})
}

// ResizeWorkspace implements vendettav1connect.WorkspaceServiceHandler. The new
// limits are stored with the operation, and go again when it fails.
func (s *Server) ResizeWorkspace(ctx context.Context, req *vendettav1.ResizeWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	want := req.GetResources()
	if err := checkResources(want); err != nil {
		return nil, err
	}
	if limitsOf(want) == (store.Limits{}) {
		return nil, api.Errorf(api.InvalidArgument, "resize workspace %q: no limit is named", clip(req.GetName())).
			WithNext("name one of --cpus, --memory, --disk and --pids")
	}
	return s.change(ctx, req.GetName(), change{
		verb: verbResize, stays: true, key: req.GetIdempotencyKey(),
		edit: func(ws *store.Workspace, op *store.Operation) {
			op.Before = limitsOf(ws.Spec.GetResources())
			spec := &vendettav1.WorkspaceSpec{}
			if ws.Spec != nil {
				spec = proto.CloneOf(ws.Spec)
			}
			spec.Resources = resized(spec.GetResources(), want)
			ws.Spec = spec
		},
	}, func(_ context.Context, ws store.Workspace) error {
		if have := ws.Spec.GetResources().GetDiskBytes(); want.GetDiskBytes() > 0 && want.GetDiskBytes() < have {
			return api.Errorf(api.InvalidArgument, "resize workspace %s: its disk limit is %d bytes, and a disk only grows", ws.Name, have).
				WithNext("use more than that, or leave the disk out")
		}
		if want.GetDiskBytes() > 0 {
			if err := s.able(ws, capabilityLimitDisk, "limit the disk of"); err != nil {
				return err
			}
		}
		if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_DOWN {
			return nil // the next instance is made with them
		}
		return s.ready(ws, capabilityResize, "resize")
	})
}

// resized is have with what want names.
func resized(have, want *vendettav1.Resources) *vendettav1.Resources {
	r := limitsOf(have)
	if want.GetCpus() > 0 {
		r.CPUs = want.GetCpus()
	}
	if want.GetMemoryBytes() > 0 {
		r.MemoryBytes = want.GetMemoryBytes()
	}
	if want.GetPids() > 0 {
		r.PIDs = want.GetPids()
	}
	if want.GetDiskBytes() > 0 {
		r.DiskBytes = want.GetDiskBytes()
	}
	return resourcesFrom(r)
}

// ForkWorkspace implements vendettav1connect.WorkspaceServiceHandler. The fork
// is a workspace of its own from the beginning: it has the origin's spec, and a
// fork that fails is a workspace that failed to be made.
func (s *Server) ForkWorkspace(ctx context.Context, req *vendettav1.ForkWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	for _, name := range []string{req.GetName(), req.GetFork()} {
		if err := checkName("workspace", name); err != nil {
			return nil, err
		}
	}
	who := principalName(ctx)
	if err := s.awaitRun(ctx); err != nil {
		return nil, err
	}
	if resp, err := s.repeated(ctx, who, req.GetIdempotencyKey(), verbFork, req.GetFork(), ""); resp != nil || err != nil {
		return resp, err
	}
	origin, node, err := s.origin(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	id, err := s.newID(workspaceIDLength)
	if err != nil {
		return nil, api.From(err)
	}
	now := s.now()
	ws := store.Workspace{
		ID: id, Name: req.GetFork(), NodeID: origin.NodeID, Spec: origin.Spec,
		State: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING, CreatedAt: now, UpdatedAt: now,
	}
	c := change{
		verb: verbFork, desired: vendettav1.DesiredState_DESIRED_STATE_RUNNING, argument: origin.ID, principal: who, key: req.GetIdempotencyKey(),
	}
	op, superseded, err := s.accept(ctx, c, func(tx store.Tx) (store.Workspace, bool, error) {
		n, err := tx.Node(origin.NodeID)
		if err == nil && n.Draining {
			return ws, false, drainingNode(n.Name)
		}
		from, ferr := tx.Workspace(origin.ID)
		switch {
		case err != nil:
			return ws, false, err
		case errors.Is(ferr, store.ErrNotFound):
			return ws, false, noWorkspace(req.GetName())
		case ferr == nil && from.Generation != origin.Generation:
			return ws, false, api.Errorf(api.Conflict, "fork workspace %s: another change of it was accepted in the meantime", from.Name).
				WithNext("vendetta workspace status %s, then repeat the command", from.Name)
		}
		return ws, true, ferr
	}, &ws)
	if errors.Is(err, store.ErrExists) {
		if resp, err := s.repeated(ctx, who, req.GetIdempotencyKey(), verbFork, req.GetFork(), ""); resp != nil || err != nil {
			return resp, err
		}
		return nil, api.Errorf(api.AlreadyExists, "fork workspace %s: workspace %s exists", req.GetName(), req.GetFork()).
			WithNext("use another name")
	}
	if err != nil {
		return nil, s.storeError(ctx, "fork workspace", err)
	}
	s.dispatch(op, superseded)
	return &vendettav1.ChangeResponse{Workspace: s.workspaceView(ws, node), Operation: operationView(op)}, nil
}

// origin finds the workspace that a fork is made from, with nothing under way on it.
func (s *Server) origin(ctx context.Context, name string) (store.Workspace, string, error) {
	ws, node, op, err := s.workspace(ctx, name)
	if err == nil && op.State == vendettav1.OperationState_OPERATION_STATE_PENDING {
		if err := s.quiet(ctx, verbFork, ws, op); err != nil {
			return ws, "", err
		}
		ws, node, _, err = s.workspace(ctx, name)
	}
	switch {
	case err != nil:
		return ws, "", err
	case ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED:
		return ws, "", beingRemoved(ws)
	}
	if err := s.reachable(ctx, ws.NodeID, node); err != nil {
		return ws, "", s.lostChange(verbFork, ws.Name, err)
	}
	return ws, node, s.ready(ws, capabilityFork, "fork")
}
