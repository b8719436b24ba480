package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

// converge takes the steps from what Inspect finds to what the request wants.
// fresh says that the workspace never ran, so that a failure may take its volume
// away again. It may be repeated at any time.
func (k *keeper) converge(ctx context.Context, r *nodeagentv1.ApplyRequest, fresh bool) error {
	if r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
		return k.remove(ctx, r)
	}
	p, err := k.server.provider(r.GetSpec().GetProvider())
	if err != nil {
		return err
	}
	switch r.GetDesired() {
	case vendettav1.DesiredState_DESIRED_STATE_RUNNING:
		return k.run(ctx, p, r, fresh)
	case vendettav1.DesiredState_DESIRED_STATE_PAUSED:
		return k.pause(ctx, p, r, fresh)
	case vendettav1.DesiredState_DESIRED_STATE_STOPPED:
		return k.stop(ctx, p, r)
	default:
		return k.down(ctx, p)
	}
}

func (k *keeper) inspect(ctx context.Context, p providers.Provider) (providers.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectCeiling)
	defer cancel()
	return p.Inspect(ctx, k.id)
}

// step runs one of the provider's actions in its lane, within ceiling.
func (k *keeper) step(ctx context.Context, p providers.Provider, ceiling time.Duration, fn func(context.Context) error) error {
	return k.server.agent.do(ctx, p.Name(), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, ceiling)
		defer cancel()
		return fn(ctx)
	})
}

// run makes the instance when there is none, starts it, and waits until its
// guest answers.
func (k *keeper) run(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, fresh bool) error {
	inst, err := k.inspect(ctx, p)
	if err == nil && inst.State == providers.StateBroken {
		k.server.log.Info("broken instance is made anew", "workspace", k.id, "how", inst.Message)
		if err := k.destroy(ctx, p, false); err != nil {
			return err
		}
		err = providers.ErrNotFound
	}
	create := errors.Is(err, providers.ErrNotFound)
	if err != nil && !create {
		return err
	}
	if !create && inst.State == providers.StateRunning && k.answers() {
		k.seeInstance(inst) // a spare that was taken, say: there is nothing to do
		return nil
	}
	err = nil
	if create {
		inst, err = k.create(ctx, p, r)
	}
	if err == nil && inst.State != providers.StateRunning {
		err = k.start(ctx, p, inst)
	}
	if err == nil {
		err = k.meet(ctx, p, r, inst.Boot)
	}
	if err == nil {
		return nil
	}
	// One that was interrupted is gone on with, by the newer operation or by the
	// restarted agent.
	if (create || fresh) && ctx.Err() == nil {
		k.undo(ctx, p, fresh)
	}
	return err
}

func (k *keeper) create(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest) (inst providers.Instance, err error) {
	spec, err := specOf(r)
	if err != nil {
		return inst, err
	}
	err = k.step(ctx, p, createCeiling, func(ctx context.Context) error {
		inst, err = p.Create(ctx, spec)
		return err
	})
	return inst, err
}

// start starts an instance, or lets a paused one go on.
func (k *keeper) start(ctx context.Context, p providers.Provider, inst providers.Instance) error {
	if pauser, ok := p.(providers.Pauser); ok && inst.State == providers.StatePaused {
		return k.step(ctx, p, pauseCeiling, func(ctx context.Context) error { return pauser.Resume(ctx, k.id) })
	}
	return k.step(ctx, p, startCeiling, func(ctx context.Context) error { return p.Start(ctx, k.id) })
}

// meet waits for the guest: an instance whose guest does not answer is of no
// use to anyone and is not reported as running. One that boots a system first
// gets the time that this takes.
func (k *keeper) meet(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, boot time.Duration) error {
	l := k.keepLink(p)
	patience := max(k.timing.guestAnswer, boot)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errSilent)
	defer cancel()
	for {
		look, done := context.WithTimeout(ctx, k.timing.look)
		_, err := l.await(look)
		done()
		inst, ierr := k.inspect(ctx, p)
		switch {
		case err == nil && ierr == nil && inst.State == providers.StateRunning:
			k.seeInstance(inst)
			return nil
		case api.CodeOf(err) == api.FailedPrecondition:
			// It answered, and no waiting makes it speak our protocol.
			return err
		case ctx.Err() != nil && errors.Is(context.Cause(ctx), errSilent):
			return k.silent(ctx, p, r, patience, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case ierr != nil:
			return ierr
		case inst.State != providers.StateRunning:
			l.stop()
			return k.ended(ctx, p, r, inst)
		}
	}
}

