package coordination

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	// firstReport is how long an agent that was just started may take to report.
	firstReport = 30 * time.Second
	// uninstallCeiling bounds the work on a node that is removed.
	uninstallCeiling = time.Minute

	defaultTail = 100
	mostTail    = 100_000
)

// checkLogin refuses a login that is lent over anything but the server's own
// socket: its paths would mean other files than the caller's.
func checkLogin(ctx context.Context, login *vendettav1.Login) error {
	if login == nil || proto.Equal(login, &vendettav1.Login{}) || PrincipalFrom(ctx).Local {
		return nil
	}
	return api.Errorf(api.PermissionDenied, "login: keys, agents and passwords are taken over the server's own socket only").
		WithNext("run the command on the server's machine")
}

// ProbeNode implements vendettav1connect.NodeServiceHandler.
func (s *Server) ProbeNode(ctx context.Context, req *vendettav1.ProbeNodeRequest) (*vendettav1.ProbeNodeResponse, error) {
	if err := errors.Join(checkAddress(req.GetAddress()), checkFingerprints(req.GetAcceptedFingerprints()), checkLogin(ctx, req.GetLogin())); err != nil {
		return nil, api.From(err)
	}
	keys, err := s.opts.Installer.Probe(ctx, Target{
		Address: req.GetAddress(), HostKeys: req.GetAcceptedFingerprints(),
	}, req.GetLogin())
	if err != nil {
		return nil, api.From(err)
	}
	return &vendettav1.ProbeNodeResponse{HostKeys: keys}, nil
}

// reserve keeps two additions or removals of one name from crossing. The
// returned function ends the reservation.
func (s *Server) reserve(name string) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joining[name] {
		return nil, api.Errorf(api.Conflict, "node %s: it is being added or removed", name).WithNext("vendetta node status %s", name)
	}
	s.joining[name] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.joining, name)
	}, nil
}

// AddNode implements vendettav1connect.NodeServiceHandler. The record is made
// first, in state joining, so that whatever happens later is listed and can be
// removed. When the installation fails a new record goes again; when the agent
// was installed and stays silent the record stays.
func (s *Server) AddNode(ctx context.Context, req *vendettav1.AddNodeRequest) (*vendettav1.Node, error) {
	for _, err := range []error{
		checkName("node", req.GetName()),
		checkAddress(req.GetAddress()),
		checkFingerprints(req.GetAcceptedFingerprints()),
		checkLabels(req.GetLabels()),
		checkLogin(ctx, req.GetLogin()),
		s.awaitRun(ctx),
	} {
		if err != nil {
			return nil, err
		}
	}
	release, err := s.reserve(req.GetName())
	if err != nil {
		return nil, err
	}
	defer release()

	n, fresh, err := s.joiningNode(ctx, req)
	if err != nil {
		return nil, err
	}
	target, err := s.opts.Installer.Install(ctx, targetOf(n), req.GetLogin())
	if err != nil {
		s.log.WarnContext(ctx, "install node agent", "node", n.Name, "error", err)
		if fresh {
			s.dropNode(context.WithoutCancel(ctx), n.ID)
		}
		return nil, api.From(err)
	}
	n, err = s.installed(ctx, n.ID, target)
	if err != nil {
		return nil, err
	}
	l, err := s.openLink(n)
	if err != nil {
		return nil, err
	}
	if l.retarget(targetOf(n)) {
		s.opts.Dialer.Forget(n.ID) // what it keeps was made for another target
	}
	seen := l.renew()
	waitCtx, cancel := context.WithTimeout(ctx, firstReport)
	defer cancel()
	if err := l.awaitSession(waitCtx, seen); err != nil {
		return nil, api.Errorf(api.Unavailable, "add node %s: its agent is installed and does not answer: %s", n.Name,
			unprefixed(n.Name, api.From(err).Message)).
			WithNext("vendetta node test %s; vendetta node add again repairs it; vendetta node rm %s --force", n.Name, n.Name)
	}
	return s.node(ctx, n.Name)
}

