package coordination

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"
	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	// heartbeatInterval is what the server asks of node agents.
	heartbeatInterval = 10 * time.Second
	// leaseTTL without a report makes a node lost.
	leaseTTL = 3 * heartbeatInterval
	// brokenGrace is how long a broken link may take to come back before the
	// node counts as lost: a restart of the agent goes unnoticed.
	brokenGrace = 5 * time.Second
	// redialCeiling bounds every other attempt, so that a packet lost during a
	// cut does not hold up the first dial after the repair.
	redialCeiling = 5 * time.Second
	// redialFirst and redialMost bound the time from one attempt to the next.
	redialFirst = 250 * time.Millisecond
	redialMost  = 2 * time.Second
	// startInterval is the shortest time between two starts of a node's agent,
	// startCeiling the longest that one may take.
	startInterval = 30 * time.Second
	startCeiling  = 30 * time.Second
	// maxAnswer bounds what a node agent may answer at once.
	maxAnswer = 64 << 20
)

var errLease = errors.New("no report for 30 seconds")

// link is the server's side of one node: its channels, the watch that keeps the
// lease, what was last reported, and the dispatcher.
type link struct {
	server     *Server
	nodeID     string
	log        *slog.Logger
	control    *channel
	guests     *channel
	bulk       *channel
	agent      nodeagentv1connect.NodeAgentServiceClient
	dispatcher *dispatcher

	stop  context.CancelFunc
	ended chan struct{}
	again chan struct{} // asks for a redial at once

	mu       sync.Mutex
	target   Target
	up       bool // the watch is open and has reported
	lost     bool
	sessions int        // how often it came up
	failure  *api.Error // why the last attempt failed, nil while up
	reported time.Time
	report   *vendettav1.NodeReport
	observed map[string]*nodeagentv1.ObservedWorkspace
	orphans  map[string]time.Time // when each was first reported
	changed  chan struct{}        // closed and renewed when up or lost changes

	// sweeping ends the removal of orphans, nil when none is under way; the
	// server's mu guards it.
	sweeping context.CancelFunc
}

func newLink(s *Server, n store.Node) *link {
	l := &link{
		server:   s,
		nodeID:   n.ID,
		log:      s.log.With("node", n.Name),
		ended:    make(chan struct{}),
		again:    make(chan struct{}, 1),
		target:   targetOf(n),
		report:   n.Report,
		observed: map[string]*nodeagentv1.ObservedWorkspace{},
		changed:  make(chan struct{}),
	}
	target := l.currentTarget
	l.control = newChannel(s.opts.Dialer, target, s.id)
	l.guests = newChannel(s.opts.Dialer, target, s.id)
	l.bulk = newChannel(s.opts.Dialer, target, s.id)
	l.agent = agentOver(l.control)
	l.dispatcher = newDispatcher(s, l)
	return l
}

// agentOver is the node agent's API on a channel.
func agentOver(c *channel) nodeagentv1connect.NodeAgentServiceClient {
	return nodeagentv1connect.NewNodeAgentServiceClient(c.client(), wire.BaseURL, connect.WithReadMaxBytes(maxAnswer), uncompressed())
}

// uncompressed asks for answers as they are: heartbeats are many and small, and
// a guest could answer with what grows when it is unpacked.
func uncompressed() connect.ClientOption { return connect.WithAcceptCompression("gzip", nil, nil) }

func targetOf(n store.Node) Target {
	return Target{ID: n.ID, Name: n.Name, Address: n.Address, HostKeys: slices.Clone(n.HostKeys)}
}

func (l *link) currentTarget() Target {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.target
}

// retarget changes where and how the node is reached from the next dial on, and
// tells whether that is anything new.
func (l *link) retarget(t Target) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	same := proto.Equal(l.target.Address, t.Address) && slices.Equal(l.target.HostKeys, t.HostKeys)
	l.target = t
	return !same
}

