package coordination

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	paused = vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED
	failed = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
	downed = vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN
)

// done waits for a change that has to be accepted and to succeed.
func (w *world) done(ctx context.Context, resp *vendettav1.ChangeResponse, err error) *vendettav1.Operation {
	w.t.Helper()
	op := w.outcome(ctx, resp, err)
	if op.GetState() != succeeded {
		w.t.Fatalf("%s: %v", op.GetVerb(), op)
	}
	return op
}

// outcome waits for a change that has to be accepted.
func (w *world) outcome(ctx context.Context, resp *vendettav1.ChangeResponse, err error) *vendettav1.Operation {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	return w.wait(ctx, resp.GetOperation().GetId())
}

func (w *world) snapshot(ctx context.Context, ws, name string) (*vendettav1.ChangeResponse, error) {
	return w.server.CreateSnapshot(ctx, &vendettav1.CreateSnapshotRequest{Workspace: ws, Snapshot: name})
}

func (w *world) restore(ctx context.Context, ws, name string) (*vendettav1.ChangeResponse, error) {
	return w.server.RestoreSnapshot(ctx, &vendettav1.RestoreSnapshotRequest{Workspace: ws, Snapshot: name})
}

func (w *world) pause(ctx context.Context, ws string) (*vendettav1.ChangeResponse, error) {
	return w.server.PauseWorkspace(ctx, &vendettav1.PauseWorkspaceRequest{Name: ws})
}

func (w *world) resume(ctx context.Context, ws string) (*vendettav1.ChangeResponse, error) {
	return w.server.ResumeWorkspace(ctx, &vendettav1.ResumeWorkspaceRequest{Name: ws})
}

func (w *world) resize(ctx context.Context, ws string, r *vendettav1.Resources) (*vendettav1.ChangeResponse, error) {
	return w.server.ResizeWorkspace(ctx, &vendettav1.ResizeWorkspaceRequest{Name: ws, Resources: r})
}

func (w *world) fork(ctx context.Context, ws, fork, key string) (*vendettav1.ChangeResponse, error) {
	return w.server.ForkWorkspace(ctx, &vendettav1.ForkWorkspaceRequest{Name: ws, Fork: fork, IdempotencyKey: key})
}

func (w *world) up(ctx context.Context, ws string) (*vendettav1.ChangeResponse, error) {
	return w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: ws})
}

func (w *world) lower(ctx context.Context, ws string) (*vendettav1.ChangeResponse, error) {
	return w.server.DownWorkspace(ctx, &vendettav1.DownWorkspaceRequest{Name: ws})
}

func (w *world) halted(ctx context.Context, ws string) (*vendettav1.ChangeResponse, error) {
	return w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: ws})
}

// state asserts what a workspace is shown as.
func (w *world) state(ctx context.Context, name string, want vendettav1.WorkspaceState) {
	w.t.Helper()
	if ws := w.get(ctx, name); ws.GetState() != want {
		w.t.Errorf("%s is %s, want %s: %s", name, ws.GetState(), want, ws.GetMessage())
	}
}

