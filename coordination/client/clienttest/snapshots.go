package clienttest

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// found runs fn on a workspace under the server's lock.
func (h workspaces) found(name string, fn func(*workspace) (*vendettav1.ChangeResponse, error)) (*vendettav1.ChangeResponse, error) {
	h.s.Lock()
	defer h.s.Unlock()
	w := h.s.workspaces[name]
	if w == nil {
		return nil, noWorkspace(name)
	}
	return fn(w)
}

func (h workspaces) PauseWorkspace(_ context.Context, r *vendettav1.PauseWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.change(r.Name, "pause", vendettav1.DesiredState_DESIRED_STATE_PAUSED)
}

func (h workspaces) ResumeWorkspace(_ context.Context, r *vendettav1.ResumeWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.found(r.Name, func(w *workspace) (*vendettav1.ChangeResponse, error) {
		if w.record.State != vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED {
			return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "resume workspace %s: it is not paused", r.Name).WithNext("vendetta workspace status %s", r.Name))
		}
		return h.s.operation(w.record, "resume", vendettav1.DesiredState_DESIRED_STATE_RUNNING), nil
	})
}

// ResizeWorkspace takes every limit; memory is said to be in effect later.
func (h workspaces) ResizeWorkspace(_ context.Context, r *vendettav1.ResizeWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.found(r.Name, func(w *workspace) (*vendettav1.ChangeResponse, error) {
		if r.Resources.GetDiskBytes() > 0 {
			return nil, api.ToConnect(api.Errorf(api.Unimplemented, "limit the disk of workspace %s: docker cannot do that on this node; qemu can", r.Name))
		}
		if w.record.Spec.Resources == nil {
			w.record.Spec.Resources = &vendettav1.Resources{}
		}
		proto.Merge(w.record.Spec.Resources, r.Resources)
		resp := h.s.operation(w.record, "resize", w.record.Desired)
		if r.Resources.GetMemoryBytes() > 0 {
			h.s.operations[resp.Operation.Id].Note = "the memory is in effect at the next start"
			resp.Operation.Note = h.s.operations[resp.Operation.Id].Note
		}
		return resp, nil
	})
}

func (h workspaces) ForkWorkspace(_ context.Context, r *vendettav1.ForkWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.found(r.Name, func(w *workspace) (*vendettav1.ChangeResponse, error) {
		if h.s.workspaces[r.Fork] != nil {
			return nil, api.ToConnect(api.Errorf(api.AlreadyExists, "fork workspace %s: workspace %s exists", r.Name, r.Fork))
		}
		fork := h.s.add(&vendettav1.CreateWorkspaceRequest{Name: r.Fork, Node: w.record.Node, Spec: proto.CloneOf(w.record.Spec)})
		op := h.s.operations[fork.record.Operation]
		op.Verb = "fork"
		return &vendettav1.ChangeResponse{Workspace: proto.CloneOf(fork.record), Operation: proto.CloneOf(op)}, nil
	})
}

func (w *workspace) snapshot(name string) int {
	return slices.IndexFunc(w.snapshots, func(s *vendettav1.Snapshot) bool { return s.Name == name })
}

func noSnapshot(workspace, name string) error {
	return api.ToConnect(api.Errorf(api.NotFound, "workspace %s: it has no snapshot %s", workspace, name).WithNext("vendetta workspace snapshot list %s", workspace))
}

func (h workspaces) CreateSnapshot(_ context.Context, r *vendettav1.CreateSnapshotRequest) (*vendettav1.ChangeResponse, error) {
	return h.found(r.Workspace, func(w *workspace) (*vendettav1.ChangeResponse, error) {
		if w.snapshot(r.Snapshot) >= 0 {
			return nil, api.ToConnect(api.Errorf(api.AlreadyExists, "workspace %s: it has a snapshot %s", r.Workspace, r.Snapshot))
		}
		w.snapshots = append(w.snapshots, &vendettav1.Snapshot{Name: r.Snapshot, CreatedAt: timestamppb.Now(), Bytes: 5 << 20, Memory: len(w.snapshots) > 0})
		return h.s.operation(w.record, "snapshot-create", w.record.Desired), nil
	})
}

func (h workspaces) ListSnapshots(_ context.Context, r *vendettav1.ListSnapshotsRequest) (*vendettav1.ListSnapshotsResponse, error) {
	h.s.Lock()
	defer h.s.Unlock()
	w := h.s.workspaces[r.Workspace]
	if w == nil {
		return nil, noWorkspace(r.Workspace)
	}
	return &vendettav1.ListSnapshotsResponse{Snapshots: slices.Clone(w.snapshots)}, nil
}

func (h workspaces) RestoreSnapshot(_ context.Context, r *vendettav1.RestoreSnapshotRequest) (*vendettav1.ChangeResponse, error) {
	return h.found(r.Workspace, func(w *workspace) (*vendettav1.ChangeResponse, error) {
		if w.snapshot(r.Snapshot) < 0 {
			return nil, noSnapshot(r.Workspace, r.Snapshot)
		}
		return h.s.operation(w.record, "snapshot-restore", w.record.Desired), nil
	})
}

func (h workspaces) RemoveSnapshot(_ context.Context, r *vendettav1.RemoveSnapshotRequest) (*vendettav1.ChangeResponse, error) {
	return h.found(r.Workspace, func(w *workspace) (*vendettav1.ChangeResponse, error) {
		i := w.snapshot(r.Snapshot)
		if i < 0 {
			return nil, noSnapshot(r.Workspace, r.Snapshot)
		}
		w.snapshots = slices.Delete(w.snapshots, i, i+1)
		return h.s.operation(w.record, "snapshot-rm", w.record.Desired), nil
	})
}

// GetWorkspaceStats uses half a second of a processor between two measurements.
func (h workspaces) GetWorkspaceStats(_ context.Context, r *vendettav1.GetWorkspaceStatsRequest) (*vendettav1.WorkspaceStats, error) {
	h.s.Lock()
	defer h.s.Unlock()
	w := h.s.workspaces[r.Name]
	switch {
	case w == nil:
		return nil, noWorkspace(r.Name)
	case w.record.State != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING:
		return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "workspace %s: it is not running", r.Name).WithNext("vendetta workspace up %s", r.Name))
	}
	w.measured++
	return &vendettav1.WorkspaceStats{CpuSeconds: float64(w.measured) / 2, MemoryBytes: 64 << 20, DiskBytes: -1, Limits: w.record.Spec.GetResources()}, nil
}
