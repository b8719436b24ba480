package coordination

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

func TestWayToNodeAgents(t *testing.T) {
	inWorld(t, []string{"", "far"}, func(ctx context.Context, w *world) {
		_, err := w.server.NodeAgent(ctx, "", false)
		wantError(t, err, api.FailedPrecondition, "there is none")
		local := w.addLocal(ctx)
		l := w.server.linkTo(local.GetId())
		for _, c := range []struct {
			node string
			bulk bool
			want http.RoundTripper
		}{{"", false, l.guests}, {"", true, l.bulk}, {"local", false, l.guests}} {
			way, err := w.server.NodeAgent(ctx, c.node, c.bulk)
			if err != nil || way != c.want {
				t.Errorf("%q, bulk %v: %v, %v", c.node, c.bulk, way, err)
			}
		}
		_, err = w.server.NodeAgent(ctx, "nowhere", false)
		wantError(t, err, api.NotFound, "nowhere")
		w.addRemote(ctx, "far")
		_, err = w.server.NodeAgent(ctx, "", true)
		wantError(t, err, api.InvalidArgument, "there are 2")
		if next := api.From(err).Next; next != "name one with --node: far, local" {
			t.Errorf("next: %s", next)
		}
		w.fleet.agent("far").kill()
		w.fleet.mu.Lock()
		w.fleet.startErr = api.Errorf(api.Unavailable, "start node agent: it is gone")
		w.fleet.mu.Unlock()
		synctest.Wait()
		_, err = w.server.NodeAgent(ctx, "far", false)
		wantError(t, err, api.Unavailable)
		// A node that is on its way out is none to be taken for the only one.
		if err := w.store.Update(ctx, func(tx store.Tx) error {
			n, err := tx.NodeByName("far")
			n.State = vendettav1.NodeState_NODE_STATE_REMOVED
			if err != nil {
				return err
			}
			return tx.UpdateNode(n)
		}); err != nil {
			t.Fatal(err)
		}
		if way, err := w.server.NodeAgent(ctx, "", false); err != nil || way != l.guests {
			t.Errorf("got %v, %v", way, err)
		}
	})
}