// redial makes the link try now instead of when its pause is over.
func (l *link) redial() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// run keeps the watch open until ctx is done.
func (l *link) run(ctx context.Context) {
	defer close(l.ended)
	defer func() {
		l.control.close()
		l.guests.close()
		l.bulk.close()
	}()
	var w conc.WaitGroup
	defer w.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.Go(func() { l.dispatcher.run(ctx) })

	grace := time.NewTimer(brokenGrace)
	defer grace.Stop()
	var started time.Time // when the agent was last started
	for attempt := 0; ctx.Err() == nil; attempt++ {
		begun := time.Now()
		ceiling := connectCeiling
		if attempt%2 == 1 {
			ceiling = redialCeiling
		}
		session := make(chan error, 1)
		l.control.bound(ceiling)
		w.Go(func() { session <- l.session(ctx) })
		var err error
		for waiting := true; waiting; {
			select {
			case err = <-session:
				waiting = false
			case <-grace.C:
				l.lose(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if l.breakUp(err) { // it was up until now
			attempt = -1
			grace.Reset(brokenGrace)
			if errors.Is(err, errLease) {
				l.lose(ctx)
			}
			continue
		}
		if errors.Is(err, ErrNoAgent) && (started.IsZero() || time.Since(started) >= startInterval) {
			started = time.Now()
			if l.startAgent(ctx) {
				continue
			}
		}
		l.pause(ctx, grace, redialAfter(attempt)-time.Since(begun))
	}
}

// redialAfter is the time from the beginning of one attempt to the next: longer
// after each, with jitter so that many nodes do not dial in step.
func redialAfter(attempt int) time.Duration {
	d := min(redialFirst<<min(attempt, 8), redialMost)
	return d/2 + rand.N(d/2) //nolint:gosec // jitter needs no secret
}

// pause waits for d, a redial or the end.
func (l *link) pause(ctx context.Context, grace *time.Timer, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-l.again:
			return
		case <-grace.C:
			l.lose(ctx)
		}
	}
}

// startAgent starts an installed agent that does not answer.
func (l *link) startAgent(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, startCeiling)
	defer cancel()
	l.log.InfoContext(ctx, "start node agent")
	if err := l.server.opts.Installer.Start(ctx, l.currentTarget()); err != nil {
		l.log.WarnContext(ctx, "start node agent", "error", err)
		l.mu.Lock()
		l.failure = nodeError(l.target.Name, err)
		l.mu.Unlock()
		return false
	}
	return true
}

// session is one life of the watch. It returns why it ended, never nil. The dial
// has its own ceiling; from then on the lease holds, for an agent that is busy
// looking at its machine before it answers, too.
func (l *link) session(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lease := time.AfterFunc(leaseTTL, func() { cancel(errLease) })
	defer lease.Stop()
	err := l.watch(ctx, func() { lease.Reset(leaseTTL) })
	if cause := context.Cause(ctx); cause != nil {
		// What was cancelled may hang below, in a connection that no longer
		// carries anything.
		l.control.reset()
		return cause
	}
	return err
}

func (l *link) watch(ctx context.Context, renew func()) error {
	target := l.currentTarget()
	hello, err := l.agent.Hello(ctx, &nodeagentv1.HelloRequest{
		ProtocolMin: api.ProtocolOldest, ProtocolMax: api.Protocol, ServerVersion: l.server.opts.Version,
	})
	if err != nil {
		return err
	}
	if _, err := api.Negotiate(hello.GetProtocol(), hello.GetProtocol(), repairCommand(target)); err != nil {
		return err
	}
	stream, err := l.agent.Watch(ctx, &nodeagentv1.WatchRequest{IntervalSeconds: int32(heartbeatInterval / time.Second)})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		renew()
		l.take(ctx, stream.Msg())
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("the node agent ended the watch")
}

// take accepts a report.
func (l *link) take(ctx context.Context, m *nodeagentv1.WatchResponse) {
	observed := make(map[string]*nodeagentv1.ObservedWorkspace, len(m.GetWorkspaces()))
	for _, o := range m.GetWorkspaces() {
		observed[o.GetWorkspaceId()] = o
	}
	l.mu.Lock()
	first := !l.up
	var changed []*nodeagentv1.ObservedWorkspace
	for id, o := range observed {
		have := l.observed[id]
		if overtaken(o, have) {
			observed[id] = have
		} else if first || !sameObservation(have, o) {
			changed = append(changed, o)
		}
	}
	l.mu.Unlock()

	// What is stored comes before what is announced: who waits for the link
	// finds the states that came with it.
	if first {
		l.log.InfoContext(ctx, "node is ready")
		l.server.recordNode(ctx, l.nodeID, vendettav1.NodeState_NODE_STATE_READY, "", m.GetReport())
	}
	l.server.recordObserved(ctx, l.nodeID, changed)

	l.mu.Lock()
	l.observed = observed
	l.report = m.GetReport()
	l.hearOfOrphans(m.GetReport().GetOrphans())
	l.reported = l.server.now()
	l.up, l.lost, l.failure = true, false, nil
	if first {
		l.sessions++
		l.announce()
	}
	l.mu.Unlock()
	if first {
		l.server.reconcileSoon()
	}
}

// overtaken tells whether an observation is older than what an answer on
// another stream said already. More than a moment between the two means that
// the node's clock was set.
func overtaken(o, have *nodeagentv1.ObservedWorkspace) bool {
	if have == nil || o.GetGeneration() > have.GetGeneration() {
		return false
	}
	ahead := have.GetAt().AsTime().Sub(o.GetAt().AsTime())
	return ahead > 0 && ahead < heartbeatInterval
}