// joiningNode finds the node that is to be repaired or makes a new record.
func (s *Server) joiningNode(ctx context.Context, req *vendettav1.AddNodeRequest) (n store.Node, fresh bool, err error) {
	id, err := s.newID(nodeIDLength)
	if err != nil {
		return n, false, api.From(err)
	}
	now := s.now()
	err = s.store.Update(ctx, func(tx store.Tx) error {
		fresh = false
		nodes, err := tx.Nodes()
		if err != nil {
			return err
		}
		for _, have := range nodes {
			same := sameAddress(have.Address, req.GetAddress())
			switch {
			case have.Name == req.GetName() && !same:
				return api.Errorf(api.AlreadyExists, "add node %s: it exists at %s", have.Name, addressArgument(have.Address)).
					WithNext("choose another name, or vendetta node rm %s first", have.Name)
			case have.Name != req.GetName() && same:
				return api.Errorf(api.AlreadyExists, "add node %s: that machine is node %s already", req.GetName(), have.Name).
					WithNext("vendetta node status %s", have.Name)
			case have.Name == req.GetName():
				n = repaired(have, req, now)
				return tx.UpdateNode(n)
			}
		}
		fresh = true
		n = store.Node{
			ID: id, Name: req.GetName(), Address: proto.CloneOf(req.GetAddress()), Labels: maps.Clone(req.GetLabels()),
			State:   vendettav1.NodeState_NODE_STATE_JOINING,
			Message: "its node agent is being installed; if that was interrupted, add the node again or remove it",
			// The order is the caller's; an installer looks each one up.
			HostKeys: slices.Clone(req.GetAcceptedFingerprints()), CreatedAt: now, UpdatedAt: now,
		}
		return tx.CreateNode(n)
	})
	if err != nil {
		return n, false, s.storeError(ctx, "add node", err)
	}
	return n, fresh, nil
}

// repaired is a node that is added again.
func repaired(n store.Node, req *vendettav1.AddNodeRequest, now time.Time) store.Node {
	for _, p := range req.GetAcceptedFingerprints() {
		if !slices.Contains(n.HostKeys, p) {
			n.HostKeys = append(n.HostKeys, p)
		}
	}
	if len(req.GetLabels()) > 0 {
		n.Labels = maps.Clone(n.Labels)
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		maps.Copy(n.Labels, req.GetLabels())
	}
	if req.GetAddress().GetIdentity() != "" {
		n.Address = proto.CloneOf(n.Address)
		n.Address.Identity = req.GetAddress().GetIdentity()
	}
	if n.State == vendettav1.NodeState_NODE_STATE_REMOVED { // its removal was interrupted
		n.State = vendettav1.NodeState_NODE_STATE_JOINING
	}
	n.UpdatedAt = now
	return n
}

// sameAddress compares what the user gave, not what was learned since.
func sameAddress(a, b *vendettav1.NodeAddress) bool {
	return a.GetLocal() == b.GetLocal() && a.GetHost() == b.GetHost() && a.GetUser() == b.GetUser() &&
		a.GetPort() == b.GetPort() && slices.Equal(a.GetJump(), b.GetJump())
}

// installed records what the installation learned.
func (s *Server) installed(ctx context.Context, id string, target Target) (n store.Node, err error) {
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if n, err = tx.Node(id); err != nil {
			return err
		}
		n.Address, n.UpdatedAt = target.Address, s.now()
		if len(target.HostKeys) > 0 {
			n.HostKeys = target.HostKeys
		}
		if n.State == vendettav1.NodeState_NODE_STATE_JOINING {
			n.Message = "its node agent was installed and has not reported yet"
		}
		return tx.UpdateNode(n)
	})
	if err != nil {
		return n, s.storeError(ctx, "add node", err)
	}
	return n, nil
}

// dropNode deletes a record and whatever is kept for the node.
func (s *Server) dropNode(ctx context.Context, id string) {
	if err := s.store.Update(ctx, func(tx store.Tx) error { return tx.DeleteNode(id) }); err != nil {
		s.log.ErrorContext(ctx, "delete node", "error", err)
	}
	s.opts.Dialer.Forget(id)
}

// recordNode writes a change of a node's state.
func (s *Server) recordNode(ctx context.Context, id string, state vendettav1.NodeState, message string, report *vendettav1.NodeReport) {
	err := s.store.Update(ctx, func(tx store.Tx) error {
		n, err := tx.Node(id)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if n.State == vendettav1.NodeState_NODE_STATE_REMOVED {
			return nil
		}
		if n.State != vendettav1.NodeState_NODE_STATE_JOINING || state != vendettav1.NodeState_NODE_STATE_LOST {
			n.State = state // a node that never answered is still joining
		}
		n.Message, n.UpdatedAt = message, s.now()
		if report != nil {
			n.Report = report
		}
		return tx.UpdateNode(n)
	})
	if err != nil && ctx.Err() == nil {
		s.log.ErrorContext(ctx, "record node", "error", err)
	}
}

