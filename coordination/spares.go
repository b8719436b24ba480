package coordination

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// A spare is a workspace that runs without a name until a create takes it: its
// record then becomes the user's, and the instance goes on as it is. Nothing
// that users see counts spares, except the status of their node.

// verbSpare makes a spare. Its principal is the server.
const verbSpare = "spare"

// mostSpares of one kind, and mostSpareKinds, a node keeps.
const (
	mostSpares     = 64
	mostSpareKinds = 16
)

// spareName is the name of a spare's record: none that a user could give.
func spareName(id string) string { return "spare:" + id }

// nameOnNode is a workspace's name for the node agent, which makes the host name
// of it.
func nameOnNode(ws store.Workspace) string {
	if ws.Spare {
		return "spare-" + ws.ID
	}
	return ws.Name
}

// withoutSpares returns the workspaces that are not spares.
func withoutSpares(list []store.Workspace) []store.Workspace {
	return slices.DeleteFunc(list, func(ws store.Workspace) bool { return ws.Spare })
}

// spareKind is what makes spares equal.
type spareKind struct{ provider, image string }

func kindOf(spec *vendettav1.WorkspaceSpec) spareKind {
	return spareKind{spec.GetProvider(), spec.GetImage()}
}

func kindOfSetting(s store.Spares) spareKind { return spareKind{s.Provider, s.Image} }

func (k spareKind) spec() *vendettav1.WorkspaceSpec {
	return &vendettav1.WorkspaceSpec{Provider: k.provider, Image: k.image}
}

// plainSpec tells whether a spec asks for nothing that a spare does not have:
// the provider's defaults.
func plainSpec(spec *vendettav1.WorkspaceSpec) bool {
	r := spec.GetResources()
	return r.GetCpus() == 0 && r.GetMemoryBytes() == 0 && r.GetPids() == 0 && r.GetDiskBytes() == 0 &&
		(spec.GetNetwork() == vendettav1.Network_NETWORK_UNSPECIFIED || spec.GetNetwork() == vendettav1.Network_NETWORK_PRIVATE) &&
		!spec.GetPrivileged() && spec.GetChecksum() == ""
}

// fits tells whether a spare is what a create of this spec wants.
func fits(spare store.Workspace, spec *vendettav1.WorkspaceSpec) bool {
	return ready(spare) && kindOf(spare.Spec) == kindOf(spec) && plainSpec(spec)
}

// ready tells whether a spare runs, by the store's word.
func ready(ws store.Workspace) bool {
	return ws.Spare && ws.Desired == vendettav1.DesiredState_DESIRED_STATE_RUNNING &&
		ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
}

// spareMemory is what the server remembers of the nodes' spares. It is lost with
// the process: a new one tries at once what failed before.
type spareMemory struct {
	mu    sync.Mutex
	nodes map[string]*spareHistory
}

func (m *spareMemory) of(nodeID string) *spareHistory {
	if m.nodes == nil {
		m.nodes = map[string]*spareHistory{}
	}
	h := m.nodes[nodeID]
	if h == nil {
		h = &spareHistory{failures: map[spareKind]spareFailure{}}
		m.nodes[nodeID] = h
	}
	return h
}

// history returns a copy.
func (m *spareMemory) history(nodeID string) spareHistory {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := *m.of(nodeID)
	failures := make(map[spareKind]spareFailure, len(h.failures))
	for kind, f := range h.failures {
		failures[kind] = f
	}
	h.failures = failures
	return h
}

func (m *spareMemory) moved(nodeID string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(nodeID).moved = at
}

func (m *spareMemory) droppedOne(nodeID string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(nodeID).dropped = at
}

func (m *spareMemory) ended(nodeID string, kind spareKind, failure *api.Error, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.of(nodeID)
	if failure == nil {
		delete(h.failures, kind)
		return
	}
	h.failures[kind] = spareFailure{times: h.failures[kind].times + 1, at: at, message: clipMessage(failure.Message)}
}

func (m *spareMemory) forget(nodeID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.nodes, nodeID)
}

// nodeSpares gathers what a plan for a node is made of.
func (s *Server) nodeSpares(tx store.Tx, n store.Node, all []store.Workspace) (NodeSpares, error) {
	in := NodeSpares{
		Node: n, Settings: n.Spares, Operations: map[string]store.Operation{}, History: s.spareMemory.history(n.ID),
		Closed: n.Draining || n.State == vendettav1.NodeState_NODE_STATE_REMOVED || s.reserved(n.Name),
	}
	if link := s.linkTo(n.ID).view(); link.up {
		in.Report = link.report
	}
	for _, ws := range all {
		if !ws.Spare || ws.NodeID != n.ID {
			continue
		}
		op, err := tx.Operation(ws.OperationID)
		if err != nil {
			return in, err
		}
		in.Spares, in.Operations[op.ID] = append(in.Spares, ws), op
	}
	return in, nil
}

// reserved tells whether a node of this name is being added or removed.
func (s *Server) reserved(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joining[name]
}

