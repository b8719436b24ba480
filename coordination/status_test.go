package coordination

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store/memory"
)

func TestServerStatus(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		got, err := w.server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{Protocol: api.Protocol})
		if err != nil || got.GetId() != w.server.ID() || got.GetNodes() != 1 || got.GetWorkspaces() != 1 || got.GetPid() != 42 ||
			got.GetStateDir() != "/state" || got.GetPublicKey() == "" || got.GetVersion() != "test" {
			t.Fatalf("%v, %v", got, err)
		}
		_, err = w.server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{Protocol: 99})
		wantError(t, err, api.FailedPrecondition, "protocol")
		if _, err := w.server.Shutdown(ctx, &vendettav1.ShutdownRequest{}); err != nil || w.down != 1 {
			t.Errorf("%d calls, %v", w.down, err)
		}
		w.server.opts.Shutdown = nil
		if _, err := w.server.Shutdown(ctx, &vendettav1.ShutdownRequest{}); api.CodeOf(err) != api.Unimplemented {
			t.Error(err)
		}
	})
}

func TestAudit(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		w.create(ctx, "y", nil)
		if err := w.remove(ctx, "x", false); err != nil {
			t.Fatal(err)
		}
		all, err := w.server.ListAudit(ctx, &vendettav1.ListAuditRequest{})
		if err != nil || len(all.GetEntries()) != 3 {
			t.Fatalf("%v, %v", all, err)
		}
		e := all.GetEntries()[0]
		if e.GetMethod() != "operation.create" || e.GetPrincipal() != "tester" || e.GetWorkspace() != "x" ||
			!bytes.Contains([]byte(e.GetFields()), []byte(`"provider":"docker"`)) {
			t.Errorf("%v", e)
		}
		some, err := w.server.ListAudit(ctx, &vendettav1.ListAuditRequest{After: e.GetSeq(), Workspace: "x", Limit: 5})
		if err != nil || len(some.GetEntries()) != 1 || some.GetEntries()[0].GetMethod() != "operation.rm" {
			t.Errorf("%v, %v", some, err)
		}
		_, err = w.server.ListAudit(ctx, &vendettav1.ListAuditRequest{Limit: -1})
		if api.CodeOf(err) != api.InvalidArgument {
			t.Error(err)
		}
	})
}

func TestOperations(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		_, err := w.server.WaitOperation(ctx, &vendettav1.WaitOperationRequest{Id: "none"})
		wantError(t, err, api.NotFound, "none")
		_, err = w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{Workspace: "none"})
		wantError(t, err, api.NotFound, "none")
		_, err = w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{Limit: -1})
		if api.CodeOf(err) != api.InvalidArgument {
			t.Error(err)
		}
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		id := resp.GetOperation().GetId()
		begun := time.Now()
		op, err := w.server.WaitOperation(ctx, &vendettav1.WaitOperationRequest{Id: id, Seconds: 7})
		if err != nil || op.GetState() != pending || time.Since(begun) != 7*time.Second {
			t.Errorf("%v after %s, %v", op, time.Since(begun), err)
		}
		gone, cancel := context.WithCancel(ctx)
		ended := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := w.server.WaitOperation(gone, &vendettav1.WaitOperationRequest{Id: id, Seconds: 100})
				ended <- err
			}()
		}
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-ended; api.CodeOf(err) != api.Unavailable {
				t.Error(err)
			}
		}
		if len(w.server.waiters.byKey) != 0 {
			t.Error("waiters that have gone are kept")
		}
		close(hold)
		if op := w.wait(ctx, id); op.GetState() != succeeded || !op.GetFinishedAt().AsTime().After(op.GetCreatedAt().AsTime()) {
			t.Errorf("%v", op)
		}
		list, err := w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{Workspace: "x", Limit: 1})
		if err != nil || len(list.GetOperations()) != 1 {
			t.Errorf("%v, %v", list, err)
		}
		if list, err = w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{}); err != nil || len(list.GetOperations()) != 1 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestNewServer(t *testing.T) {
	ctx := t.Context()
	f := &fleet{}
	if _, err := New(ctx, Options{Dialer: f, Installer: f}); err == nil {
		t.Error("a server without a store")
	}
	faulty := &faultyStore{Store: memory.New()}
	if _, err := New(ctx, Options{Store: faulty, Dialer: f, Installer: f, Rand: bytes.NewReader(nil)}); err == nil {
		t.Error("a server without an id")
	}
	faulty.fault(nil, errors.New("disk full"))
	if _, err := New(ctx, Options{Store: faulty, Dialer: f, Installer: f}); err == nil {
		t.Error("a server whose id is not stored")
	}
	faulty.fault(errors.New("gone"), nil)
	s, err := New(ctx, Options{Store: faulty, Dialer: f, Installer: f})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(ctx); err == nil {
		t.Error("ran without reading its nodes")
	}
	if len(s.ID()) != serverIDLength {
		t.Errorf("id %q", s.ID())
	}
}

// No id, no change: a source of chance that fails stops what needs it.
func TestNoChanceNoChange(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		w.server.opts.Rand = bytes.NewReader(nil)
		for verb, call := range changes(ctx, w.server, "x", "") {
			if _, err := call(); verb != "create" && err == nil {
				t.Errorf("%s was accepted", verb)
			}
		}
		if _, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "y"}); err == nil {
			t.Error("create was accepted")
		}
		if _, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "z", Address: &vendettav1.NodeAddress{Host: "z"}}); err == nil {
			t.Error("node was accepted")
		}
	})
}
