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
	ws, node, op, err := s.workspace(ctx, workspace)
	if err != nil {
		return "", nil, err
	}
	if err := s.reachable(ctx, ws.NodeID, node); err != nil {
		return "", nil, err
	}
	if op.State == vendettav1.OperationState_OPERATION_STATE_PENDING && ws.Desired == vendettav1.DesiredState_DESIRED_STATE_RUNNING &&
		ws.State != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING {
		if _, err := s.waitOperation(ctx, op.ID, guestPatience); err != nil {
			return "", nil, err
		}
		if ws, _, _, err = s.workspace(ctx, workspace); err != nil {
			return "", nil, err
		}
	}
	if err := guestReady(ws); err != nil {
		return "", nil, err
	}
	l := s.linkTo(ws.NodeID)
	if l == nil {
		return "", nil, api.Errorf(api.Unavailable, "node %s: it is being removed", node).WithNext("vendetta node list")
	}
	if bulk {
		return ws.ID, l.bulk, nil
	}
	return ws.ID, l.guests, nil
}

// guestReady says why a workspace has no guest to talk to, nil when it has one.
func guestReady(ws store.Workspace) error {
	refuse := func(next string) error {
		return api.Errorf(api.FailedPrecondition, "workspace %s: it is %s", ws.Name, stateWord(ws.State)).WithNext(next, ws.Name)
	}
	const up, status = "vendetta workspace up %s", "vendetta workspace status %s"
	switch ws.State {
	case vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING:
		return nil
	case vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING:
		return api.Errorf(api.Unavailable, "workspace %s: it is not up yet", ws.Name).WithNext(status+", then try again", ws.Name)
	case vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED:
		e := api.Errorf(api.FailedPrecondition, "workspace %s: it failed: %s", ws.Name, ws.Message)
		if ws.Next != "" {
			return e.WithNext("%s", ws.Next)
		}
		return e.WithNext(up, ws.Name)
	case vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING:
		return refuse(status)
	default:
		return refuse(up)
	}
}