// sparesView is what a node's status says of its spares.
func (s *Server) sparesView(tx store.Tx, n store.Node, all []store.Workspace) ([]*vendettav1.Spares, error) {
	if len(n.Spares) == 0 {
		return nil, nil
	}
	in, err := s.nodeSpares(tx, n, all)
	if err != nil {
		return nil, err
	}
	plan := PlanSpares(in, s.now())
	link := s.linkTo(n.ID)
	var views []*vendettav1.Spares
	for i, setting := range n.Spares {
		v := &vendettav1.Spares{Provider: setting.Provider, Image: setting.Image, Count: setting.Count, Message: plan.Messages[i]}
		for _, ws := range in.Spares {
			if kindOf(ws.Spec) == kindOfSetting(setting) && ready(ws) && in.Report != nil && link.linked(ws.ID) {
				v.Ready++
			}
		}
		views = append(views, v)
	}
	return views, nil
}

// lookAfterSpares makes and removes spares on all nodes and tells how long it is
// until one has to be looked at again, 0 for when something happens.
func (s *Server) lookAfterSpares(ctx context.Context) time.Duration {
	plans := map[string]SparePlan{}
	seen := map[string]string{} // the operation by which each spare was known
	err := s.store.View(ctx, func(tx store.Tx) error {
		nodes, err := tx.Nodes()
		if err != nil {
			return err
		}
		for _, n := range nodes {
			list, err := tx.Workspaces(n.ID)
			if err != nil {
				return err
			}
			in, err := s.nodeSpares(tx, n, list)
			if err != nil {
				return err
			}
			if len(in.Settings) == 0 && len(in.Spares) == 0 {
				continue
			}
			for _, ws := range in.Spares {
				seen[ws.ID] = ws.OperationID
			}
			plans[n.ID] = PlanSpares(in, s.now())
		}
		return nil
	})
	if err != nil {
		if ctx.Err() == nil {
			s.log.ErrorContext(ctx, "look after spares", "error", err)
		}
		return 0
	}
	var again time.Time
	for nodeID, plan := range plans {
		for _, id := range plan.Remove {
			if _, err := s.removeSpare(ctx, id, seen[id]); err != nil {
				s.log.ErrorContext(ctx, "remove spare", "workspace", id, "error", err)
			}
		}
		if plan.Dropped {
			s.log.WarnContext(ctx, "a spare is dropped: memory is short", "node", nodeID)
			s.spareMemory.droppedOne(nodeID, s.now())
		}
		if plan.Make != nil {
			if err := s.makeSpare(ctx, nodeID, *plan.Make); err != nil {
				s.log.ErrorContext(ctx, "make spare", "node", nodeID, "error", err)
			}
		}
		if !plan.Again.IsZero() {
			again = earlier(again, plan.Again)
		}
	}
	if again.IsZero() {
		return 0
	}
	return max(again.Sub(s.now()), time.Millisecond)
}

// errOvertaken: what was to be changed is not any more what was seen.
var errOvertaken = errors.New("overtaken")

// makeSpare accepts the creation of a spare and sends it on its way.
func (s *Server) makeSpare(ctx context.Context, nodeID string, setting store.Spares) error {
	id, err := s.newID(workspaceIDLength)
	if err != nil {
		return err
	}
	now := s.now()
	ws := store.Workspace{
		ID: id, Name: spareName(id), NodeID: nodeID, Spec: kindOfSetting(setting).spec(), Spare: true,
		State: vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING, CreatedAt: now, UpdatedAt: now,
	}
	c := change{verb: verbSpare, desired: vendettav1.DesiredState_DESIRED_STATE_RUNNING, principal: serverPrincipal}
	op, superseded, err := s.accept(ctx, c, func(tx store.Tx) (store.Workspace, bool, error) {
		n, err := tx.Node(nodeID)
		if errors.Is(err, store.ErrNotFound) ||
			err == nil && (n.Draining || n.State == vendettav1.NodeState_NODE_STATE_REMOVED || s.reserved(n.Name) || !slices.Contains(n.Spares, setting)) {
			err = errOvertaken
		}
		return ws, true, err
	}, &ws)
	if errors.Is(err, errOvertaken) {
		return nil
	}
	if err != nil {
		return err
	}
	s.spareMemory.moved(nodeID, now)
	s.dispatch(op, superseded)
	return nil
}

// removeSpare accepts the removal of a spare, unless a create has taken it or
// another change was quicker, and returns the operation.
func (s *Server) removeSpare(ctx context.Context, id, seen string) (operation string, err error) {
	c := change{
		verb: verbRemove, desired: vendettav1.DesiredState_DESIRED_STATE_REMOVED,
		state: vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING, principal: serverPrincipal,
	}
	var ws store.Workspace
	op, superseded, err := s.accept(ctx, c, func(tx store.Tx) (store.Workspace, bool, error) {
		now, err := tx.Workspace(id)
		if errors.Is(err, store.ErrNotFound) || err == nil && (!now.Spare || now.OperationID != seen) {
			err = errOvertaken
		}
		return now, false, err
	}, &ws)
	if errors.Is(err, errOvertaken) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s.dispatch(op, superseded)
	return op.ID, nil
}

