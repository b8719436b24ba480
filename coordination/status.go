package coordination

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	defaultAudit = 100
	mostAudit    = 1000
)

// ServerStatus implements vendettav1connect.ServerServiceHandler.
func (s *Server) ServerStatus(ctx context.Context, req *vendettav1.ServerStatusRequest) (*vendettav1.ServerStatusResponse, error) {
	if p := req.GetProtocol(); p != 0 {
		if _, err := api.Negotiate(p, p, "install the same version of vendetta here and for the server, then: vendetta server stop && vendetta server start"); err != nil {
			return nil, err
		}
	}
	resp := &vendettav1.ServerStatusResponse{
		Id:        s.id,
		Version:   s.opts.Version,
		Protocol:  api.Protocol,
		Pid:       int32(s.opts.PID),
		StartedAt: timestamppb.New(s.started),
		StateDir:  s.opts.StateDir,
		PublicKey: s.opts.PublicKey,
	}
	err := s.store.View(ctx, func(tx store.Tx) error {
		nodes, err := tx.Nodes()
		if err != nil {
			return err
		}
		workspaces, err := tx.Workspaces("")
		resp.Nodes, resp.Workspaces = int32(len(nodes)), int32(len(withoutSpares(workspaces)))
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, "server status", err)
	}
	return resp, nil
}

// Shutdown implements vendettav1connect.ServerServiceHandler.
func (s *Server) Shutdown(ctx context.Context, _ *vendettav1.ShutdownRequest) (*vendettav1.ShutdownResponse, error) {
	if s.opts.Shutdown == nil {
		return nil, api.Errorf(api.Unimplemented, "shut down: this server ends with the program that runs it")
	}
	s.log.InfoContext(ctx, "shut down", "principal", principalName(ctx))
	s.opts.Shutdown()
	return &vendettav1.ShutdownResponse{}, nil
}

// ListAudit implements vendettav1connect.ServerServiceHandler.
func (s *Server) ListAudit(ctx context.Context, req *vendettav1.ListAuditRequest) (*vendettav1.ListAuditResponse, error) {
	limit := int(req.GetLimit())
	if limit < 0 || req.GetAfter() < 0 {
		return nil, api.Errorf(api.InvalidArgument, "list audit: a negative number")
	}
	if limit == 0 {
		limit = defaultAudit
	}
	var entries []store.Audit
	err := s.store.View(ctx, func(tx store.Tx) (err error) {
		entries, err = tx.AuditAfter(req.GetAfter(), req.GetWorkspace(), min(limit, mostAudit))
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, "list audit", err)
	}
	resp := &vendettav1.ListAuditResponse{}
	for _, e := range entries {
		resp.Entries = append(resp.Entries, &vendettav1.AuditEntry{
			Seq: e.Seq, At: timestamppb.New(e.At), Principal: e.Principal, Method: e.Method, Workspace: e.Workspace, Fields: e.Fields,
		})
	}
	return resp, nil
}