func TestSnapshots(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		_, err := w.snapshot(ctx, "x", "clean")
		wantError(t, err, api.NotFound, "x")
		w.create(ctx, "x", nil)
		for _, name := range []string{"", "A", "../x", "-a"} {
			_, err := w.snapshot(ctx, "x", name)
			wantError(t, err, api.InvalidArgument, "snapshot name")
			_, err = w.restore(ctx, "x", name)
			wantError(t, err, api.InvalidArgument, "snapshot name")
			_, err = w.server.RemoveSnapshot(ctx, &vendettav1.RemoveSnapshotRequest{Workspace: "x", Snapshot: name})
			wantError(t, err, api.InvalidArgument, "snapshot name")
		}
		_, err = w.restore(ctx, "x", "clean")
		wantError(t, err, api.NotFound, "none named clean, and no other")

		first, err := w.server.CreateSnapshot(ctx, &vendettav1.CreateSnapshotRequest{Workspace: "x", Snapshot: "clean", IdempotencyKey: "k"})
		if op := w.done(ctx, first, err); op.GetVerb() != "snapshot-create" || op.GetGeneration() != 2 {
			t.Errorf("%v", op)
		}
		again, err := w.server.CreateSnapshot(ctx, &vendettav1.CreateSnapshotRequest{Workspace: "x", Snapshot: "clean", IdempotencyKey: "k"})
		if err != nil || again.GetOperation().GetId() != first.GetOperation().GetId() {
			t.Errorf("the same key: %v, %v", again, err)
		}
		_, err = w.server.CreateSnapshot(ctx, &vendettav1.CreateSnapshotRequest{Workspace: "x", Snapshot: "other", IdempotencyKey: "k"})
		wantError(t, err, api.Conflict, "key")
		_, err = w.snapshot(ctx, "x", "clean")
		wantError(t, err, api.AlreadyExists, "clean")
		w.state(ctx, "x", running)
		w.done(ctx, first, nil)
		list, err := w.server.ListSnapshots(ctx, &vendettav1.ListSnapshotsRequest{Workspace: "x"})
		if err != nil || len(list.GetSnapshots()) != 1 || list.GetSnapshots()[0].GetName() != "clean" {
			t.Errorf("%v, %v", list, err)
		}
		_, err = w.restore(ctx, "x", "dirty")
		wantError(t, err, api.NotFound, "there are clean")
		resp, err := w.restore(ctx, "x", "clean")
		w.done(ctx, resp, err)
		w.state(ctx, "x", running)

		resp, err = w.lower(ctx, "x")
		w.done(ctx, resp, err)
		_, err = w.snapshot(ctx, "x", "more")
		wantError(t, err, api.FailedPrecondition, "down")
		_, err = w.restore(ctx, "x", "clean")
		wantError(t, err, api.FailedPrecondition, "down")
		resp, err = w.server.RemoveSnapshot(ctx, &vendettav1.RemoveSnapshotRequest{Workspace: "x", Snapshot: "clean"})
		w.done(ctx, resp, err)
		_, err = w.server.RemoveSnapshot(ctx, &vendettav1.RemoveSnapshotRequest{Workspace: "x", Snapshot: "clean"})
		wantError(t, err, api.NotFound, "clean")
		w.state(ctx, "x", downed)

		// Each is on record, with what it was about.
		audit, err := w.server.ListAudit(ctx, &vendettav1.ListAuditRequest{Workspace: "x"})
		if err != nil {
			t.Fatal(err)
		}
		var methods []string
		for _, e := range audit.GetEntries() {
			methods = append(methods, e.GetMethod())
			if strings.Contains(e.GetMethod(), "snapshot") && !strings.Contains(e.GetFields(), `"snapshot":"clean"`) {
				t.Errorf("%v", e)
			}
		}
		if want := []string{"operation.create", "operation.snapshot-create", "operation.snapshot-restore", "operation.down", "operation.snapshot-rm"}; !slices.Equal(methods, want) {
			t.Errorf("on record: %v", methods)
		}
	})
}

