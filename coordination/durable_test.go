package coordination

import (
	"path/filepath"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store/sqlite"
)

// The road on the real store, outside of any bubble: what one server accepted
// on a file, the next one on that file carries out.
func TestOnSQLite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vendetta.db")
	agent := newFakeAgent()
	defer agent.kill()
	ctx := WithPrincipal(t.Context(), Principal{Name: "tester", Local: true})

	var id, operation string
	serve := func(fn func(w *world)) {
		t.Helper()
		db, err := sqlite.Open(ctx, file)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}()
		w := &world{t: t, fleet: &fleet{agents: map[string]*fakeAgent{"": agent}}, store: db}
		w.start()
		defer w.halt()
		fn(w)
	}
	hold := make(chan struct{})
	serve(func(w *world) {
		id = w.server.ID()
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent.set(func() { agent.hold = hold })
		resp, err := w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		operation = resp.GetOperation().GetId()
	})
	close(hold)
	serve(func(w *world) {
		if w.server.ID() != id {
			t.Errorf("server id %s, then %s", id, w.server.ID())
		}
		if op := w.wait(ctx, operation); op.GetState() != succeeded {
			t.Fatalf("%v", op)
		}
		if err := w.remove(ctx, "x", true); err != nil {
			t.Fatal(err)
		}
		_, err := w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: "x"})
		wantError(t, err, api.NotFound)
	})
}
