package nodeagent

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

// Ceilings of what providers do beyond the contract. A snapshot, a restore and a
// fork may copy the whole of a workspace.
const (
	snapshotCeiling = 15 * time.Minute
	resizeCeiling   = 2 * time.Minute
	pauseCeiling    = time.Minute
	askCeiling      = 15 * time.Second
)

// harmless is a failure that leaves the workspace as it is: the operation fails,
// the workspace does not.
type harmless struct{ error }

func (h harmless) Unwrap() error { return h.error }

// bare is a request without its action, which is done once. What the workspace
// is brought back to later has none.
func bare(r *nodeagentv1.ApplyRequest) *nodeagentv1.ApplyRequest {
	r = proto.CloneOf(r)
	r.Action = nil
	return r
}

// besides reports whether a request is about something else than the desired
// state, which it then repeats, or about a pause. Where such a one fails what was
// wanted before counts again.
func besides(r *nodeagentv1.ApplyRequest) bool {
	switch r.GetAction().(type) {
	case nil:
		return r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_PAUSED
	case *nodeagentv1.ApplyRequest_ForkOf:
		return false
	default:
		return true
	}
}

// inPlace reports whether a request leaves the instance in the state that it is
// in, its link included.
func inPlace(r *nodeagentv1.ApplyRequest) bool {
	switch r.GetAction().(type) {
	case *nodeagentv1.ApplyRequest_CreateSnapshot, *nodeagentv1.ApplyRequest_RemoveSnapshot, *nodeagentv1.ApplyRequest_Resize:
		return true
	default:
		return false
	}
}

// carryOut does what a request wants: its action, once, and then what leads to
// the desired state. note is what a person should know of the success.
func (k *keeper) carryOut(ctx context.Context, op *operation, fresh bool) (note string, err error) {
	r := op.request
	if r.GetAction() == nil {
		return "", k.converge(ctx, r, fresh)
	}
	p, err := k.server.provider(r.GetSpec().GetProvider())
	if err != nil {
		return "", err
	}
	if note, err = k.act(ctx, p, r, fresh); err != nil {
		return "", err
	}
	if err := k.acted(op); err != nil {
		return "", err
	}
	if inPlace(r) {
		// It is done, whatever the instance does now: the keeper looks after that.
		if err := k.look(ctx, p); err != nil && ctx.Err() == nil {
			k.server.log.Warn("workspace cannot be looked at", "workspace", k.id, "error", err)
		}
		return note, ctx.Err()
	}
	return note, k.converge(ctx, bare(r), fresh)
}

// act does a request's action. It may be repeated, by an agent that was
// restarted before it had written down that it is done.
func (k *keeper) act(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, fresh bool) (note string, err error) {
	switch action := r.GetAction().(type) {
	case *nodeagentv1.ApplyRequest_CreateSnapshot:
		err = k.withSnapshots(ctx, p, r, "take a snapshot of", func(ctx context.Context, s providers.Snapshotter) error {
			_, err := s.Snapshot(ctx, k.id, action.CreateSnapshot)
			return err
		})
	case *nodeagentv1.ApplyRequest_RemoveSnapshot:
		err = k.withSnapshots(ctx, p, r, "remove a snapshot of", func(ctx context.Context, s providers.Snapshotter) error {
			return s.RemoveSnapshot(ctx, k.id, action.RemoveSnapshot)
		})
	case *nodeagentv1.ApplyRequest_RestoreSnapshot:
		err = k.withSnapshots(ctx, p, r, "restore a snapshot of", func(ctx context.Context, s providers.Snapshotter) error {
			k.dropLink()
			return s.Restore(ctx, k.id, action.RestoreSnapshot)
		})
	case *nodeagentv1.ApplyRequest_Resize:
		note, err = k.resize(ctx, p, r)
	case *nodeagentv1.ApplyRequest_ForkOf:
		return "", k.fork(ctx, p, r, action.ForkOf, fresh)
	}
	if err != nil {
		err = harmless{err}
	}
	return note, err
}

func (k *keeper) withSnapshots(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, what string, fn func(context.Context, providers.Snapshotter) error) error {
	s, ok := p.(providers.Snapshotter)
	if !ok {
		return unsupported(what, r.GetWorkspaceName(), p)
	}
	return k.step(ctx, p, snapshotCeiling, func(ctx context.Context) error { return fn(ctx, s) })
}

// resize makes the request's limits those of the instance. Without an instance
// there is nothing to do: the next one is made with them.
func (k *keeper) resize(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest) (note string, err error) {
	_, err = k.inspect(ctx, p)
	if errors.Is(err, providers.ErrNotFound) {
		return "the workspace is down; the limits are in effect when it is up again", nil
	}
	if err != nil {
		return "", err
	}
	resizer, ok := p.(providers.Resizer)
	if !ok {
		return "", unsupported("resize", r.GetWorkspaceName(), p)
	}
	err = k.step(ctx, p, resizeCeiling, func(ctx context.Context) error {
		note, err = resizer.Resize(ctx, k.id, resourcesOf(r.GetSpec().GetResources()))
		return err
	})
	return note, err
}

