package coordination

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func (w *world) remove(ctx context.Context, name string, force bool) error {
	w.t.Helper()
	resp, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: name, Force: force})
	if err == nil {
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetState() != succeeded {
			w.t.Fatalf("rm %s: %v", name, op)
		}
	}
	return err
}

var fromRepository = &vendettav1.WorkspaceSpec{Source: &vendettav1.Source{Path: "/src"}}

func TestRemovalNamesWhatWouldBeLost(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", fromRepository)
		agent := w.fleet.agent("")
		var files []string
		for i := range 10 {
			files = append(files, fmt.Sprintf("cmd/f%d.go", i))
		}
		cases := []struct {
			status *guestv1.ProjectStatusResponse
			words  []string
		}{
			{&guestv1.ProjectStatusResponse{ChangedFiles: []string{"a.go"}}, []string{"1 changed file (a.go)"}},
			{
				&guestv1.ProjectStatusResponse{ChangedFiles: files, ChangedFilesTotal: 12, NewCommits: []string{"abc1234 mend"}, NewCommitsTotal: 1},
				[]string{"1 commit (abc1234 mend)", "12 changed files", "f0.go", "f9.go", "and 2 more"},
			},
			{&guestv1.ProjectStatusResponse{ChangedFiles: []string{"evil\x1b[2J\n" + strings.Repeat("x", 500)}}, []string{"evil?[2J?xxx", "..."}},
		}
		for _, c := range cases {
			agent.set(func() { agent.project = c.status })
			err := w.remove(ctx, "x", false)
			wantError(t, err, api.FailedPrecondition, append(c.words, "rm workspace x")...)
			if !strings.Contains(api.From(err).Next, "--force") {
				t.Errorf("next: %s", api.From(err).Next)
			}
		}
		if ws := w.get(ctx, "x"); ws.GetState() != running || ws.GetGeneration() != 1 {
			t.Fatalf("a refusal changed something: %v", ws)
		}
		if err := w.remove(ctx, "x", true); err != nil {
			t.Fatal(err)
		}

		// An import that the record does not know counts too.
		agent.set(func() { agent.project = &guestv1.ProjectStatusResponse{Imported: true, ChangedFiles: []string{"b.go"}} })
		w.create(ctx, "y", nil)
		wantError(t, w.remove(ctx, "y", false), api.FailedPrecondition, "b.go")
		agent.set(func() { agent.project.Imported = false })
		if err := w.remove(ctx, "y", false); err != nil {
			t.Fatal(err)
		}
		agent.set(func() { agent.project = &guestv1.ProjectStatusResponse{Imported: true} })
		w.create(ctx, "z", fromRepository)
		if err := w.remove(ctx, "z", false); err != nil {
			t.Fatal("nothing would be lost: ", err)
		}
	})
}

func TestRemovalNeedsALook(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		down := func(name string) {
			resp, err := w.server.DownWorkspace(ctx, &vendettav1.DownWorkspaceRequest{Name: name})
			if err != nil {
				t.Fatal(err)
			}
			w.wait(ctx, resp.GetOperation().GetId())
		}
		w.create(ctx, "x", fromRepository)
		down("x")
		wantError(t, w.remove(ctx, "x", false), api.FailedPrecondition, "is down", "nobody can look")

		w.create(ctx, "plain", nil)
		down("plain")
		if err := w.remove(ctx, "plain", false); err != nil {
			t.Fatal(err)
		}

		agent.set(func() { agent.guestErr = api.Errorf(api.Unavailable, "the guest\x00 is gone") })
		w.create(ctx, "silent", nil)
		if err := w.remove(ctx, "silent", false); err != nil {
			t.Fatal(err)
		}
		w.create(ctx, "deaf", fromRepository)
		wantError(t, w.remove(ctx, "deaf", false), api.FailedPrecondition, "does not answer", "the guest? is gone")

		// What never ran holds nothing.
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_RUNNING] = api.Errorf(api.NotFound, "no such image")
		})
		w.create(ctx, "failed", fromRepository)
		if err := w.remove(ctx, "failed", false); err != nil {
			t.Fatal(err)
		}
	})
}

// A node that never comes back: its workspaces go by force, then the node.
func TestLostNodeCanBeGivenUp(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "build1")
		w.create(ctx, "x", nil)
		w.create(ctx, "y", nil)
		w.fleet.mu.Lock()
		w.fleet.startErr = api.Errorf(api.Unavailable, "host build1 is unreachable")
		w.fleet.uninstall = func(Target) error { return w.fleet.startErr }
		w.fleet.mu.Unlock()
		w.fleet.agent("build1").kill()
		pass(brokenGrace + 1)

		err := w.remove(ctx, "x", false)
		wantError(t, err, api.Unavailable, "build1 is lost")
		if !strings.Contains(api.From(err).Next, "--force") {
			t.Errorf("next: %s", api.From(err).Next)
		}
		resp, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x", Force: true})
		if err != nil || resp.GetOperation().GetState() != pending {
			t.Fatalf("%v, %v", resp, err)
		}
		_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "build1", Force: true})
		wantError(t, err, api.FailedPrecondition, "on it: y")
		if _, err = w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "y", Force: true}); err != nil {
			t.Fatal(err)
		}
		_, err = w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "build1"})
		wantError(t, err, api.FailedPrecondition, "x, y")

		waited := make(chan *vendettav1.Operation, 1)
		go func() { waited <- w.wait(ctx, resp.GetOperation().GetId()) }()
		synctest.Wait()
		gone, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "build1", Force: true})
		if err != nil {
			t.Fatal(err)
		}
		if m := gone.GetMessage(); !strings.Contains(m, "x, y") || !strings.Contains(m, "key stay") {
			t.Errorf("message %q", m)
		}
		if op := <-waited; op.GetState() != vendettav1.OperationState_OPERATION_STATE_SUPERSEDED {
			t.Errorf("%v", op)
		}
		list, err := w.server.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{})
		if err != nil || len(list.GetWorkspaces()) != 0 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

// A forced removal that was accepted for a lost node is done when it is back.
func TestForcedRemovalWaitsForTheNode(t *testing.T) {
	inWorld(t, []string{"build1"}, func(ctx context.Context, w *world) {
		w.addRemote(ctx, "build1")
		w.create(ctx, "x", fromRepository)
		agent := w.fleet.agent("build1")
		w.fleet.mu.Lock()
		w.fleet.startErr = api.Errorf(api.Unavailable, "host build1 is unreachable")
		w.fleet.mu.Unlock()
		agent.kill()
		pass(brokenGrace + 1)
		resp, err := w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x", Force: true})
		if err != nil {
			t.Fatal(err)
		}
		agent.start()
		if op := w.wait(ctx, resp.GetOperation().GetId()); op.GetState() != succeeded {
			t.Fatalf("%v", op)
		}
	})
}