// node reads a node as callers see it.
func (s *Server) node(ctx context.Context, name string) (*vendettav1.Node, error) {
	var view *vendettav1.Node
	err := s.store.View(ctx, func(tx store.Tx) error {
		n, err := findNode(tx, name)
		if err != nil {
			return err
		}
		view, err = s.nodeView(tx, n)
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, "read node", err)
	}
	return view, nil
}

// findNode is NodeByName with an error for the caller.
func findNode(tx store.Tx, name string) (store.Node, error) {
	n, err := tx.NodeByName(name)
	if errors.Is(err, store.ErrNotFound) {
		return n, noNode(name)
	}
	return n, err
}

// nodeView is the store's record with what the link knows.
func (s *Server) nodeView(tx store.Tx, n store.Node) (*vendettav1.Node, error) {
	list, err := tx.Workspaces(n.ID)
	if err != nil {
		return nil, err
	}
	spares, err := s.sparesView(tx, n, list)
	if err != nil {
		return nil, err
	}
	v := &vendettav1.Node{
		Id: n.ID, Name: n.Name, State: n.State, Message: n.Message, Address: n.Address, Labels: n.Labels,
		Draining: n.Draining, Report: n.Report, CreatedAt: timestamppb.New(n.CreatedAt), Workspaces: int32(len(withoutSpares(list))), Spares: spares,
	}
	link := s.linkTo(n.ID).view()
	if link.report != nil {
		v.Report = link.report
	}
	if v.Report, err = unknownOrphans(tx, v.Report); err != nil {
		return nil, err
	}
	if !link.reported.IsZero() {
		v.LastHeartbeat = timestamppb.New(link.reported)
	}
	switch {
	case n.State == vendettav1.NodeState_NODE_STATE_REMOVED:
	case link.up:
		v.State, v.Message = vendettav1.NodeState_NODE_STATE_READY, ""
	case link.lost && n.State != vendettav1.NodeState_NODE_STATE_JOINING:
		v.State, v.Message = vendettav1.NodeState_NODE_STATE_LOST, link.failure.Message
	case link.lost:
		v.Message = link.failure.Message
	}
	if n.Draining && v.State == vendettav1.NodeState_NODE_STATE_READY {
		v.State = vendettav1.NodeState_NODE_STATE_DRAINING
	}
	return v, nil
}

// GetNode implements vendettav1connect.NodeServiceHandler.
func (s *Server) GetNode(ctx context.Context, req *vendettav1.GetNodeRequest) (*vendettav1.Node, error) {
	return s.node(ctx, req.GetName())
}

// ListNodes implements vendettav1connect.NodeServiceHandler.
func (s *Server) ListNodes(ctx context.Context, _ *vendettav1.ListNodesRequest) (*vendettav1.ListNodesResponse, error) {
	resp := &vendettav1.ListNodesResponse{}
	err := s.store.View(ctx, func(tx store.Tx) error {
		resp.Nodes = nil
		nodes, err := tx.Nodes()
		if err != nil {
			return err
		}
		for _, n := range nodes {
			v, err := s.nodeView(tx, n)
			if err != nil {
				return err
			}
			resp.Nodes = append(resp.Nodes, v)
		}
		return nil
	})
	if err != nil {
		return nil, s.storeError(ctx, "list nodes", err)
	}
	return resp, nil
}

// LabelNode implements vendettav1connect.NodeServiceHandler.
func (s *Server) LabelNode(ctx context.Context, req *vendettav1.LabelNodeRequest) (*vendettav1.Node, error) {
	if err := checkLabels(req.GetSet()); err != nil {
		return nil, err
	}
	return s.editNode(ctx, req.GetName(), "label node", func(n *store.Node) error {
		labels := map[string]string{}
		maps.Copy(labels, n.Labels)
		for _, k := range req.GetRemove() {
			delete(labels, k)
		}
		maps.Copy(labels, req.GetSet())
		n.Labels = labels
		return checkLabels(labels)
	})
}