// sameObservation tells whether b says nothing new, whenever it was made.
func sameObservation(a, b *nodeagentv1.ObservedWorkspace) bool {
	if a == nil {
		return false
	}
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.At, b.At = nil, nil
	return proto.Equal(a, b)
}

// announce wakes who waits for a change; l.mu is held.
func (l *link) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// breakUp notes the end of a session and tells whether it had been up.
func (l *link) breakUp(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	wasUp := l.up
	l.up = false
	l.failure = nodeError(l.target.Name, err)
	if wasUp {
		l.log.Warn("link broken", "error", err)
		l.announce()
	}
	return wasUp
}

// lose marks the node lost unless its link is up.
func (l *link) lose(ctx context.Context) {
	l.mu.Lock()
	if l.up || l.lost {
		l.mu.Unlock()
		return
	}
	l.lost = true
	failure, report := l.failure, l.report
	if failure == nil {
		failure = api.Errorf(api.Unavailable, "node %s: it does not answer", l.target.Name).
			WithNext("vendetta node test %s", l.target.Name)
		l.failure = failure
	}
	l.announce()
	l.mu.Unlock()
	l.log.WarnContext(ctx, "node is lost", "error", failure)
	l.server.recordNode(ctx, l.nodeID, vendettav1.NodeState_NODE_STATE_LOST, failure.Message, report)
}

// await returns when the link is up, or the reason when the node is lost, or
// when ctx ends first.
func (l *link) await(ctx context.Context) error {
	for {
		l.mu.Lock()
		up, lost, failure, changed, name := l.up, l.lost, l.failure, l.changed, l.target.Name
		l.mu.Unlock()
		switch {
		case up:
			return nil
		case lost:
			return api.Errorf(api.Unavailable, "node %s is lost: %s", name, unprefixed(name, failure.Message)).WithNext("%s", failure.Next)
		}
		select {
		case <-changed:
		case <-l.ended:
			return api.Errorf(api.Unavailable, "node %s: its link was closed", name)
		case <-ctx.Done():
			if failure == nil {
				return api.Errorf(api.Unavailable, "node %s: it does not answer yet", name).WithNext("vendetta node test %s", name)
			}
			return failure
		}
	}
}

// awaitSession returns when a session newer than seen is up, or the reason of
// the last failure when ctx ends before that.
func (l *link) awaitSession(ctx context.Context, seen int) error {
	for {
		l.mu.Lock()
		up, sessions, failure, changed, name := l.up, l.sessions, l.failure, l.changed, l.target.Name
		l.mu.Unlock()
		if up && sessions > seen {
			return nil
		}
		select {
		case <-changed:
		case <-l.ended:
			return api.Errorf(api.Unavailable, "node %s: its link was closed", name)
		case <-ctx.Done():
			if failure == nil {
				failure = api.Errorf(api.Unavailable, "node %s: its agent was started and does not answer", name)
			}
			return failure
		}
	}
}

// renew ends the session so that the next one speaks to the agent that is there
// now, and returns how many sessions there were.
func (l *link) renew() int {
	l.mu.Lock()
	seen := l.sessions
	l.mu.Unlock()
	l.control.reset()
	l.redial()
	return seen
}

// unprefixed is a node's failure without the words that say which node.
func unprefixed(node, message string) string { return strings.TrimPrefix(message, "node "+node+": ") }

// linked tells whether the guest of a workspace was last seen on its link.
func (l *link) linked(workspaceID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observed[workspaceID].GetLinked()
}

// linkView is what a link knows at one moment.
type linkView struct {
	up, lost bool
	failure  *api.Error
	reported time.Time
	report   *vendettav1.NodeReport
	observed map[string]*nodeagentv1.ObservedWorkspace
}

// view of the link; the maps in it are the caller's, the messages are not changed by anyone.
func (l *link) view() linkView {
	if l == nil {
		return linkView{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return linkView{
		up: l.up, lost: l.lost, failure: l.failure, reported: l.reported,
		report: l.report, observed: maps.Clone(l.observed),
	}
}

// observe takes what an answer said into the picture until the next report.
func (l *link) observe(workspaceID string, o *nodeagentv1.ObservedWorkspace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o == nil {
		delete(l.observed, workspaceID)
		return
	}
	l.observed[workspaceID] = o
}

// repairCommand brings a node's agent up to this server's version.
func repairCommand(t Target) string {
	return "vendetta node add " + t.Name + " " + addressArgument(t.Address)
}

// addressArgument is an address as the command line takes it.
func addressArgument(a *vendettav1.NodeAddress) string {
	if a.GetLocal() {
		return "--local"
	}
	s := a.GetHost()
	if a.GetUser() != "" {
		s = a.GetUser() + "@" + s
	}
	if a.GetPort() != 0 {
		s += fmt.Sprintf(" --port %d", a.GetPort())
	}
	for _, j := range a.GetJump() {
		s += " --jump " + j
	}
	return s
}
