package clienttest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
)

// AddNode adds a ready node with a usable docker.
func (s *Server) AddNode(name string) *vendettav1.Node {
	n := &vendettav1.Node{
		Id: "n-" + name, Name: name, State: vendettav1.NodeState_NODE_STATE_READY, Address: &vendettav1.NodeAddress{Host: "192.0.2.7", User: "dev"},
		Labels: map[string]string{"zone": "a", "arch": "amd64"}, LastHeartbeat: timestamppb.Now(),
		Report: &vendettav1.NodeReport{
			Hostname: name, Os: "linux", Arch: "amd64", Kernel: "6.1", AgentVersion: "dev",
			Capacity:  &vendettav1.Capacity{Cpus: 4, MemoryBytes: 8 << 30, MemoryFreeBytes: 4 << 30, DiskBytes: 100 << 30, DiskFreeBytes: 50 << 30},
			Providers: []*vendettav1.ProviderStatus{{Name: "docker", Usable: true, Version: "28.0"}, {Name: "native", Reason: "user namespaces are restricted", Fix: "sudo sysctl kernel.unprivileged_userns_clone=1"}},
		},
	}
	s.Lock()
	defer s.Unlock()
	s.Nodes = append(s.Nodes, n)
	return n
}

// AddWorkspace adds a running workspace whose files lie in a folder of the test.
func (s *Server) AddWorkspace(t testing.TB, name string) *Guest {
	t.Helper()
	s.Lock()
	s.add(&vendettav1.CreateWorkspaceRequest{Name: name, Node: "build1", Spec: &vendettav1.WorkspaceSpec{Provider: "docker", Image: "debian:12"}})
	s.settle(s.workspaces[name].record.Operation)
	s.Unlock()
	return s.Guest(t, name)
}

// SetState overrules a workspace's state.
func (s *Server) SetState(name string, state vendettav1.WorkspaceState, message string) {
	s.Lock()
	defer s.Unlock()
	w := s.workspaces[name].record
	w.State, w.Message = state, message
}

// Release lets held operations end; failure makes them fail with that message.
func (s *Server) Release(failure string) {
	s.Lock()
	defer s.Unlock()
	s.Hold = false
	for _, op := range s.operations {
		if op.State == vendettav1.OperationState_OPERATION_STATE_PENDING {
			s.settle(op.Id)
			if failure != "" {
				op.State, op.ErrorCode, op.Message, op.Next = vendettav1.OperationState_OPERATION_STATE_FAILED, "not_found", failure, "name another image"
				w := s.workspaces[op.Workspace].record
				w.State, w.Message, w.Next = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED, failure, op.Next
			}
		}
	}
}

func (s *Server) add(r *vendettav1.CreateWorkspaceRequest) *workspace {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		panic(err)
	}
	s.owner.Go(func() {
		<-s.ctx.Done()
		_ = os.RemoveAll(dir)
	})
	w := &workspace{record: &vendettav1.Workspace{
		Id: "w-" + r.Name, Name: r.Name, Node: cmp.Or(r.Node, "build1"), Spec: r.Spec, State: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING,
		Generation: 1, CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now(), Instance: "vendetta-" + r.Name,
	}}
	w.guest = newGuest(s, dir)
	s.workspaces[r.Name] = w
	s.operation(w.record, "create", vendettav1.DesiredState_DESIRED_STATE_RUNNING)
	return w
}

// operation accepts a change and, unless held, does it at once.
func (s *Server) operation(w *vendettav1.Workspace, verb string, desired vendettav1.DesiredState) *vendettav1.ChangeResponse {
	s.nextID++
	op := &vendettav1.Operation{
		Id: fmt.Sprintf("op%d", s.nextID), Workspace: w.Name, WorkspaceId: w.Id, Verb: verb,
		State: vendettav1.OperationState_OPERATION_STATE_PENDING, CreatedAt: timestamppb.Now(),
	}
	s.operations[op.Id] = op
	w.Operation, w.Desired = op.Id, desired
	if !s.Hold {
		s.settle(op.Id)
	}
	return &vendettav1.ChangeResponse{Workspace: proto.CloneOf(w), Operation: proto.CloneOf(op)}
}