var errSilent = errors.New("the guest did not answer")

func (k *keeper) silent(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, patience time.Duration, err error) error {
	return &api.Error{
		Code: api.DeadlineExceeded,
		Message: fmt.Sprintf("start workspace %s: its guest (%s) did not answer within %v%s",
			r.GetWorkspaceName(), providers.GuestProgram, patience, k.lastWords(ctx, p)),
		Next:  "vendetta node logs shows what the node agent saw; check that the image is one for this machine's architecture",
		Cause: err,
	}
}

func (k *keeper) ended(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest, inst providers.Instance) error {
	how := inst.Message
	if how == "" {
		how = "it gave no reason"
	}
	return &api.Error{
		Code:    api.FailedPrecondition,
		Message: fmt.Sprintf("start workspace %s: its guest (%s) ended at once: %s%s", r.GetWorkspaceName(), providers.GuestProgram, how, k.lastWords(ctx, p)),
		Next:    "check that the image is one for this machine's architecture",
	}
}

// undo takes away what a failed create left. The volume goes with it only when
// the workspace never ran: else it holds a user's files.
func (k *keeper) undo(ctx context.Context, p providers.Provider, removeVolume bool) {
	ctx = context.WithoutCancel(ctx)
	k.dropLink()
	if err := k.destroy(ctx, p, removeVolume); err != nil {
		k.server.log.Error("what a failed create left was not removed", "workspace", k.id, "error", err)
	}
}

func (k *keeper) destroy(ctx context.Context, p providers.Provider, removeVolume bool) error {
	err := k.step(ctx, p, destroyCeiling, func(ctx context.Context) error { return p.Destroy(ctx, k.id, removeVolume) })
	if err == nil {
		k.see(func(o *nodeagentv1.ObservedWorkspace) { o.Instance = "" })
	}
	return err
}

func (k *keeper) stop(ctx context.Context, p providers.Provider, r *nodeagentv1.ApplyRequest) error {
	grace := graceOf(r)
	err := k.step(ctx, p, grace+stopCeiling, func(ctx context.Context) error { return p.Stop(ctx, k.id, grace) })
	if errors.Is(err, providers.ErrNotFound) {
		k.dropLink()
		k.seeDown()
		return nil
	}
	if err != nil {
		return err
	}
	k.dropLink()
	inst, err := k.inspect(ctx, p)
	if err != nil {
		return err
	}
	if inst.State != providers.StateStopped {
		return api.Errorf(api.Internal, "stop workspace %s: its instance is %s after it was stopped", r.GetWorkspaceName(), inst.State).
			WithNext("vendetta workspace down %s removes the instance and keeps the files", r.GetWorkspaceName())
	}
	k.seeInstance(inst)
	return nil
}

func (k *keeper) seeDown() {
	k.see(func(o *nodeagentv1.ObservedWorkspace) {
		o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN
		o.Instance = ""
		o.ErrorCode, o.Message, o.Next = "", "", ""
	})
}

func (k *keeper) down(ctx context.Context, p providers.Provider) error {
	k.dropLink()
	if err := k.destroy(ctx, p, false); err != nil {
		return err
	}
	k.seeDown()
	return nil
}

// remove destroys the instance and its volume. A request that names no provider
// is about a workspace that this agent does not know; whatever a provider still
// holds under its id goes.
func (k *keeper) remove(ctx context.Context, r *nodeagentv1.ApplyRequest) error {
	k.dropLink()
	for _, p := range k.server.providers {
		if name := r.GetSpec().GetProvider(); name != "" && name != p.Name() {
			continue
		}
		err := k.destroy(ctx, p, true)
		if errors.Is(err, providers.ErrUnusable) && r.GetSpec().GetProvider() == "" {
			continue
		}
		if err != nil {
			return err
		}
	}
	k.seeDown()
	return nil
}