// spareEnded takes note of how an operation on a spare ended.
func (s *Server) spareEnded(op store.Operation, ws store.Workspace, failure *api.Error) {
	if op.Verb == verbSpare {
		s.spareMemory.ended(op.NodeID, kindOf(ws.Spec), failure, s.now())
	}
	s.reconcileSoon()
}

// claim finds the spare that a create of spec takes on a node, the oldest that
// runs and whose guest answers. Transactions are serial, so no two creates find
// the same one.
func (s *Server) claim(tx store.Tx, nodeID string, spec *vendettav1.WorkspaceSpec) (spare store.Workspace, found bool, err error) {
	link := s.linkTo(nodeID).view()
	if !link.up || !plainSpec(spec) {
		return spare, false, nil
	}
	list, err := tx.Workspaces(nodeID)
	for _, ws := range list {
		if fits(ws, spec) && link.observed[ws.ID].GetLinked() && (!found || ws.CreatedAt.Before(spare.CreatedAt)) {
			spare, found = ws, true
		}
	}
	return spare, found, err
}

// SetSpares implements vendettav1connect.NodeServiceHandler. Spares are made and
// removed in the background.
func (s *Server) SetSpares(ctx context.Context, req *vendettav1.SetSparesRequest) (*vendettav1.Node, error) {
	setting := store.Spares{Provider: req.GetProvider(), Image: req.GetImage(), Count: req.GetCount()}
	if err := checkSpares(setting); err != nil {
		return nil, err
	}
	node, err := s.editNode(ctx, req.GetNode(), "set spares", func(n *store.Node) error {
		if link := s.linkTo(n.ID).view(); link.up && setting.Count > 0 {
			if err := providerUsable(candidate{name: n.Name, report: link.report}, setting.Provider); err != nil {
				return err
			}
		}
		n.Spares = slices.DeleteFunc(slices.Clone(n.Spares), func(have store.Spares) bool {
			return kindOfSetting(have) == kindOfSetting(setting)
		})
		if setting.Count == 0 {
			return nil
		}
		if len(n.Spares) >= mostSpareKinds {
			return api.Errorf(api.ResourceExhausted, "node %s: it keeps %d kinds of spares already", n.Name, len(n.Spares)).
				WithNext("set one of them to 0: vendetta node status %s", n.Name)
		}
		n.Spares = append(n.Spares, setting)
		return nil
	})
	if err == nil {
		s.reconcileSoon()
	}
	return node, err
}

// checkSpares refuses a setting that is none.
func checkSpares(setting store.Spares) error {
	switch {
	case setting.Provider == "":
		return api.Errorf(api.InvalidArgument, "set spares: no provider is named").WithNext("name one with --provider")
	case setting.Count < 0 || setting.Count > mostSpares:
		return api.Errorf(api.InvalidArgument, "set spares: %d are none", setting.Count).
			WithNext("use 0 to %d", mostSpares)
	}
	return checkSpec(kindOfSetting(setting).spec())
}

// dismissSpares removes the spares of a node that is about to be removed, and
// waits for it. It leaves them where the removal will be refused, or where
// nobody can be asked.
func (s *Server) dismissSpares(ctx context.Context, name string) error {
	var spares []store.Workspace
	err := s.store.View(ctx, func(tx store.Tx) error {
		n, err := findNode(tx, name)
		if err != nil {
			return err
		}
		list, err := tx.Workspaces(n.ID)
		if err != nil || !s.linkTo(n.ID).view().up || slices.ContainsFunc(list, func(ws store.Workspace) bool { return !ws.Spare }) {
			return err
		}
		spares = list
		return nil
	})
	if err != nil {
		return s.storeError(ctx, "rm node", err)
	}
	deadline := s.now().Add(uninstallCeiling)
	waiting := map[string]string{}
	for _, ws := range spares {
		op := ws.OperationID
		if ws.Desired != vendettav1.DesiredState_DESIRED_STATE_REMOVED {
			if op, err = s.removeSpare(ctx, ws.ID, op); err != nil {
				return s.storeError(ctx, "rm node", err)
			}
		}
		if op != "" {
			waiting[ws.ID] = op
		}
	}
	for id, opID := range waiting {
		op, err := s.waitOperation(ctx, opID, max(deadline.Sub(s.now()), 0))
		switch {
		case err != nil:
			return err
		case op.State == vendettav1.OperationState_OPERATION_STATE_SUCCEEDED:
		case op.State == vendettav1.OperationState_OPERATION_STATE_FAILED:
			return api.Errorf(api.Code(op.ErrorCode), "rm node %s: a spare on it could not be removed: %s", name, op.Message).
				WithNext("vendetta node logs %s, then repeat the command", name)
		default:
			return api.Errorf(api.Unavailable, "rm node %s: the spare %s on it is not removed yet", name, id).
				WithNext("repeat the command")
		}
	}
	return nil
}