// DrainNode implements vendettav1connect.NodeServiceHandler.
func (s *Server) DrainNode(ctx context.Context, req *vendettav1.DrainNodeRequest) (*vendettav1.Node, error) {
	n, err := s.editNode(ctx, req.GetName(), "drain node", func(n *store.Node) error {
		n.Draining = req.GetDrain()
		return nil
	})
	if err == nil {
		s.reconcileSoon() // its spares go, or come back
	}
	return n, err
}

func (s *Server) editNode(ctx context.Context, name, what string, edit func(*store.Node) error) (*vendettav1.Node, error) {
	var view *vendettav1.Node
	err := s.store.Update(ctx, func(tx store.Tx) error {
		n, err := findNode(tx, name)
		if err != nil {
			return err
		}
		if err := edit(&n); err != nil {
			return err
		}
		n.UpdatedAt = s.now()
		if err := tx.UpdateNode(n); err != nil {
			return err
		}
		view, err = s.nodeView(tx, n)
		return err
	})
	if err != nil {
		return nil, s.storeError(ctx, what, err)
	}
	return view, nil
}

// RemoveNode implements vendettav1connect.NodeServiceHandler. A lost node that
// is removed by force takes with it the workspaces whose removal was accepted
// and waits for it.
func (s *Server) RemoveNode(ctx context.Context, req *vendettav1.RemoveNodeRequest) (*vendettav1.RemoveNodeResponse, error) {
	if err := s.awaitRun(ctx); err != nil {
		return nil, err
	}
	release, err := s.reserve(req.GetName())
	if err != nil {
		return nil, err
	}
	defer release()

	if err := s.dismissSpares(ctx, req.GetName()); err != nil {
		return nil, err
	}
	before, abandoned, err := s.leavingNode(ctx, req.GetName(), req.GetForce())
	if err != nil {
		return nil, err
	}
	s.closeLink(ctx, before.ID)
	message, err := s.uninstall(ctx, before, req.GetForce())
	if err != nil {
		s.restoreNode(context.WithoutCancel(ctx), before)
		return nil, err
	}
	if err := s.forgetNode(context.WithoutCancel(ctx), before.ID, abandoned); err != nil {
		return nil, err
	}
	spares := len(abandoned)
	abandoned = withoutSpares(abandoned)
	spares -= len(abandoned)
	if names := workspaceNames(abandoned); names != "" {
		message = strings.TrimPrefix(message+"; instances of "+names+" stay there until the node is added again", "; ")
	}
	if spares > 0 && message != "" { // else the agent has left, which has none then
		message = fmt.Sprintf("%s; so may %d %s, until the node is added again", message, spares, plural(spares, "spare"))
	}
	s.spareMemory.forget(before.ID)
	return &vendettav1.RemoveNodeResponse{Message: message}, nil
}

// leavingNode marks a node removed and returns it as it was, with the workspaces
// that go with it.
func (s *Server) leavingNode(ctx context.Context, name string, force bool) (before store.Node, abandoned []store.Workspace, err error) {
	err = s.store.Update(ctx, func(tx store.Tx) error {
		abandoned = nil
		n, err := findNode(tx, name)
		if err != nil {
			return err
		}
		before = n
		list, err := tx.Workspaces(n.ID)
		if err != nil {
			return err
		}
		lost := !s.linkTo(n.ID).view().up
		var staying []store.Workspace
		for _, ws := range list {
			// What lost nodes have of spares goes with them; a node whose agent can be
			// asked has none left, or refuses to go.
			if ws.Spare || force && lost && ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
				abandoned = append(abandoned, ws)
				continue
			}
			staying = append(staying, ws)
		}
		if len(staying) > 0 {
			e := api.Errorf(api.FailedPrecondition, "rm node %s: workspaces are on it: %s", name, workspaceNames(staying))
			if lost {
				return e.WithNext("vendetta workspace rm NAME --force for each, then vendetta node rm %s --force", name)
			}
			return e.WithNext("vendetta workspace rm NAME for each")
		}
		n.State, n.UpdatedAt = vendettav1.NodeState_NODE_STATE_REMOVED, s.now()
		n.Message = "its removal has begun; repeat it if it was interrupted"
		return tx.UpdateNode(n)
	})
	if err != nil {
		return before, nil, s.storeError(ctx, "rm node", err)
	}
	return before, abandoned, nil
}

