package coordination

import (
	"context"
	"errors"
	"fmt"
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

const (
	// mostSpares of one kind, and mostSpareKinds, a node keeps.
	mostSpares     = 64
	mostSpareKinds = 16
	// spareInterval is the shortest time from the beginning of one spare, or from
	// a create that took one, to the beginning of the next on that node: what users
	// do there comes first.
	spareInterval = time.Second
	// spareRetry is the pause after a spare that failed; it doubles up to
	// spareRetryMost.
	spareRetry     = 10 * time.Second
	spareRetryMost = 10 * time.Minute
	// spareRemovals is how many are removed at the same time on one node.
	spareRemovals = 2
	// One spare is dropped while less than a tenth of the node's memory is free,
	// and none is made while less than a seventh is: between the two lies what
	// one more would take, so that they do not come and go.
	memoryShort  = 10
	memoryEnough = 7
	// dropInterval lets a node report what a dropped spare gave back.
	dropInterval = 2 * heartbeatInterval
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

// NodeSpares is what is known of a node when its spares are looked after.
type NodeSpares struct {
	Node     store.Node
	Settings []store.Spares
	// Spares of the node, those on their way out included.
	Spares []store.Workspace
	// Operations holds the latest operation of each spare, by its id.
	Operations map[string]store.Operation
	// Report is nil while the node cannot be reached.
	Report *vendettav1.NodeReport
	// Closed: the node drains or is being removed, so it keeps none.
	Closed bool
	// History is what earlier attempts have left.
	History spareHistory
}

// spareHistory is what is remembered of a node's spares.
type spareHistory struct {
	// moved is when the last one was begun or taken, dropped when one was last
	// given up for want of memory.
	moved, dropped time.Time
	failures       map[spareKind]spareFailure
}

// spareFailure is how often in a row spares of a kind failed, and the last time.
type spareFailure struct {
	times   int
	at      time.Time
	message string
}

// until is when the next attempt may be made.
func (f spareFailure) until() time.Time {
	if f.times == 0 {
		return time.Time{}
	}
	return f.at.Add(min(spareRetry<<min(f.times-1, 10), spareRetryMost))
}

// SparePlan is what is to be done about the spares of a node.
type SparePlan struct {
	// Make is the kind of which one more is to be made now, if there is one.
	Make *store.Spares
	// Remove are the spares that are to go now.
	Remove []string
	// Dropped: one of them goes for want of memory.
	Dropped bool
	// Again is when to look again, if nothing happens earlier; zero for never.
	Again time.Time
	// Messages say for each setting why there are fewer, "" where that needs no
	// word.
	Messages []string
}

// PlanSpares decides what to do about the spares of a node. It does no I/O and
// remembers nothing: the same input gives the same plan. It touches nothing but
// spares, makes one at a time, and nothing at all on a node that is out of reach.
func PlanSpares(n NodeSpares, now time.Time) SparePlan {
	p := SparePlan{Messages: make([]string, len(n.Settings))}
	if n.Report == nil {
		for i, s := range n.Settings {
			if s.Count > 0 {
				p.Messages[i] = "the node cannot be reached"
			}
		}
		return p
	}
	v := newSpareView(n)
	v.removeExcess(&p)
	if n.Closed {
		for i := range n.Settings {
			p.Messages[i] = "the node is draining"
		}
		return p
	}
	v.dropForMemory(&p, now)
	v.makeMissing(&p, now)
	return p
}

// spareView is the working state of one plan.
type spareView struct {
	NodeSpares
	wanted map[spareKind]int
	// alive are the spares that are to stay, by kind, the oldest first.
	alive    map[spareKind][]store.Workspace
	making   int
	removing int
}

func newSpareView(n NodeSpares) *spareView {
	v := &spareView{NodeSpares: n, wanted: map[spareKind]int{}, alive: map[spareKind][]store.Workspace{}}
	for _, s := range n.Settings {
		if !n.Closed {
			v.wanted[kindOfSetting(s)] += int(s.Count)
		}
	}
	spares := slices.Clone(n.Spares)
	slices.SortStableFunc(spares, func(a, b store.Workspace) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, ws := range spares {
		pending := v.operation(ws).State == vendettav1.OperationState_OPERATION_STATE_PENDING
		switch {
		case ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED:
			if pending {
				v.removing++
			}
			continue
		case pending:
			v.making++
		}
		kind := kindOf(ws.Spec)
		v.alive[kind] = append(v.alive[kind], ws)
	}
	return v
}

func (v *spareView) operation(ws store.Workspace) store.Operation {
	return v.Operations[ws.OperationID]
}

// remove takes a spare out, if there is room for another removal.
func (v *spareView) remove(p *SparePlan, kind spareKind, i int) {
	ws := v.alive[kind][i]
	v.alive[kind] = slices.Delete(v.alive[kind], i, i+1)
	if v.removing >= spareRemovals {
		return // the end of one that is under way calls for the next
	}
	v.removing++
	p.Remove = append(p.Remove, ws.ID)
}

// removeExcess removes the spares that failed and those beyond what is wanted,
// the newest first.
func (v *spareView) removeExcess(p *SparePlan) {
	for _, kind := range v.kinds() {
		for i := len(v.alive[kind]) - 1; i >= 0; i-- {
			if v.failed(v.alive[kind][i]) {
				v.remove(p, kind, i)
			}
		}
		for len(v.alive[kind]) > v.wanted[kind] {
			v.remove(p, kind, len(v.alive[kind])-1)
		}
	}
}

// failed tells whether a spare never came up, or died and could not be brought
// back.
func (v *spareView) failed(ws store.Workspace) bool {
	return v.operation(ws).State == vendettav1.OperationState_OPERATION_STATE_FAILED ||
		ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED && ws.ErrorCode != ""
}

// kinds in an order that does not depend on a map's.
func (v *spareView) kinds() []spareKind {
	var kinds []spareKind
	for _, ws := range v.Spares {
		if k := kindOf(ws.Spec); !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// free tells whether at least one part in so many of the memory is free. A node
// that does not say how much it has is taken at its best.
func (v *spareView) free(part uint64) bool {
	c := v.Report.GetCapacity()
	return c.GetMemoryBytes() == 0 || c.GetMemoryFreeBytes() >= c.GetMemoryBytes()/part
}

// dropForMemory gives one spare up while memory is short: one of the kind that
// has the most.
func (v *spareView) dropForMemory(p *SparePlan, now time.Time) {
	if v.free(memoryShort) {
		return
	}
	if next := v.History.dropped.Add(dropInterval); now.Before(next) {
		p.Again = earlier(p.Again, next)
		return
	}
	var most spareKind
	for _, kind := range v.kinds() {
		if len(v.alive[kind]) > len(v.alive[most]) {
			most = kind
		}
	}
	if n := len(v.alive[most]); n > 0 {
		before := len(p.Remove)
		v.remove(p, most, n-1)
		p.Dropped = len(p.Remove) > before
	}
}

// makeMissing chooses what is made next and says what keeps the rest from it.
func (v *spareView) makeMissing(p *SparePlan, now time.Time) {
	at := candidate{name: v.Node.Name, report: v.Report}
	for i, s := range v.Settings {
		kind := kindOfSetting(s)
		if len(v.alive[kind]) >= int(s.Count) {
			continue
		}
		failure := v.History.failures[kind]
		switch err := providerUsable(at, s.Provider); {
		case err != nil:
			p.Messages[i] = unprefixed(at.name, err.Error())
			continue
		case !v.free(memoryEnough):
			c := v.Report.GetCapacity()
			p.Messages[i] = fmt.Sprintf("memory is short: %.1f GiB free of %.1f GiB",
				float64(c.GetMemoryFreeBytes())/(1<<30), float64(c.GetMemoryBytes())/(1<<30))
			continue
		case failure.times > 0:
			p.Messages[i] = failure.message
		}
		next := v.History.moved.Add(spareInterval)
		if until := failure.until(); until.After(next) {
			next = until
		}
		switch {
		case now.Before(next):
			p.Again = earlier(p.Again, next)
		case p.Make == nil && v.making == 0:
			p.Make = &s
		}
	}
}

// earlier is the earlier of two moments of which the first may be none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
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
	l := s.linkTo(nodeID)
	if l == nil || !plainSpec(spec) {
		return spare, false, nil
	}
	list, err := tx.Workspaces(nodeID)
	for _, ws := range list {
		if fits(ws, spec) && l.linked(ws.ID) && (!found || ws.CreatedAt.Before(spare.CreatedAt)) {
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
