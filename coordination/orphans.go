package coordination

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	// orphanPatience is how long this server itself must have seen an orphan,
	// whatever a node's clock says of it.
	orphanPatience = time.Hour
	// orphanCeiling bounds the removal of one.
	orphanCeiling = 5 * time.Minute
)

// reportedOrphan is an orphan as a server knows it.
type reportedOrphan struct {
	orphan *vendettav1.Orphan
	// since is when this server first heard of it, on its own clock.
	since time.Time
}

// expiredOrphans decides which orphans go now: those that no workspace of the
// store has the id of, on whichever node, whose time is over, and that this
// server has known of for a while. known holds the ids of all workspaces;
// reported what the nodes that are up say, by node. It does no I/O.
func expiredOrphans(known map[string]bool, reported map[string][]reportedOrphan, now time.Time) map[string][]*vendettav1.Orphan {
	expired := map[string][]*vendettav1.Orphan{}
	for node, orphans := range reported {
		for _, o := range orphans {
			if known[o.orphan.GetWorkspaceId()] || o.orphan.GetWorkspaceId() == "" || !o.orphan.GetRemoveAt().IsValid() {
				continue
			}
			if now.Before(o.orphan.GetRemoveAt().AsTime()) || now.Sub(o.since) < orphanPatience {
				continue
			}
			expired[node] = append(expired[node], o.orphan)
		}
	}
	return expired
}

// unknownOrphans leaves those out that a workspace has the id of.
func unknownOrphans(tx store.Tx, report *vendettav1.NodeReport) (*vendettav1.NodeReport, error) {
	if len(report.GetOrphans()) == 0 {
		return report, nil
	}
	var left []*vendettav1.Orphan
	for _, o := range report.GetOrphans() {
		_, err := tx.Workspace(o.GetWorkspaceId())
		if errors.Is(err, store.ErrNotFound) {
			left = append(left, o)
		} else if err != nil {
			return nil, err
		}
	}
	report = proto.CloneOf(report)
	report.Orphans = left
	return report, nil
}

// orphanKey tells orphans of one node apart.
func orphanKey(o *vendettav1.Orphan) string { return o.GetProvider() + "/" + o.GetWorkspaceId() }

// hearOfOrphans keeps when each was first reported; l.mu is held.
func (l *link) hearOfOrphans(list []*vendettav1.Orphan) {
	since := make(map[string]time.Time, len(list))
	for _, o := range list {
		at, heard := l.orphans[orphanKey(o)]
		if !heard {
			at = l.server.now()
		}
		since[orphanKey(o)] = at
	}
	l.orphans = since
}

// reportedOrphans are those of a node that is up.
func (l *link) reportedOrphans() []reportedOrphan {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		return nil
	}
	var all []reportedOrphan
	for _, o := range l.report.GetOrphans() {
		all = append(all, reportedOrphan{o, l.orphans[orphanKey(o)]})
	}
	return all
}

// sweep sends the removal of orphans whose time is over.
func (s *Server) sweep(desired Desired) {
	known := map[string]bool{}
	for _, ws := range desired.Workspaces {
		known[ws.ID] = true
	}
	s.mu.Lock()
	links := maps.Clone(s.links)
	s.mu.Unlock()
	reported := map[string][]reportedOrphan{}
	for id, l := range links {
		if list := l.reportedOrphans(); len(list) > 0 {
			reported[id] = list
		}
	}
	expired := expiredOrphans(known, reported, s.now())
	if len(desired.Left) > 0 {
		for id, l := range links {
			expired[id] = append(expired[id], l.leftOn(desired.Left, known)...)
		}
	}
	for node, orphans := range expired {
		if len(orphans) > 0 {
			links[node].removeOrphans(orphans)
		}
	}
}

// removeOrphans removes them one after another, unless the last ones are still
// being removed.
func (l *link) removeOrphans(orphans []*vendettav1.Orphan) {
	s := l.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spawn == nil || l.sweeping != nil {
		return
	}
	l.sweeping = s.spawn(func(ctx context.Context) {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			l.sweeping()
			l.sweeping = nil
		}()
		for _, o := range orphans {
			if err := l.removeOrphan(ctx, o); err != nil {
				l.log.WarnContext(ctx, "orphan not removed", "provider", o.GetProvider(), "instance", o.GetInstance(), "error", err)
			}
		}
	})
}

// removeOrphan looks once more that no workspace has the id, puts the removal on
// record and sends it.
func (l *link) removeOrphan(ctx context.Context, o *vendettav1.Orphan) error {
	s := l.server
	ctx, cancel := context.WithTimeout(ctx, orphanCeiling)
	defer cancel()
	opID, err := s.newID(operationIDLength)
	if err != nil {
		return err
	}
	fields, err := json.Marshal(map[string]any{"node_id": l.nodeID, "provider": o.GetProvider(), "instance": o.GetInstance(), "operation": opID})
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.Workspace(o.GetWorkspaceId())
		if err == nil {
			return api.Errorf(api.Conflict, "remove orphan %s: a workspace has its id", o.GetInstance())
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		_, err = tx.AppendAudit(store.Audit{
			At: s.now(), Principal: serverPrincipal, Method: "orphan.rm", Workspace: o.GetWorkspaceId(), Fields: string(fields),
		})
		return err
	})
	if err != nil {
		return err
	}
	resp, err := l.agent.Apply(ctx, &nodeagentv1.ApplyRequest{
		OperationId: opID, WorkspaceId: o.GetWorkspaceId(), WorkspaceName: o.GetWorkspaceId(),
		// What was left behind has a generation there; a true orphan has none.
		Generation: l.view().observed[o.GetWorkspaceId()].GetGeneration() + 1,
		Desired:    vendettav1.DesiredState_DESIRED_STATE_REMOVED,
	})
	if err != nil {
		return err
	}
	if seen := resp.GetObserved(); seen.GetErrorCode() != "" {
		return api.Errorf(api.Code(seen.GetErrorCode()), "%s", seen.GetMessage())
	}
	l.observe(o.GetWorkspaceId(), nil)
	if err := s.store.Update(ctx, func(tx store.Tx) error { return foundAgain(tx, o.GetWorkspaceId()) }); err != nil {
		return err
	}
	l.log.InfoContext(ctx, "orphan removed", "provider", o.GetProvider(), "instance", o.GetInstance())
	return nil
}