// fork makes the instance from another workspace's, whose keeper rests
// meanwhile. It waits for that one's turn while it has its own; two that wait
// for each other cannot be, since what is being forked itself is refused.
func (k *keeper) fork(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, origin string, fresh bool) error {
	forker, ok := p.(providers.Forker)
	if !ok {
		return unsupported("fork into", r.GetWorkspaceName(), p)
	}
	inst, err := k.inspect(ctx, p)
	switch {
	case err == nil && inst.State == providers.StateBroken:
		// Half of it is there, from an attempt that was cut short.
		if err := k.destroy(ctx, p, fresh); err != nil {
			return err
		}
	case err == nil:
		return nil
	case !errors.Is(err, providers.ErrNotFound):
		return err
	}
	spec, err := specOf(r)
	if err != nil {
		return err
	}
	from, err := k.server.origin(origin, r)
	if err != nil {
		return err
	}
	release, err := from.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	err = k.step(ctx, p, snapshotCeiling, func(ctx context.Context) error {
		_, err := forker.Fork(ctx, origin, spec)
		return err
	})
	if err != nil && ctx.Err() == nil {
		k.undo(ctx, p, fresh)
	}
	return err
}

// origin finds the workspace that another one is to be made from.
func (s *server) origin(id string, r *nodeagentv1.ApplyRequest) (*workspace, error) {
	s.mu.Lock()
	w := s.workspaces[id]
	s.mu.Unlock()
	if w == nil || !w.present() {
		return nil, api.Errorf(api.NotFound, "fork into workspace %s: its origin is not on this node", r.GetWorkspaceName()).
			WithNext("vendetta workspace list")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	from := w.record.request
	switch {
	case from.GetSpec().GetProvider() != r.GetSpec().GetProvider():
		return nil, api.Errorf(api.FailedPrecondition, "fork workspace %s into %s: it was made by provider %s, not %s", from.GetWorkspaceName(),
			r.GetWorkspaceName(), from.GetSpec().GetProvider(), r.GetSpec().GetProvider())
	case w.record.pending && from.GetForkOf() != "":
		return nil, api.Errorf(api.FailedPrecondition, "fork workspace %s into %s: it is being made itself", from.GetWorkspaceName(), r.GetWorkspaceName()).
			WithNext("repeat it when vendetta workspace status %s says running", from.GetWorkspaceName())
	}
	return w, nil
}

// acted writes down that an operation's action is done, so that an agent that is
// restarted does not do it again. Only for a restore that matters: what was done
// in the workspace since would be lost, so it does not run before.
func (k *keeper) acted(op *operation) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.op != op {
		return nil
	}
	next := k.record
	next.request = bare(op.request)
	err := k.server.agent.journal.write(k.server.id, next)
	if err != nil {
		k.server.log.Error("what was done was not written down", "workspace", k.id, "operation", op.request.GetOperationId(), "error", err)
		if op.request.GetRestoreSnapshot() != "" {
			return failure("write down the restore of", op.request.GetWorkspaceName(), err)
		}
	}
	k.record = next
	return nil
}

// look reports the instance as it is.
func (k *keeper) look(ctx context.Context, p providers.Provider) error {
	inst, err := k.inspect(ctx, p)
	switch {
	case errors.Is(err, providers.ErrNotFound):
		k.seeDown()
	case err != nil:
		return err
	case inst.State == providers.StateBroken:
		return api.Errorf(api.Internal, "look at workspace: its instance is broken: %s", inst.Message)
	default:
		if inst.State == providers.StateRunning {
			k.keepLink(p)
		}
		k.seeInstance(inst)
	}
	return nil
}

// stay makes the workspace what it was before an operation that failed, as far
// as that can be seen, and returns what to say of the failure. A workspace that
// had failed before stays failed, and one that cannot be looked at or came out
// broken fails.
func (k *keeper) stay(ctx context.Context, op *operation, cause error) *api.Error {
	e := failure("apply to", op.request.GetWorkspaceName(), cause)
	k.mu.Lock()
	before := k.record
	k.mu.Unlock()
	if o := before.observed; o.GetErrorCode() != "" && o.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED {
		k.see(func(now *nodeagentv1.ObservedWorkspace) {
			now.State, now.ErrorCode, now.Message, now.Next = o.GetState(), o.GetErrorCode(), o.GetMessage(), o.GetNext()
		})
		return e
	}
	p, err := k.server.provider(op.request.GetSpec().GetProvider())
	if err == nil {
		err = k.look(ctx, p)
	}
	if err != nil {
		k.server.log.Warn("workspace cannot be looked at after a failed operation", "workspace", k.id, "error", err)
		if name := op.request.GetRestoreSnapshot(); name != "" {
			e = e.WithNext("repeat it: vendetta workspace snapshot restore %s %s", op.request.GetWorkspaceName(), name)
		}
		k.seeFailure(e)
	}
	return e
}