// What fails beside the desired state leaves the workspace and its spec as they were.
func TestFailuresBesidesLeaveTheWorkspace(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", &vendettav1.WorkspaceSpec{Resources: &vendettav1.Resources{Cpus: 2}})
		agent := w.fleet.agent("")
		agent.set(func() { agent.kept[w.get(ctx, "x").GetId()] = []string{"clean"} })
		calls := map[string]func() (*vendettav1.ChangeResponse, error){
			"snapshot-create":  func() (*vendettav1.ChangeResponse, error) { return w.snapshot(ctx, "x", "new") },
			"snapshot-restore": func() (*vendettav1.ChangeResponse, error) { return w.restore(ctx, "x", "clean") },
			"snapshot-rm": func() (*vendettav1.ChangeResponse, error) {
				return w.server.RemoveSnapshot(ctx, &vendettav1.RemoveSnapshotRequest{Workspace: "x", Snapshot: "clean"})
			},
			"pause": func() (*vendettav1.ChangeResponse, error) { return w.pause(ctx, "x") },
			"resize": func() (*vendettav1.ChangeResponse, error) {
				return w.resize(ctx, "x", &vendettav1.Resources{Cpus: 4, Pids: 9})
			},
		}
		check := func(verb string, op *vendettav1.Operation) {
			t.Helper()
			ws := w.get(ctx, "x")
			if op.GetState() != vendettav1.OperationState_OPERATION_STATE_FAILED || op.GetVerb() != verb || op.GetErrorCode() != "resource_exhausted" || op.GetNext() != "do this" {
				t.Errorf("%s: %v", verb, op)
			}
			if ws.GetState() != running || ws.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_RUNNING || ws.GetMessage() != "" || ws.GetNext() != "" {
				t.Errorf("%s: %v", verb, ws)
			}
			if r := ws.GetSpec().GetResources(); r.GetCpus() != 2 || r.GetPids() != 0 {
				t.Errorf("%s: %v", verb, r)
			}
		}
		failure := api.Errorf(api.ResourceExhausted, "the disk is full").WithNext("do this")
		for verb, call := range calls {
			agent.set(func() { agent.harmless = failure })
			resp, err := call()
			check(verb, w.outcome(ctx, resp, err))
			pass(time.Minute)
			w.state(ctx, "x", running)
			// Refused before it began: the node does not know the generation, and
			// gets what is desired, without what was to be done.
			agent.set(func() { agent.harmless, agent.refuse = nil, failure })
			resp, err = call()
			op := w.outcome(ctx, resp, err)
			agent.set(func() { agent.refuse = nil })
			pass(time.Minute)
			check(verb, w.wait(ctx, op.GetId()))
			agent.set(func() {
				last := agent.applied[len(agent.applied)-1]
				if last.GetAction() != nil || last.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_RUNNING || last.GetGeneration() != op.GetGeneration() {
					t.Errorf("%s: sent %v", verb, last)
				}
			})
		}
		// One that had no limits has none again.
		w.create(ctx, "y", nil)
		agent.set(func() { agent.harmless = failure })
		resp, err := w.resize(ctx, "y", &vendettav1.Resources{Cpus: 4})
		w.outcome(ctx, resp, err)
		if r := w.get(ctx, "y").GetSpec().GetResources(); r != nil {
			t.Errorf("limits %v", r)
		}
	})
}

// What a restore or pause breaks is failed, and the next step is another try.
func TestFailureOfTheWorkspace(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		agent.set(func() {
			agent.kept[w.get(ctx, "x").GetId()] = []string{"clean"}
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_RUNNING] = api.Errorf(api.Internal, "it is broken")
		})
		resp, err := w.restore(ctx, "x", "clean")
		w.outcome(ctx, resp, err)
		w.state(ctx, "x", failed)
		_, err = w.snapshot(ctx, "x", "new")
		wantError(t, err, api.FailedPrecondition, "it is broken")
		_, err = w.pause(ctx, "x")
		wantError(t, err, api.FailedPrecondition, "it is broken")
		agent.set(func() { clear(agent.fail) })
		resp, err = w.restore(ctx, "x", "clean")
		w.done(ctx, resp, err)
		w.state(ctx, "x", running)
	})
}

