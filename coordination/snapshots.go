package coordination

import (
	"context"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// askCeiling bounds a question to a node agent, which waits itself while the
// workspace is worked on.
const askCeiling = 40 * time.Second

// CreateSnapshot implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) CreateSnapshot(ctx context.Context, req *vendettav1.CreateSnapshotRequest) (*vendettav1.ChangeResponse, error) {
	if err := checkName("snapshot", req.GetSnapshot()); err != nil {
		return nil, err
	}
	c := change{verb: verbSnapshotCreate, stays: true, argument: req.GetSnapshot(), key: req.GetIdempotencyKey()}
	return s.change(ctx, req.GetWorkspace(), c, func(ctx context.Context, ws store.Workspace) error {
		if err := s.ready(ws, capabilitySnapshot, "take a snapshot of"); err != nil {
			return err
		}
		names, err := s.snapshotNames(ctx, ws)
		if err != nil {
			return err
		}
		for _, name := range names {
			if name == req.GetSnapshot() {
				return api.Errorf(api.AlreadyExists, "take a snapshot of workspace %s: it has one named %s", ws.Name, name).
					WithNext("use another name, or vendetta workspace snapshot rm %s %s first", ws.Name, name)
			}
		}
		return nil
	})
}

// ListSnapshots implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) ListSnapshots(ctx context.Context, req *vendettav1.ListSnapshotsRequest) (*vendettav1.ListSnapshotsResponse, error) {
	ws, err := s.reachableWorkspace(ctx, "list the snapshots of", req.GetWorkspace())
	if err != nil {
		return nil, err
	}
	if err := s.able(ws, capabilitySnapshot, "list the snapshots of"); err != nil {
		return nil, err
	}
	list, err := s.snapshots(ctx, ws)
	if err != nil {
		return nil, err
	}
	return &vendettav1.ListSnapshotsResponse{Snapshots: list}, nil
}

// RestoreSnapshot implements vendettav1connect.WorkspaceServiceHandler. A failed
// workspace may be restored, too: that may be what mends it.
func (s *Server) RestoreSnapshot(ctx context.Context, req *vendettav1.RestoreSnapshotRequest) (*vendettav1.ChangeResponse, error) {
	if err := checkName("snapshot", req.GetSnapshot()); err != nil {
		return nil, err
	}
	c := change{
		verb: verbSnapshotRestore, stays: true, state: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING,
		argument: req.GetSnapshot(), key: req.GetIdempotencyKey(),
	}
	return s.change(ctx, req.GetWorkspace(), c, func(ctx context.Context, ws store.Workspace) error {
		const what = "restore a snapshot of"
		if err := s.able(ws, capabilitySnapshot, what); err != nil {
			return err
		}
		if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_DOWN {
			return noInstance(what, ws)
		}
		return s.hasSnapshot(ctx, what, ws, req.GetSnapshot())
	})
}

// RemoveSnapshot implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) RemoveSnapshot(ctx context.Context, req *vendettav1.RemoveSnapshotRequest) (*vendettav1.ChangeResponse, error) {
	if err := checkName("snapshot", req.GetSnapshot()); err != nil {
		return nil, err
	}
	c := change{verb: verbSnapshotRemove, stays: true, argument: req.GetSnapshot(), key: req.GetIdempotencyKey()}
	return s.change(ctx, req.GetWorkspace(), c, func(ctx context.Context, ws store.Workspace) error {
		const what = "remove a snapshot of"
		if err := s.able(ws, capabilitySnapshot, what); err != nil {
			return err
		}
		return s.hasSnapshot(ctx, what, ws, req.GetSnapshot())
	})
}

// hasSnapshot refuses a snapshot that is not there and names those that are.
func (s *Server) hasSnapshot(ctx context.Context, what string, ws store.Workspace, name string) error {
	names, err := s.snapshotNames(ctx, ws)
	if err != nil {
		return err
	}
	for _, have := range names {
		if have == name {
			return nil
		}
	}
	if len(names) == 0 {
		return api.Errorf(api.NotFound, "%s workspace %s: it has none named %s, and no other", what, ws.Name, name).
			WithNext("vendetta workspace snapshot create %s %s", ws.Name, name)
	}
	return api.Errorf(api.NotFound, "%s workspace %s: it has none named %s; there are %s", what, ws.Name, name, strings.Join(names, ", ")).
		WithNext("vendetta workspace snapshot list %s", ws.Name)
}

func (s *Server) snapshotNames(ctx context.Context, ws store.Workspace) ([]string, error) {
	list, err := s.snapshots(ctx, ws)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, one := range list {
		names[i] = one.GetName()
	}
	return names, nil
}

// snapshots asks the node for those that there are now.
func (s *Server) snapshots(ctx context.Context, ws store.Workspace) ([]*vendettav1.Snapshot, error) {
	var list []*vendettav1.Snapshot
	err := s.ask(ctx, "list the snapshots of", ws, func(ctx context.Context, l *link) error {
		resp, err := l.agent.ListSnapshots(ctx, &nodeagentv1.ListSnapshotsRequest{WorkspaceId: ws.ID})
		list = resp.GetSnapshots()
		return err
	})
	return list, err
}

// GetWorkspaceStats implements vendettav1connect.WorkspaceServiceHandler.
func (s *Server) GetWorkspaceStats(ctx context.Context, req *vendettav1.GetWorkspaceStatsRequest) (*vendettav1.WorkspaceStats, error) {
	ws, err := s.reachableWorkspace(ctx, "measure", req.GetName())
	if err != nil {
		return nil, err
	}
	switch ws.State {
	case vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING, vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED:
	default:
		return nil, guestReady(ws)
	}
	stats := &vendettav1.WorkspaceStats{Limits: ws.Spec.GetResources()}
	err = s.ask(ctx, "measure", ws, func(ctx context.Context, l *link) error {
		u, err := l.agent.Usage(ctx, &nodeagentv1.UsageRequest{WorkspaceId: ws.ID})
		stats.CpuSeconds, stats.MemoryBytes, stats.DiskBytes = u.GetCpuSeconds(), u.GetMemoryBytes(), u.GetDiskBytes()
		return err
	})
	if err != nil {
		return nil, err
	}
	return stats, nil
}

// reachableWorkspace reads a workspace whose node is up.
func (s *Server) reachableWorkspace(ctx context.Context, what, name string) (store.Workspace, error) {
	if err := s.awaitRun(ctx); err != nil {
		return store.Workspace{}, err
	}
	ws, node, _, err := s.workspace(ctx, name)
	if err != nil {
		return ws, err
	}
	if ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
		return ws, beingRemoved(ws)
	}
	if err := s.reachable(ctx, ws.NodeID, node); err != nil {
		return ws, s.lostChange(what, ws.Name, err)
	}
	return ws, nil
}

// ask puts a question about a workspace to its node agent.
func (s *Server) ask(ctx context.Context, what string, ws store.Workspace, question func(context.Context, *link) error) error {
	l := s.linkTo(ws.NodeID)
	if l == nil {
		return api.Errorf(api.Unavailable, "%s workspace %s: its node is being removed", what, ws.Name).WithNext("vendetta node list")
	}
	ctx, cancel := context.WithTimeout(ctx, askCeiling)
	defer cancel()
	err := question(ctx, l)
	if err == nil {
		return nil
	}
	e := api.From(err)
	if e.Next == "" {
		e = e.WithNext("vendetta workspace status %s, then repeat the command", ws.Name)
	}
	return e
}
