package coordination

import (
	"context"
	"testing"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestWorkspaceLife(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		if n := w.addLocal(ctx); n.GetState() != vendettav1.NodeState_NODE_STATE_READY {
			t.Fatalf("node is %s: %s", n.GetState(), n.GetMessage())
		}
		op := w.create(ctx, "hello", nil)
		if op.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED || op.GetPrincipal() != "tester" {
			t.Fatalf("create: %v", op)
		}
		ws := w.get(ctx, "hello")
		if ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING || ws.GetInstance() == "" || ws.GetSpec().GetProvider() != "docker" {
			t.Fatalf("created: %v", ws)
		}
		steps := []struct {
			call func() (*vendettav1.ChangeResponse, error)
			want vendettav1.WorkspaceState
		}{
			{func() (*vendettav1.ChangeResponse, error) {
				return w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "hello", GraceSeconds: 3})
			}, vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED},
			{func() (*vendettav1.ChangeResponse, error) {
				return w.server.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: "hello"})
			}, vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING},
			{func() (*vendettav1.ChangeResponse, error) {
				return w.server.DownWorkspace(ctx, &vendettav1.DownWorkspaceRequest{Name: "hello"})
			}, vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN},
		}
		for i, step := range steps {
			resp, err := step.call()
			if err != nil {
				t.Fatal(err)
			}
			if got := w.wait(ctx, resp.GetOperation().GetId()); got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED || got.GetGeneration() != int64(i)+2 {
				t.Fatalf("step %d: %v", i, got)
			}
			if got := w.get(ctx, "hello").GetState(); got != step.want {
				t.Fatalf("step %d: %s, want %s", i, got, step.want)
			}
		}
		resp, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "hello"})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.wait(ctx, resp.GetOperation().GetId()); got.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED {
			t.Fatalf("rm: %v", got)
		}
		_, err = w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: "hello"})
		wantError(t, err, "not_found", "hello")
		ops, err := w.server.ListOperations(ctx, &vendettav1.ListOperationsRequest{Workspace: "hello"})
		if err != nil || len(ops.GetOperations()) != 5 {
			t.Fatalf("%d operations stay, %v", len(ops.GetOperations()), err)
		}
	})
}