// pause halts the instance. One that is not running, since the machine was
// started anew, say, is started first: its memory is lost, and what is wanted is
// a workspace that goes on when it is resumed.
func (k *keeper) pause(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, fresh bool) error {
	inst, err := k.inspect(ctx, p)
	if err == nil && inst.State == providers.StatePaused {
		k.seeInstance(inst)
		return nil
	}
	pauser, ok := p.(providers.Pauser)
	if !ok {
		return harmless{unsupported("pause", r.GetWorkspaceName(), p)}
	}
	if err := k.run(ctx, p, r, fresh); err != nil {
		return err
	}
	err = k.step(ctx, p, pauseCeiling, func(ctx context.Context) error { return pauser.Pause(ctx, k.id) })
	if err != nil {
		return harmless{err}
	}
	inst, err = k.inspect(ctx, p)
	if err != nil {
		return harmless{err}
	}
	if inst.State != providers.StatePaused {
		return harmless{api.Errorf(api.Internal, "pause workspace %s: its instance is %s after it was paused", r.GetWorkspaceName(), inst.State)}
	}
	k.seeInstance(inst)
	return nil
}

// unsupported says that a provider lacks one of the optional interfaces.
func unsupported(what, name string, p providers.Provider) *api.Error {
	return api.Errorf(api.Unimplemented, "%s workspace %s: %s cannot do that here", what, name, p.Name()).
		WithNext("vendetta node status shows what each provider can do")
}

// turnCeiling is how long a question waits while its workspace is worked on.
const turnCeiling = 15 * time.Second

// ask runs fn, which wants something of the workspace's provider, between the
// keeper's turns: calls for one workspace are not made at the same time.
func (w *workspace) ask(ctx context.Context, what string, fn func(context.Context, providers.Provider) error) error {
	w.mu.Lock()
	r := w.record.request
	w.mu.Unlock()
	name := r.GetWorkspaceName()
	p, err := w.server.provider(r.GetSpec().GetProvider())
	if err != nil {
		return err
	}
	turn, cancel := context.WithTimeout(ctx, turnCeiling)
	defer cancel()
	release, err := w.take(turn)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return api.Errorf(api.Unavailable, "%s workspace %s: it is being worked on", what, name).
			WithNext("vendetta workspace status %s, then repeat the command", name)
	}
	defer release()
	ctx, cancelCall := context.WithTimeout(ctx, askCeiling)
	defer cancelCall()
	if err := fn(ctx, p); err != nil {
		return failure(what, name, err)
	}
	return nil
}

// snapshots lists those of the workspace, the oldest first.
func (w *workspace) snapshots(ctx context.Context) (*nodeagentv1.ListSnapshotsResponse, error) {
	out := &nodeagentv1.ListSnapshotsResponse{}
	err := w.ask(ctx, "list the snapshots of", func(ctx context.Context, p providers.Provider) error {
		s, ok := p.(providers.Snapshotter)
		if !ok {
			return unsupported("list the snapshots of", w.name(), p)
		}
		list, err := s.Snapshots(ctx, w.id)
		for _, one := range list {
			out.Snapshots = append(out.Snapshots, &vendettav1.Snapshot{
				Name: one.Name, CreatedAt: timestamppb.New(one.CreatedAt), Bytes: one.Bytes, Memory: one.Memory,
			})
		}
		return err
	})
	return out, err
}

// usage says what the workspace's instance uses now.
func (w *workspace) usage(ctx context.Context) (*nodeagentv1.UsageResponse, error) {
	var out *nodeagentv1.UsageResponse
	err := w.ask(ctx, "measure", func(ctx context.Context, p providers.Provider) error {
		u, err := p.Usage(ctx, w.id)
		if errors.Is(err, providers.ErrNotFound) {
			return api.Errorf(api.FailedPrecondition, "measure workspace %s: it is not running", w.name()).
				WithNext("vendetta workspace up %s", w.name())
		}
		if err != nil {
			return err
		}
		out = &nodeagentv1.UsageResponse{CpuSeconds: u.CPU.Seconds(), MemoryBytes: uint64(max(u.MemoryBytes, 0)), DiskBytes: u.DiskBytes}
		return nil
	})
	return out, err
}

// known finds a workspace for a question about it.
func (s *server) known(id string) (*workspace, error) {
	s.mu.Lock()
	w := s.workspaces[id]
	s.mu.Unlock()
	if w == nil || !w.present() {
		return nil, api.Errorf(api.NotFound, "look at workspace %q: this node has none with that id", id)
	}
	return w, nil
}
