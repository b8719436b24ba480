package nodeagent

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
)

// service answers vendetta.nodeagent.v1.NodeAgentService.
type service struct {
	agent *Agent
}

// intervalLimit bounds the seconds between two reports that a server may ask for.
const intervalLimit = 3600

func (s *service) Hello(ctx context.Context, r *nodeagentv1.HelloRequest) (*nodeagentv1.HelloResponse, error) {
	protocol, err := api.Negotiate(r.GetProtocolMin(), r.GetProtocolMax(),
		"vendetta node add with the node's name and address again: it brings the node's agent to the server's version")
	if err != nil {
		return nil, api.ToConnect(err)
	}
	server, err := s.agent.server(serverOf(ctx))
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return &nodeagentv1.HelloResponse{Protocol: protocol, Version: s.agent.options.Version, Report: server.report(ctx, true)}, nil
}

func (s *service) Apply(ctx context.Context, r *nodeagentv1.ApplyRequest) (*nodeagentv1.ApplyResponse, error) {
	if err := validateApply(r); err != nil {
		return nil, api.ToConnect(err)
	}
	server, err := s.agent.server(serverOf(ctx))
	if err != nil {
		return nil, api.ToConnect(err)
	}
	select {
	case <-s.agent.stopping:
		return nil, api.ToConnect(api.Errorf(api.Unavailable, "apply to workspace %s: the node agent is shutting down", r.GetWorkspaceName()))
	default:
	}
	for {
		observed, err := server.workspace(r.GetWorkspaceId()).apply(ctx, r)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, api.ToConnect(err)
		}
		return &nodeagentv1.ApplyResponse{Observed: observed}, nil
	}
}

func (s *service) ListSnapshots(ctx context.Context, r *nodeagentv1.ListSnapshotsRequest) (*nodeagentv1.ListSnapshotsResponse, error) {
	w, err := s.workspace(ctx, r.GetWorkspaceId())
	if err != nil {
		return nil, api.ToConnect(err)
	}
	list, err := w.snapshots(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return list, nil
}

func (s *service) Usage(ctx context.Context, r *nodeagentv1.UsageRequest) (*nodeagentv1.UsageResponse, error) {
	w, err := s.workspace(ctx, r.GetWorkspaceId())
	if err != nil {
		return nil, api.ToConnect(err)
	}
	usage, err := w.usage(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return usage, nil
}

// workspace finds the one that a question is about.
func (s *service) workspace(ctx context.Context, id string) (*workspace, error) {
	server, err := s.agent.server(serverOf(ctx))
	if err != nil {
		return nil, err
	}
	return server.known(id)
}

func (s *service) Watch(ctx context.Context, r *nodeagentv1.WatchRequest, stream *connect.ServerStream[nodeagentv1.WatchResponse]) error {
	server, err := s.agent.server(serverOf(ctx))
	if err != nil {
		return api.ToConnect(err)
	}
	interval := s.agent.timing.interval
	if seconds := r.GetIntervalSeconds(); seconds > 0 {
		interval = time.Duration(min(seconds, intervalLimit)) * time.Second
	}
	for ctx.Err() == nil {
		// Taken before the report is made, so that no change falls between.
		changes := server.changes()
		if err := stream.Send(server.heartbeat(ctx)); err != nil {
			return err
		}
		timer := time.NewTimer(interval)
		select {
		case <-changes:
		case <-timer.C:
		case <-ctx.Done():
		case <-s.agent.stopping:
			timer.Stop()
			return api.ToConnect(api.Errorf(api.Unavailable, "watch the node: its agent is shutting down"))
		}
		timer.Stop()
	}
	return ctx.Err()
}

func (s *service) Logs(ctx context.Context, r *nodeagentv1.LogsRequest, stream *connect.ServerStream[nodeagentv1.LogsResponse]) error {
	send := func(data []byte) error { return stream.Send(&nodeagentv1.LogsResponse{Data: data}) }
	if err := readLog(ctx, s.agent.options.StateDir, int(r.GetTail()), r.GetFollow(), s.agent.timing.follow, send); err != nil {
		return api.ToConnect(err)
	}
	return nil
}

func (s *service) Shutdown(_ context.Context, r *nodeagentv1.ShutdownRequest) (*nodeagentv1.ShutdownResponse, error) {
	if r.GetUninstall() {
		if n := s.agent.workspaces(); n > 0 {
			return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "uninstall the node agent: %d workspaces are on this node", n).
				WithNext("remove them with vendetta workspace rm; other servers may have some here, too"))
		}
		s.agent.uninstall.Store(true)
	}
	s.agent.log.Info("shutdown was asked for", "uninstall", r.GetUninstall())
	s.agent.stop()
	return &nodeagentv1.ShutdownResponse{}, nil
}