func TestPauseAndResume(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		_, err := w.resume(ctx, "x")
		wantError(t, err, api.FailedPrecondition, "not paused")
		for _, end := range []func(context.Context, string) (*vendettav1.ChangeResponse, error){w.resume, w.up, w.halted, w.lower} {
			resp, err := w.up(ctx, "x")
			w.done(ctx, resp, err)
			resp, err = w.pause(ctx, "x")
			w.done(ctx, resp, err)
			w.state(ctx, "x", paused)
			if ws := w.get(ctx, "x"); ws.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_PAUSED {
				t.Errorf("%v", ws)
			}
			_, _, err = w.server.Guest(ctx, "x", false)
			wantError(t, err, api.FailedPrecondition, "paused")
			if next := api.From(err).Next; next != "vendetta workspace resume x" {
				t.Errorf("next: %s", next)
			}
			resp, err = w.pause(ctx, "x") // again
			w.done(ctx, resp, err)
			resp, err = end(ctx, "x")
			w.done(ctx, resp, err)
		}
		for _, call := range []func(context.Context, string) (*vendettav1.ChangeResponse, error){w.pause, w.resume} {
			_, err := call(ctx, "x")
			wantError(t, err, api.FailedPrecondition, "down")
		}
		resp, err := w.up(ctx, "x")
		w.done(ctx, resp, err)
		resp, err = w.pause(ctx, "x")
		w.done(ctx, resp, err)
		if err := w.remove(ctx, "x", true); err != nil {
			t.Error(err)
		}
	})
}

func TestResize(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", &vendettav1.WorkspaceSpec{Resources: &vendettav1.Resources{Cpus: 2, DiskBytes: 1 << 30}})
		agent := w.fleet.agent("")
		agent.set(func() { agent.note = "the memory is in effect at the next start" })
		resp, err := w.resize(ctx, "x", &vendettav1.Resources{MemoryBytes: 1 << 30, Pids: 7})
		if op := w.done(ctx, resp, err); op.GetNote() != agent.note {
			t.Errorf("%v", op)
		}
		want := &vendettav1.Resources{Cpus: 2, MemoryBytes: 1 << 30, Pids: 7, DiskBytes: 1 << 30}
		if r := w.get(ctx, "x").GetSpec().GetResources(); !proto.Equal(r, want) {
			t.Errorf("limits %v", r)
		}
		agent.set(func() {
			if last := agent.applied[len(agent.applied)-1]; !last.GetResize() || !proto.Equal(last.GetSpec().GetResources(), want) {
				t.Errorf("sent %v", last)
			}
		})
		for word, r := range map[string]*vendettav1.Resources{
			"no limit":   {},
			"cpus":       {Cpus: math.NaN()},
			"few":        {DiskBytes: 1},
			"only grows": {DiskBytes: 512 << 20},
		} {
			_, err := w.resize(ctx, "x", r)
			wantError(t, err, api.InvalidArgument, word)
		}
		_, err = w.resize(ctx, "x", &vendettav1.Resources{DiskBytes: 2 << 30})
		wantError(t, err, api.Unimplemented, "limit the disk of workspace x: docker cannot do that on this node; none of its providers can")
		agent.set(func() {
			agent.report.Providers[0].Capabilities = append(agent.report.Providers[0].Capabilities, "limit-disk")
			agent.changed()
		})
		synctest.Wait()
		resp, err = w.lower(ctx, "x")
		w.done(ctx, resp, err)
		resp, err = w.resize(ctx, "x", &vendettav1.Resources{Cpus: 3, DiskBytes: 2 << 30})
		w.done(ctx, resp, err)
		w.state(ctx, "x", downed)
		if r := w.get(ctx, "x").GetSpec().GetResources(); r.GetCpus() != 3 || r.GetDiskBytes() != 2<<30 {
			t.Errorf("limits %v", r)
		}
	})
}

