package coordination

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

func TestGuest(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		_, _, err := w.server.Guest(ctx, "../x", false)
		wantError(t, err, api.NotFound, "../x")
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		dials := agent.dials
		for _, bulk := range []bool{false, true} {
			id, rt, err := w.server.Guest(ctx, "x", bulk)
			if err != nil || id != w.get(ctx, "x").GetId() {
				t.Fatalf("%s, %v", id, err)
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, wire.BaseURL+guestPath(id)+"/vendetta.guest.v1.ProjectService/ProjectStatus", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/proto")
			req.Header.Set(api.ServerHeader, "forged")
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
			if req.Header.Get(api.ServerHeader) != "forged" {
				t.Error("the caller's request was changed")
			}
		}
		if agent.dials != dials+2 {
			t.Errorf("%d connections for guests and bulk", agent.dials-dials)
		}
		if len(agent.servers) != 1 || !agent.servers[w.server.ID()] {
			t.Errorf("the agent saw the servers %v", agent.servers)
		}

		// The error of a lost way names the node.
		w.fleet.mu.Lock()
		w.fleet.startErr = api.Errorf(api.Internal, "cannot start")
		w.fleet.mu.Unlock()
		_, rt, err := w.server.Guest(ctx, "x", false)
		if err != nil {
			t.Fatal(err)
		}
		agent.kill()
		synctest.Wait() // else the connection may still be closing
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, wire.BaseURL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		wantError(t, err, api.Unavailable, "no node agent")
	})
}

// A request under way on a connection that breaks ends with an error that names
// the node.
func TestConnectionLostUnderARequest(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		entered := make(chan struct{})
		agent.set(func() { agent.stall = entered })
		id, rt, err := w.server.Guest(ctx, "x", false)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, wire.BaseURL+guestPath(id)+"/x", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			resp, err := rt.RoundTrip(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			ended <- err
		}()
		<-entered
		agent.set(agent.cut)
		wantError(t, <-ended, api.Unavailable, "node local: the connection was lost")
	})
}

func TestChannelFollowsNoRedirect(t *testing.T) {
	c := newChannel(&fleet{}, func() Target { return Target{} }, "server")
	if err := c.client().CheckRedirect(nil, nil); !errors.Is(err, http.ErrUseLastResponse) {
		t.Error(err)
	}
}

// A channel that was closed while it dialled keeps nothing open.
func TestChannelClosedInMidDial(t *testing.T) {
	near, far := net.Pipe()
	c := newChannel(dialed{near}, func() Target { return Target{Name: "x"} }, "server")
	c.close()
	if _, err := c.dial(t.Context()); api.CodeOf(err) != api.Unavailable {
		t.Error(err)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream is open: %v", err)
	}
}

func TestGuestWaitsForCreation(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		agent := w.fleet.agent("")
		hold := make(chan struct{})
		agent.set(func() { agent.hold = hold })
		if _, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		_, _, err := w.server.Guest(ctx, "x", false)
		wantError(t, err, api.Unavailable, "not up yet")
		if waited := time.Since(begun); waited != guestPatience {
			t.Errorf("waited %s", waited)
		}
		impatient, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, _, err = w.server.Guest(impatient, "x", false)
		if api.CodeOf(err) != api.DeadlineExceeded {
			t.Error(err)
		}
		found := make(chan error, 1)
		go func() {
			_, _, err := w.server.Guest(ctx, "x", false)
			found <- err
		}()
		synctest.Wait()
		close(hold)
		if err := <-found; err != nil {
			t.Error(err)
		}
	})
}

func TestGuestReady(t *testing.T) {
	for state, code := range map[vendettav1.WorkspaceState]api.Code{
		vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING:  "",
		vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING: api.Unavailable,
		vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPING: api.FailedPrecondition,
		vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED:  api.FailedPrecondition,
		vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN:     api.FailedPrecondition,
		vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED:   api.FailedPrecondition,
		vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING: api.FailedPrecondition,
	} {
		for _, next := range []string{"", "do that"} {
			err := guestReady(store.Workspace{Name: "x", State: state, Next: next})
			if code == "" {
				if err != nil {
					t.Errorf("%s: %v", state, err)
				}
				continue
			}
			wantError(t, err, code, "workspace x")
		}
	}
}