func (s *Server) settle(id string) {
	op := s.operations[id]
	op.State, op.FinishedAt = vendettav1.OperationState_OPERATION_STATE_SUCCEEDED, timestamppb.Now()
	if w := s.workspaces[op.Workspace]; w != nil {
		switch w.record.Desired {
		case vendettav1.DesiredState_DESIRED_STATE_RUNNING:
			w.record.State = vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
		case vendettav1.DesiredState_DESIRED_STATE_PAUSED:
			w.record.State = vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED
		case vendettav1.DesiredState_DESIRED_STATE_STOPPED:
			w.record.State = vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED
		case vendettav1.DesiredState_DESIRED_STATE_DOWN:
			w.record.State = vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN
		case vendettav1.DesiredState_DESIRED_STATE_REMOVED:
			delete(s.workspaces, op.Workspace)
		case vendettav1.DesiredState_DESIRED_STATE_UNSPECIFIED:
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func noWorkspace(name string) error {
	return api.ToConnect(api.Errorf(api.NotFound, "workspace %s: there is none of that name", name).WithNext("see which there are: vendetta workspace list"))
}

type workspaces struct{ s *Server }

func (h workspaces) CreateWorkspace(_ context.Context, r *vendettav1.CreateWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	h.s.Lock()
	defer h.s.Unlock()
	if r.Name == "bad" {
		return nil, api.ToConnect(api.Errorf(api.InvalidArgument, "create bad: that is no name"))
	}
	if w := h.s.workspaces[r.Name]; w != nil {
		return nil, api.ToConnect(api.Errorf(api.AlreadyExists, "create %s: a workspace of that name exists", r.Name))
	}
	w := h.s.add(r)
	return &vendettav1.ChangeResponse{Workspace: proto.CloneOf(w.record), Operation: proto.CloneOf(h.s.operations[w.record.Operation]), Note: "node build1: the only one"}, nil
}

func (h workspaces) GetWorkspace(_ context.Context, r *vendettav1.GetWorkspaceRequest) (*vendettav1.Workspace, error) {
	h.s.Lock()
	defer h.s.Unlock()
	if w := h.s.workspaces[r.Name]; w != nil {
		return proto.CloneOf(w.record), nil
	}
	return nil, noWorkspace(r.Name)
}

func (h workspaces) ListWorkspaces(_ context.Context, r *vendettav1.ListWorkspacesRequest) (*vendettav1.ListWorkspacesResponse, error) {
	h.s.Lock()
	defer h.s.Unlock()
	out := &vendettav1.ListWorkspacesResponse{}
	for _, w := range h.s.workspaces {
		if r.Node == "" || r.Node == w.record.Node {
			out.Workspaces = append(out.Workspaces, proto.CloneOf(w.record))
		}
	}
	slices.SortFunc(out.Workspaces, func(a, b *vendettav1.Workspace) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (h workspaces) change(name, verb string, desired vendettav1.DesiredState) (*vendettav1.ChangeResponse, error) {
	h.s.Lock()
	defer h.s.Unlock()
	w := h.s.workspaces[name]
	if w == nil {
		return nil, noWorkspace(name)
	}
	return h.s.operation(w.record, verb, desired), nil
}

func (h workspaces) UpWorkspace(_ context.Context, r *vendettav1.UpWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.change(r.Name, "up", vendettav1.DesiredState_DESIRED_STATE_RUNNING)
}

func (h workspaces) StopWorkspace(_ context.Context, r *vendettav1.StopWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.change(r.Name, "stop", vendettav1.DesiredState_DESIRED_STATE_STOPPED)
}

func (h workspaces) DownWorkspace(_ context.Context, r *vendettav1.DownWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	return h.change(r.Name, "down", vendettav1.DesiredState_DESIRED_STATE_DOWN)
}

func (h workspaces) RemoveWorkspace(_ context.Context, r *vendettav1.RemoveWorkspaceRequest) (*vendettav1.ChangeResponse, error) {
	h.s.Lock()
	w := h.s.workspaces[r.Name]
	dirty := w != nil && w.guest.dirty()
	h.s.Unlock()
	if dirty && !r.Force {
		return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "rm %s: changes exist only there: a.txt", r.Name).WithNext("keep them, or remove all the same with force"))
	}
	return h.change(r.Name, "rm", vendettav1.DesiredState_DESIRED_STATE_REMOVED)
}

type operations struct {
	vendettav1connect.UnimplementedOperationServiceHandler
	server *Server
}

func (h operations) WaitOperation(ctx context.Context, r *vendettav1.WaitOperationRequest) (*vendettav1.Operation, error) {
	over := time.NewTimer(time.Duration(r.Seconds) * time.Second)
	defer over.Stop()
	for {
		h.server.Lock()
		op, changed := h.server.operations[r.Id], h.server.changed
		var seen *vendettav1.Operation
		if op != nil {
			seen = proto.CloneOf(op)
		}
		h.server.Unlock()
		if seen == nil {
			return nil, api.ToConnect(api.Errorf(api.NotFound, "operation %s: there is none", r.Id))
		}
		if seen.State != vendettav1.OperationState_OPERATION_STATE_PENDING {
			return seen, nil
		}
		select {
		case <-changed:
		case <-over.C:
			return seen, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type nodes struct {
	vendettav1connect.UnimplementedNodeServiceHandler
	server *Server
}

func (h nodes) ListNodes(context.Context, *vendettav1.ListNodesRequest) (*vendettav1.ListNodesResponse, error) {
	h.server.Lock()
	defer h.server.Unlock()
	return &vendettav1.ListNodesResponse{Nodes: h.server.Nodes}, nil
}

func (h nodes) GetNode(_ context.Context, r *vendettav1.GetNodeRequest) (*vendettav1.Node, error) {
	h.server.Lock()
	defer h.server.Unlock()
	for _, n := range h.server.Nodes {
		if n.Name == r.Name {
			return n, nil
		}
	}
	return nil, api.ToConnect(api.Errorf(api.NotFound, "node %s: there is none of that name", r.Name))
}