func TestFork(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		_, err := w.fork(ctx, "x", "x2", "")
		wantError(t, err, api.NotFound, "x")
		agent := w.fleet.agent("")
		agent.set(func() { agent.digest = "sha256:abc" })
		w.create(ctx, "x", &vendettav1.WorkspaceSpec{Image: "debian:12", Source: &vendettav1.Source{Path: "/src"}, Resources: &vendettav1.Resources{Cpus: 2}})
		for _, name := range []string{"", "A"} {
			_, err := w.fork(ctx, "x", name, "")
			wantError(t, err, api.InvalidArgument, "workspace name")
		}
		resp, err := w.fork(ctx, "x", "x2", "k")
		op := w.done(ctx, resp, err)
		origin, fork := w.get(ctx, "x"), w.get(ctx, "x2")
		if op.GetVerb() != "fork" || op.GetWorkspace() != "x2" || resp.GetWorkspace().GetName() != "x2" {
			t.Errorf("%v", op)
		}
		if fork.GetState() != running || fork.GetId() == origin.GetId() || fork.GetNode() != "local" || !proto.Equal(fork.GetSpec(), origin.GetSpec()) ||
			fork.GetSpec().GetImageDigest() != "sha256:abc" || origin.GetGeneration() != 1 {
			t.Errorf("%v of %v", fork, origin)
		}
		// One that ran and failed since is started as any other.
		agent.set(func() {
			agent.journal[fork.GetId()].State = failed
			agent.changed()
		})
		synctest.Wait()
		w.state(ctx, "x2", failed)
		resp, err = w.up(ctx, "x2")
		w.done(ctx, resp, err)
		agent.set(func() {
			if last := agent.applied[len(agent.applied)-2]; last.GetForkOf() != origin.GetId() || last.GetWorkspaceId() != fork.GetId() {
				t.Errorf("sent %v", last)
			}
		})
		again, err := w.fork(ctx, "x", "x2", "k")
		if err != nil || again.GetOperation().GetId() != op.GetId() {
			t.Errorf("the same key: %v, %v", again, err)
		}
		_, err = w.fork(ctx, "x", "x2", "")
		wantError(t, err, api.AlreadyExists, "x2")
		_, err = w.fork(ctx, "x", "x", "")
		wantError(t, err, api.AlreadyExists, "x")
		// It came from a repository, as its origin did, and ran.
		agent.set(func() { agent.guestErr = api.Errorf(api.Unavailable, "no") })
		_, err = w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x2"})
		wantError(t, err, api.FailedPrecondition, "only there")
		resp, err = w.lower(ctx, "x")
		w.done(ctx, resp, err)
		_, err = w.fork(ctx, "x", "x3", "")
		wantError(t, err, api.FailedPrecondition, "down")
		if _, err := w.server.DrainNode(ctx, &vendettav1.DrainNodeRequest{Name: "local", Drain: true}); err != nil {
			t.Fatal(err)
		}
		_, err = w.fork(ctx, "x2", "x3", "")
		wantError(t, err, api.FailedPrecondition, "draining")
	})
}

// A fork that fails is a workspace that failed to be made; the origin is well.
func TestForkFails(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_RUNNING] = api.Errorf(api.ResourceExhausted, "the disk is full")
		})
		resp, err := w.fork(ctx, "x", "x2", "")
		if op := w.outcome(ctx, resp, err); op.GetErrorCode() != "resource_exhausted" {
			t.Errorf("%v", op)
		}
		w.state(ctx, "x2", failed)
		w.state(ctx, "x", running)
		// Started it would be an empty workspace under a fork's name.
		agent.set(func() { clear(agent.fail) })
		_, err = w.up(ctx, "x2")
		wantError(t, err, api.FailedPrecondition, "its fork failed")
		if next := api.From(err).Next; next != "vendetta workspace rm x2, then vendetta workspace fork x x2" {
			t.Errorf("next: %s", next)
		}
		if err := w.remove(ctx, "x", true); err != nil {
			t.Fatal(err)
		}
		_, err = w.up(ctx, "x2")
		wantError(t, err, api.FailedPrecondition, "its fork failed")
		if err := w.remove(ctx, "x2", false); err != nil {
			t.Error(err)
		}
	})
}

