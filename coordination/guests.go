package coordination

import (
	"context"
	"net/http"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// guestPatience is how long a call to a guest waits for a workspace that is
// still on its way up.
const guestPatience = 10 * time.Second

// guestPath is where a node agent serves the guest of a workspace.
func guestPath(workspaceID string) string { return "/workspaces/" + workspaceID + "/guest" }

// Guest finds the way to the guest of a running workspace: the workspace's id
// and what carries requests to its node agent, whose guest path is
// /workspaces/ID/guest/. Bulk gets a connection of its own. A workspace that is
// still being created is waited for a little.
func (s *Server) Guest(ctx context.Context, workspace string, bulk bool) (workspaceID string, rt http.RoundTripper, err error) {
	if err := s.awaitRun(ctx); err != nil {
		return "", nil, err
	}
	ws, node, _, err := s.workspace(ctx, workspace)
	if err != nil {
		return "", nil, err
	}
	if err := s.reachable(ctx, ws.NodeID, node); err != nil {
		return "", nil, err
	}
	if onItsWay(ws) {
		if ws, err = s.settled(ctx, workspace, ws.ID); err != nil {
			return "", nil, err
		}
	}
	l := s.linkTo(ws.NodeID)
	if l == nil {
		return "", nil, api.Errorf(api.Unavailable, "node %s: it is being removed", node).WithNext("vendetta node list")
	}
	// A workspace whose last change failed may well have a guest.
	if err := guestReady(ws); err != nil && (ws.State != vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED || !l.linked(ws.ID)) {
		return "", nil, err
	}
	if bulk {
		return ws.ID, l.bulk, nil
	}
	return ws.ID, l.guests, nil
}

// onItsWay tells whether a workspace should have a guest soon: it is being
// created, comes back after a reboot, or its node agent has just begun to look.
func onItsWay(ws store.Workspace) bool {
	if ws.Desired != vendettav1.DesiredState_DESIRED_STATE_RUNNING {
		return false
	}
	return ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING || ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN
}

// settled waits, within guestPatience, until a workspace is no more on its way.
func (s *Server) settled(ctx context.Context, name, id string) (store.Workspace, error) {
	timer := time.NewTimer(guestPatience)
	defer timer.Stop()
	for {
		changed, giveBack := s.waiters.wait(workspaceKey(id))
		ws, _, _, err := s.workspace(ctx, name)
		if err != nil || !onItsWay(ws) {
			giveBack()
			return ws, err
		}
		select {
		case <-changed:
		case <-timer.C:
			giveBack()
			return ws, nil
		case <-ctx.Done():
			giveBack()
			return ws, api.From(ctx.Err())
		}
		giveBack()
	}
}

// workspaceKey is under what changes of a workspace are waited for.
func workspaceKey(id string) string { return "workspace/" + id }

// guestReady says why a workspace has no guest to talk to, nil when it has one.
func guestReady(ws store.Workspace) error {
	refuse := func(next string) error {
		return api.Errorf(api.FailedPrecondition, "workspace %s: it is %s", ws.Name, stateWord(ws.State)).WithNext(next, ws.Name)
	}
	const up, status = "vendetta workspace up %s", "vendetta workspace status %s"
	switch ws.State {
	case vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING:
		return nil
	case vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING, vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN:
		return api.Errorf(api.Unavailable, "workspace %s: it is not up yet", ws.Name).WithNext(status+", then try again", ws.Name)
	case vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED:
		e := api.Errorf(api.FailedPrecondition, "workspace %s: it failed: %s", ws.Name, ws.Message)
		if ws.Next != "" {
			return e.WithNext("%s", ws.Next)
		}
		return e.WithNext(up, ws.Name)
	case vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING:
		return refuse(status)
	case vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED:
		return refuse("vendetta workspace resume %s")
	default:
		return refuse(up)
	}
}
