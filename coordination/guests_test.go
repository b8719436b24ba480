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

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
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

// After a reboot the node agent says unknown first, then that it brings the
// workspace back; a call that comes too early waits for that.
func TestGuestWaitsForTheWayBack(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		id := w.get(ctx, "x").GetId()
		report := func(state vendettav1.WorkspaceState) {
			agent.set(func() {
				agent.journal[id].State = state
				agent.changed()
			})
			synctest.Wait()
		}
		report(vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN)
		found := make(chan error, 1)
		go func() {
			_, _, err := w.server.Guest(ctx, "x", false)
			found <- err
		}()
		synctest.Wait()
		report(vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING)
		select {
		case err := <-found:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		report(running)
		if err := <-found; err != nil {
			t.Error(err)
		}
	})
}

// A change that failed leaves the guest of a running instance reachable.
func TestGuestOfFailedChange(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "x", nil)
		agent := w.fleet.agent("")
		agent.set(func() {
			agent.fail[vendettav1.DesiredState_DESIRED_STATE_STOPPED] = api.Errorf(api.Internal, "it does not end")
		})
		resp, err := w.server.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		w.wait(ctx, resp.GetOperation().GetId())
		if ws := w.get(ctx, "x"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED {
			t.Errorf("%v", ws)
		}
		if _, _, err := w.server.Guest(ctx, "x", false); err != nil {
			t.Error(err)
		}
	})
}

func TestOvertakenObservations(t *testing.T) {
	at := func(generation int64, d time.Duration) *nodeagentv1.ObservedWorkspace {
		return &nodeagentv1.ObservedWorkspace{Generation: generation, At: timestamppb.New(epoch.Add(d))}
	}
	have := at(2, time.Second)
	for name, c := range map[string]struct {
		o    *nodeagentv1.ObservedWorkspace
		have *nodeagentv1.ObservedWorkspace
		want bool
	}{
		"first":            {at(1, 0), nil, false},
		"older":            {at(2, 0), have, true},
		"same":             {at(2, time.Second), have, false},
		"newer":            {at(2, 2*time.Second), have, false},
		"next generation":  {at(3, 0), have, false},
		"clock was set":    {at(2, -time.Hour), have, false},
		"older generation": {at(1, 0), have, true},
	} {
		if got := overtaken(c.o, c.have); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestGuestReady(t *testing.T) {
	for state, code := range map[vendettav1.WorkspaceState]api.Code{
		vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING:  "",
		vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING: api.Unavailable,
		vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN:  api.Unavailable,
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