// What is done once is not taken the place of, and is not sent once more to a
// node that has forgotten it.
func TestOnceIsOnce(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		first, err := w.snapshot(ctx, "x", "clean")
		if err != nil {
			t.Fatal(err)
		}
		same, err := w.snapshot(ctx, "x", "clean")
		if err != nil || same.GetOperation().GetId() != first.GetOperation().GetId() {
			t.Errorf("the same: %v, %v", same, err)
		}
		for what, call := range map[string]func() (*vendettav1.ChangeResponse, error){
			"another":  func() (*vendettav1.ChangeResponse, error) { return w.snapshot(ctx, "x", "other") },
			"a stop":   func() (*vendettav1.ChangeResponse, error) { return w.halted(ctx, "x") },
			"a resize": func() (*vendettav1.ChangeResponse, error) { return w.resize(ctx, "x", &vendettav1.Resources{Cpus: 1}) },
			"a fork":   func() (*vendettav1.ChangeResponse, error) { return w.fork(ctx, "x", "x2", "") },
		} {
			_, err := call()
			if api.CodeOf(err) != api.Conflict {
				t.Errorf("%s: %v", what, err)
			}
			wantError(t, err, api.Conflict, "its snapshot-create is under way")
		}
		// One that ends in time is waited for.
		time.AfterFunc(oncePatience/2, func() { close(hold) })
		resp, err := w.halted(ctx, "x")
		w.done(ctx, resp, err)
		if op := w.wait(ctx, first.GetOperation().GetId()); op.GetState() != succeeded {
			t.Errorf("%v", op)
		}
		agent.set(func() { agent.hold = nil })
		resp, err = w.up(ctx, "x")
		w.done(ctx, resp, err)
		resp, err = w.restore(ctx, "x", "clean")
		op := w.done(ctx, resp, err)
		agent.set(func() {
			clear(agent.journal)
			clear(agent.answers)
			agent.changed()
		})
		pass(reconcileInterval + time.Second)
		agent.set(func() {
			last := agent.applied[len(agent.applied)-1]
			if agent.done[op.GetId()] != 2 || last.GetOperationId() != op.GetId() || last.GetAction() != nil {
				t.Errorf("%d times, sent %v", agent.done[op.GetId()], last)
			}
		})
		// A removal alone takes the place of one that is under way.
		hold = make(chan struct{})
		defer close(hold)
		agent.set(func() { agent.hold = hold })
		first, err = w.snapshot(ctx, "x", "late")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x", Force: true}); err != nil {
			t.Fatal(err)
		}
		if op := w.wait(ctx, first.GetOperation().GetId()); op.GetState() != vendettav1.OperationState_OPERATION_STATE_SUPERSEDED {
			t.Errorf("%v", op)
		}
		_, err = w.snapshot(ctx, "x", "later")
		wantError(t, err, api.Conflict, "being removed")
		_, err = w.fork(ctx, "x", "x2", "")
		wantError(t, err, api.Conflict, "under way")
		_, err = w.server.ListSnapshots(ctx, &vendettav1.ListSnapshotsRequest{Workspace: "x"})
		wantError(t, err, api.Conflict, "being removed")
	})
}

func TestUnsupported(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		agent := w.fleet.agent("")
		agent.report.Providers = append(agent.report.Providers,
			&vendettav1.ProviderStatus{Name: "qemu", Usable: true, Capabilities: []string{"pause"}})
		w.addLocal(ctx)
		w.create(ctx, "x", &vendettav1.WorkspaceSpec{Provider: "native"})
		before := len(agent.applied)
		for words, call := range map[string]func() error{
			"pause workspace x: native cannot do that on this node; docker and qemu can": func() error { _, err := w.pause(ctx, "x"); return err },
			"take a snapshot of workspace x: native cannot":                              func() error { _, err := w.snapshot(ctx, "x", "a"); return err },
			"restore a snapshot of workspace x: native":                                  func() error { _, err := w.restore(ctx, "x", "a"); return err },
			"list the snapshots of workspace x: native": func() error {
				_, err := w.server.ListSnapshots(ctx, &vendettav1.ListSnapshotsRequest{Workspace: "x"})
				return err
			},
			"remove a snapshot of workspace x: native": func() error {
				_, err := w.server.RemoveSnapshot(ctx, &vendettav1.RemoveSnapshotRequest{Workspace: "x", Snapshot: "a"})
				return err
			},
			"fork workspace x: native cannot do that on this node; docker can": func() error { _, err := w.fork(ctx, "x", "y", ""); return err },
			"resize workspace x: native":                                       func() error { _, err := w.resize(ctx, "x", &vendettav1.Resources{Cpus: 1}); return err },
		} {
			wantError(t, call(), api.Unimplemented, words)
		}
		if len(agent.applied) != before {
			t.Errorf("sent %v", agent.applied[before:])
		}
	})
	// A provider that is not usable now, or is not in the report, judges for itself.
	ws := workspaceOf("native")
	for _, p := range []*vendettav1.ProviderStatus{{Name: "native"}, {Name: "docker", Usable: true}} {
		if err := capable(&vendettav1.NodeReport{Providers: []*vendettav1.ProviderStatus{p}}, ws, capabilityPause, "pause"); err != nil {
			t.Error(err)
		}
	}
}