func workspaceNames(list []store.Workspace) string {
	var names []string
	for _, ws := range list[:min(len(list), mostNamed)] {
		names = append(names, ws.Name)
	}
	if len(list) > mostNamed {
		names = append(names, fmt.Sprintf("and %d more", len(list)-mostNamed))
	}
	return strings.Join(names, ", ")
}

// uninstall takes the agent off a node. By force a failure becomes a message.
func (s *Server) uninstall(ctx context.Context, n store.Node, force bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, uninstallCeiling)
	defer cancel()
	err := s.opts.Installer.Uninstall(ctx, targetOf(n))
	if err == nil {
		return "", nil
	}
	s.log.WarnContext(ctx, "uninstall node agent", "node", n.Name, "error", err)
	e := api.From(err)
	if force {
		return fmt.Sprintf("the node agent, its state and the server's key stay on %s: %s", n.Name, e.Message), nil
	}
	return "", api.Errorf(e.Code, "rm node %s: its agent could not be removed: %s", n.Name, unprefixed(n.Name, e.Message)).
		WithNext("vendetta node test %s, or vendetta node rm %s --force", n.Name, n.Name)
}

// restoreNode takes a removal back.
func (s *Server) restoreNode(ctx context.Context, before store.Node) {
	err := s.store.Update(ctx, func(tx store.Tx) error { return tx.UpdateNode(before) })
	if err == nil && before.State != vendettav1.NodeState_NODE_STATE_REMOVED {
		_, err = s.openLink(before)
	}
	if err != nil {
		s.log.ErrorContext(ctx, "restore node", "node", before.Name, "error", err)
	}
}

// forgetNode deletes a node's record and those of the workspaces that go with it.
func (s *Server) forgetNode(ctx context.Context, id string, abandoned []store.Workspace) error {
	var ended []string
	err := s.store.Update(ctx, func(tx store.Tx) error {
		ended = nil
		for _, ws := range abandoned {
			op, err := supersede(tx, ws, s.now())
			if err != nil {
				return err
			}
			ended = append(ended, op)
			if err := tx.DeleteWorkspace(ws.ID); err != nil {
				return err
			}
		}
		if err := leaveBehind(tx, abandoned); err != nil {
			return err
		}
		return tx.DeleteNode(id)
	})
	if err != nil {
		return s.storeError(ctx, "rm node", err)
	}
	for _, op := range ended {
		s.waiters.wake(op)
	}
	s.opts.Dialer.Forget(id)
	return nil
}

// NodeLogs implements vendettav1connect.NodeServiceHandler.
func (s *Server) NodeLogs(ctx context.Context, req *vendettav1.NodeLogsRequest, out *connect.ServerStream[vendettav1.NodeLogsResponse]) error {
	tail := req.GetTail()
	if tail < 0 {
		return api.Errorf(api.InvalidArgument, "node logs: %d lines are none", tail)
	}
	if tail == 0 {
		tail = defaultTail
	}
	l, err := s.nodeLink(ctx, req.GetName())
	if err != nil {
		return err
	}
	in, err := l.agent.Logs(ctx, &nodeagentv1.LogsRequest{Tail: min(tail, mostTail), Follow: req.GetFollow()})
	if err != nil {
		return nodeError(req.GetName(), err)
	}
	defer func() { _ = in.Close() }()
	for in.Receive() {
		if err := out.Send(&vendettav1.NodeLogsResponse{Data: in.Msg().GetData()}); err != nil {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return nodeError(req.GetName(), err)
	}
	return nil
}

// nodeLink returns the link of a node by name once it is up.
func (s *Server) nodeLink(ctx context.Context, name string) (*link, error) {
	if err := s.awaitRun(ctx); err != nil {
		return nil, err
	}
	n, err := s.storedNode(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.reachable(ctx, n.ID, n.Name); err != nil {
		return nil, err
	}
	return s.linkTo(n.ID), nil
}

func (s *Server) storedNode(ctx context.Context, name string) (n store.Node, err error) {
	err = s.store.View(ctx, func(tx store.Tx) error {
		n, err = findNode(tx, name)
		return err
	})
	if err != nil {
		return n, s.storeError(ctx, "read node", err)
	}
	return n, nil
}