func TestStats(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		stats := func() (*vendettav1.WorkspaceStats, error) {
			return w.server.GetWorkspaceStats(ctx, &vendettav1.GetWorkspaceStatsRequest{Name: "x"})
		}
		_, err := stats()
		wantError(t, err, api.NotFound, "x")
		w.addLocal(ctx)
		w.create(ctx, "x", &vendettav1.WorkspaceSpec{Resources: &vendettav1.Resources{Cpus: 2}})
		got, err := stats()
		want := &vendettav1.WorkspaceStats{CpuSeconds: 2.5, MemoryBytes: 7 << 20, DiskBytes: -1, Limits: &vendettav1.Resources{Cpus: 2}}
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
		agent := w.fleet.agent("")
		agent.set(func() { agent.asked = api.Errorf(api.Internal, "it cannot be measured") })
		_, err = stats()
		wantError(t, err, api.Internal, "measured")
		_, err = w.snapshot(ctx, "x", "a")
		wantError(t, err, api.Internal, "measured")
		resp, err := w.halted(ctx, "x")
		w.done(ctx, resp, err)
		_, err = stats()
		wantError(t, err, api.FailedPrecondition, "stopped")
		agent.kill()
		w.fleet.mu.Lock()
		w.fleet.startErr = api.Errorf(api.Unavailable, "no")
		w.fleet.mu.Unlock()
		pass(2 * leaseTTL)
		_, err = stats()
		wantError(t, err, api.Unavailable, "measure workspace x")
		_, err = w.fork(ctx, "x", "y", "")
		wantError(t, err, api.Unavailable, "fork workspace x")
	})
}

func TestImageIsPinned(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		agent.set(func() { agent.digest = "sha256:abc" })
		spec := &vendettav1.WorkspaceSpec{Image: "debian:12", ImageDigest: "sha256:mine"}
		w.create(ctx, "x", spec)
		if got := w.get(ctx, "x").GetSpec(); got.GetImageDigest() != "sha256:abc" || got.GetImage() != "debian:12" {
			t.Errorf("%v", got)
		}
		for _, call := range []func(context.Context, string) (*vendettav1.ChangeResponse, error){w.lower, w.up} {
			resp, err := call(ctx, "x")
			w.done(ctx, resp, err)
		}
		agent.set(func() {
			if first, last := agent.applied[0], agent.applied[len(agent.applied)-1]; first.GetSpec().GetImageDigest() != "" || last.GetSpec().GetImageDigest() != "sha256:abc" {
				t.Errorf("sent %v, then %v", first, last)
			}
		})
	})
}

func TestOrphans(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		id := w.get(ctx, "x").GetId()
		orphan := func(id string, at time.Time) *vendettav1.Orphan {
			return &vendettav1.Orphan{Provider: "docker", WorkspaceId: id, Instance: "vendetta-" + id, FoundAt: timestamppb.New(at), RemoveAt: timestamppb.New(at.Add(24 * time.Hour))}
		}
		agent.set(func() {
			agent.report.Orphans = []*vendettav1.Orphan{
				orphan("lost", time.Now().Add(-22*time.Hour)),
				orphan("early", time.Now().Add(-48*time.Hour)), // the node's clock is behind
				orphan(id, time.Now().Add(-48*time.Hour)),
			}
			agent.changed()
		})
		synctest.Wait()
		got := w.node(ctx, "local").GetReport().GetOrphans()
		if len(got) != 2 || got[0].GetWorkspaceId() != "lost" || got[1].GetWorkspaceId() != "early" {
			t.Errorf("shown: %v", got)
		}
		removed := func() []string {
			var ids []string
			agent.set(func() {
				for _, r := range agent.applied {
					if r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
						ids = append(ids, r.GetWorkspaceId())
						if r.GetSpec() != nil {
							t.Errorf("sent %v", r)
						}
					}
				}
			})
			slices.Sort(ids)
			return slices.Compact(ids)
		}
		pass(30 * time.Minute)
		if got := removed(); len(got) != 0 {
			t.Errorf("removed %v", got)
		}
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_REMOVED] = api.Errorf(api.Internal, "it will not go")
		})
		pass(time.Hour)
		if got := removed(); !slices.Equal(got, []string{"early"}) {
			t.Errorf("removed %v", got)
		}
		agent.set(func() { clear(agent.fail) })
		pass(time.Hour)
		if got := removed(); !slices.Equal(got, []string{"early", "lost"}) {
			t.Errorf("removed %v", got)
		}
		audit, err := w.server.ListAudit(ctx, &vendettav1.ListAuditRequest{Workspace: "lost"})
		if err != nil || len(audit.GetEntries()) == 0 || audit.GetEntries()[0].GetMethod() != "orphan.rm" || audit.GetEntries()[0].GetPrincipal() != serverPrincipal {
			t.Errorf("on record: %v, %v", audit, err)
		}
		w.state(ctx, "x", running)
		l := w.server.linkTo(w.node(ctx, "local").GetId())
		if err := l.removeOrphan(ctx, orphan(id, time.Now())); api.CodeOf(err) != api.Conflict {
			t.Errorf("one that a workspace has: %v", err)
		}
	})
}

// What the store knows is never removed, nor what was found a moment ago.
func TestExpiredOrphansProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		known := map[string]bool{}
		for i := range 4 {
			known[fmt.Sprint("w", i)] = rapid.Bool().Draw(t, "known")
		}
		reported := map[string][]reportedOrphan{}
		for i := range rapid.IntRange(0, 8).Draw(t, "orphans") {
			at := epoch.Add(time.Duration(rapid.IntRange(-100, 100).Draw(t, "hours")) * time.Hour)
			o := reportedOrphan{
				orphan: &vendettav1.Orphan{WorkspaceId: fmt.Sprint("w", i), RemoveAt: timestamppb.New(at)},
				since:  epoch.Add(-time.Duration(rapid.IntRange(0, 120).Draw(t, "minutes")) * time.Minute),
			}
			if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
				o.orphan.RemoveAt = nil
			}
			node := fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node"))
			reported[node] = append(reported[node], o)
		}
		want := 0
		for _, list := range reported {
			for _, o := range list {
				if !known[o.orphan.GetWorkspaceId()] && o.orphan.RemoveAt != nil && !epoch.Before(o.orphan.RemoveAt.AsTime()) && epoch.Sub(o.since) >= orphanPatience {
					want++
				}
			}
		}
		for node, list := range expiredOrphans(known, reported, epoch) {
			for _, o := range list {
				want--
				if known[o.GetWorkspaceId()] || o.RemoveAt == nil || epoch.Before(o.RemoveAt.AsTime()) {
					t.Fatalf("removes %v", o)
				}
				if !slices.ContainsFunc(reported[node], func(r reportedOrphan) bool { return r.orphan == o }) {
					t.Fatalf("removes %v from a node that does not have it", o)
				}
			}
		}
		if want != 0 {
			t.Fatalf("%d are left that should go", want)
		}
	})
}

func workspaceOf(provider string) store.Workspace {
	return store.Workspace{Name: "x", Spec: &vendettav1.WorkspaceSpec{Provider: provider}}
}
