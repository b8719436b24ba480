package nodeagent

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

// workspace is one workspace of one server: what is wanted of it and what was
// seen. All that is done to it is done by its keeper, one step after another.
type workspace struct {
	server *server
	id     string
	wake   chan struct{}
	// turn is held by who calls the provider for this workspace: the keeper, but
	// for a fork of it and for questions.
	turn chan struct{}

	mu     sync.Mutex
	record record
	seen   *nodeagentv1.ObservedWorkspace
	op     *operation
	// interrupt ends the keeper's present work, for a newer operation's sake.
	interrupt context.CancelFunc
	links     *link
	// gone: the keeper has ended and the server knows this workspace no more.
	gone bool
}

// operation is an accepted change; done is closed when result or err is set.
type operation struct {
	request *nodeagentv1.ApplyRequest
	// resumed: it comes from the journal, nobody waits for it.
	resumed bool
	done    chan struct{}
	ended   bool
	result  *nodeagentv1.ObservedWorkspace
	err     error
}

func (o *operation) end(result *nodeagentv1.ObservedWorkspace, err error) {
	if !o.ended {
		o.ended, o.result, o.err = true, result, err
		close(o.done)
	}
}

func newWorkspace(s *server, id string) *workspace {
	return &workspace{server: s, id: id, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1), seen: &nodeagentv1.ObservedWorkspace{WorkspaceId: id}}
}

// load takes over a record of the journal.
func (w *workspace) load(r record) {
	w.record = r
	w.op = &operation{request: r.request, resumed: true, done: make(chan struct{})}
	if r.observed != nil {
		w.seen = proto.CloneOf(r.observed)
	}
	w.seen.WorkspaceId = w.id
	w.seen.Linked = false
	if r.pending {
		w.seen.State = workingState(r.request.GetDesired())
		return
	}
	w.op.end(proto.CloneOf(r.observed), nil)
	if !r.failed() {
		// Until somebody has looked.
		w.seen.State = vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN
		w.seen.ErrorCode, w.seen.Message, w.seen.Next = "", "", ""
	}
}

// take waits for the turn and returns what gives it back.
func (w *workspace) take(ctx context.Context) (release func(), err error) {
	select {
	case w.turn <- struct{}{}:
		return func() { <-w.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// begin starts the keeper.
func (w *workspace) begin() {
	w.server.agent.tasks.Go(func() { w.keep(w.server.agent.root) })
}

// apply accepts a change and answers when it has ended.
func (w *workspace) apply(ctx context.Context, r *nodeagentv1.ApplyRequest) (*nodeagentv1.ObservedWorkspace, error) {
	op, err := w.accept(r)
	if err != nil {
		w.server.drop(w)
		return nil, err
	}
	select {
	case <-op.done:
		w.mu.Lock()
		defer w.mu.Unlock()
		return op.result, op.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// errGone: the workspace was forgotten between two steps of a call.
var errGone = errors.New("workspace forgotten")

// accept writes the change down and hands it to the keeper.
func (w *workspace) accept(r *nodeagentv1.ApplyRequest) (*operation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return nil, errGone
	}
	current := w.record.request
	if current != nil && current.GetOperationId() == r.GetOperationId() {
		return w.op, nil
	}
	if r.GetGeneration() < current.GetGeneration() {
		return nil, api.Errorf(api.Conflict, "apply generation %d to workspace %s: generation %d was applied before",
			r.GetGeneration(), r.GetWorkspaceName(), current.GetGeneration())
	}
	r = proto.CloneOf(r)
	if r.GetSpec().GetProvider() == "" {
		r.Spec = proto.CloneOf(current.GetSpec())
	}
	if err := w.fits(r); err != nil {
		return nil, err
	}
	next := record{request: r, pending: true, made: w.record.made, observed: w.record.observed}
	if w.removed() {
		next.made = false
	} else if current != nil && besides(r) {
		next.prior = bare(current)
		if w.record.pending && w.record.prior != nil {
			next.prior = w.record.prior
		}
	}
	if err := w.server.agent.journal.write(w.server.id, next); err != nil {
		// On a full disk a removal is what makes room again. Unwritten it is begun
		// anew by the server, which goes on asking until it has an answer.
		if !errors.Is(err, syscall.ENOSPC) || r.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_REMOVED {
			return nil, failure("write down the change of", r.GetWorkspaceName(), err)
		}
		w.server.agent.log.Warn("the disk is full; the removal goes on without being written down", "error", err)
	}
	w.record = next
	if w.links != nil {
		w.links.rename(r.GetWorkspaceName()) // a spare has become somebody's
	}
	if w.op != nil {
		w.op.end(nil, api.Errorf(api.Conflict, "apply operation %s to workspace %s: operation %s took its place",
			w.op.request.GetOperationId(), r.GetWorkspaceName(), r.GetOperationId()))
	}
	w.op = &operation{request: r, done: make(chan struct{})}
	if w.interrupt != nil {
		w.interrupt()
	}
	w.nudge()
	return w.op, nil
}

// nudge wakes the keeper.
func (w *workspace) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// fits refuses what cannot be done before it is written down.
func (w *workspace) fits(r *nodeagentv1.ApplyRequest) error {
	name := r.GetSpec().GetProvider()
	if name == "" {
		if r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED {
			return nil
		}
		return api.Errorf(api.InvalidArgument, "apply to workspace %s: no provider is named", r.GetWorkspaceName())
	}
	if had := w.record.request.GetSpec().GetProvider(); had != "" && had != name && !w.removed() {
		return api.Errorf(api.FailedPrecondition, "apply to workspace %s: it was made by provider %s and cannot move to %s", r.GetWorkspaceName(), had, name).
			WithNext("create a new workspace with provider %s", name)
	}
	_, err := w.server.provider(name)
	return err
}

// removed reports whether the record is a tombstone. w.mu is held.
func (w *workspace) removed() bool {
	return w.record.request.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED && !w.record.pending &&
		w.record.observed.GetErrorCode() == ""
}

// present reports whether there is something of the workspace here.
func (w *workspace) present() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record.request != nil && !w.removed()
}

func (w *workspace) name() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record.request.GetWorkspaceName()
}

// guest is the link when it is being kept, else nil.
func (w *workspace) guest() *link {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.links != nil && w.links.started() {
		return w.links
	}
	return nil
}

// answers reports whether the guest is on its link now.
func (w *workspace) answers() bool {
	l := w.guest()
	return l != nil && l.alive()
}

// report is what is known now.
func (w *workspace) report() *nodeagentv1.ObservedWorkspace {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := proto.CloneOf(w.seen)
	o.Generation = w.record.request.GetGeneration()
	o.OperationId = w.record.request.GetOperationId()
	o.Linked = w.links != nil && w.links.up()
	return o
}

// see changes what is reported; watchers are told when it is something new.
func (w *workspace) see(change func(*nodeagentv1.ObservedWorkspace)) {
	w.mu.Lock()
	next := proto.CloneOf(w.seen)
	change(next)
	same := proto.Equal(next, w.seen)
	if !same {
		next.At = timestamppb.New(w.server.agent.options.Now())
		w.seen = next
	}
	w.mu.Unlock()
	if !same {
		w.server.notify()
	}
}

// linkFor returns the workspace's link, which lives through its instances.
func (w *workspace) linkFor(p providers.Provider) *link {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.links == nil {
		connect := func(ctx context.Context) (net.Conn, error) { return p.Connect(ctx, w.id) }
		changed := func() {
			w.server.notify()
			w.nudge()
		}
		w.links = newLink(w.record.request.GetWorkspaceName(), connect, changed, w.server.log, w.server.agent.timing)
	}
	return w.links
}

// keepLink sees to it that the link is kept until dropLink or the agent's end.
func (w *workspace) keepLink(p providers.Provider) *link {
	l := w.linkFor(p)
	l.start(w.server.agent.root, w.server.agent.tasks.Go)
	return l
}

// dropLink closes the link, if there is one.
func (w *workspace) dropLink() {
	w.mu.Lock()
	l := w.links
	w.mu.Unlock()
	if l != nil {
		l.stop()
	}
}

// keep is the keeper: it carries out operations, and between them sees to it
// that what should run does.
func (w *workspace) keep(ctx context.Context) {
	defer w.dropLink()
	k := keeper{workspace: w, timing: w.server.agent.timing}
	for ctx.Err() == nil {
		work, op, ok := w.next(ctx)
		if !ok {
			return
		}
		pause := k.turnFor(work, op)
		w.mu.Lock()
		w.interrupt()
		w.interrupt = nil
		waiting := w.op != op
		w.mu.Unlock()
		if waiting {
			continue
		}
		k.rest(ctx, pause)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.op != nil {
		w.op.end(nil, api.Errorf(api.Unavailable, "apply operation %s to workspace %s: the node agent is shutting down; it goes on when the agent is back",
			w.op.request.GetOperationId(), w.op.request.GetWorkspaceName()))
	}
}

// next returns the operation that stands, ended or not, with a context that a
// newer one ends. It reports false when the workspace is gone.
func (w *workspace) next(ctx context.Context) (context.Context, *operation, bool) {
	work, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.interrupt = cancel
	return work, w.op, !w.gone
}

// keeper is the keeper's memory between its turns.
type keeper struct {
	*workspace
	timing   timing
	failures int
	// startedAt is when the instance was last started again.
	startedAt time.Time
	// looked: what the journal says was compared with what is, once.
	looked bool
}

// forever is the pause of a keeper that waits to be woken.
const forever = 24 * time.Hour

// turnFor waits for the workspace's turn and uses it.
func (k *keeper) turnFor(ctx context.Context, op *operation) time.Duration {
	release, err := k.take(ctx)
	if err != nil {
		return 0
	}
	defer release()
	return k.proceed(ctx, op)
}

// proceed does what there is to do and returns how long to rest after it.
func (k *keeper) proceed(ctx context.Context, op *operation) time.Duration {
	k.mu.Lock()
	none, ended := op == nil, op != nil && op.ended
	r := k.record
	k.mu.Unlock()
	switch {
	case none:
		return forever
	case !ended:
		return k.operate(ctx, op)
	case r.failed():
		// What failed is not tried again behind the user's back.
		return k.observe(ctx, r)
	case r.request.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED:
		return k.bury()
	}
	return k.maintain(ctx, r)
}

// rest pauses until something happens.
func (k *keeper) rest(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.wake:
	case <-ctx.Done():
	}
}

// operate carries out an operation and writes down how it ended.
func (k *keeper) operate(ctx context.Context, op *operation) time.Duration {
	k.failures = 0
	k.looked = true
	r := op.request
	if k.moves(r) {
		k.see(func(o *nodeagentv1.ObservedWorkspace) {
			o.State = workingState(r.GetDesired())
			o.ErrorCode, o.Message, o.Next = "", "", ""
		})
	}
	k.server.log.Info("operation begins", "workspace", k.id, "operation", r.GetOperationId(), "desired", r.GetDesired().String(), "action", actionName(r))
	k.mu.Lock()
	made := k.record.made
	k.mu.Unlock()
	note, err := k.carryOut(ctx, op, !made)
	if err != nil && ctx.Err() != nil {
		// A newer operation or the agent's end: the journal says what to go on with.
		return 0
	}
	if err != nil && op.resumed && errors.Is(err, providers.ErrUnusable) {
		// The machine was started with the agent, and the provider comes later.
		k.seeFailure(failure("go on with", r.GetWorkspaceName(), err))
		k.failures++
		return backoff(k.failures, k.timing.restart, k.timing.restartMax)
	}
	end := end{note: note}
	var aside harmless
	switch {
	case errors.As(err, &aside):
		end.failure = k.stay(ctx, op, err)
		if ctx.Err() != nil {
			return 0
		}
	case err != nil:
		end.failure = failure("apply to", r.GetWorkspaceName(), err)
		k.seeFailure(end.failure)
	}
	k.finish(op, end)
	return 0
}

// moves reports whether a request changes the instance's state, so that what was
// seen of it is no longer true when it begins.
func (k *keeper) moves(r *nodeagentv1.ApplyRequest) bool {
	if inPlace(r) {
		return false
	}
	state := k.report().GetState()
	if r.GetAction() == nil && r.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_RUNNING &&
		state == vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING && k.answers() {
		return false // most likely it does already what it is to do
	}
	// What runs is to be halted: it runs until it is.
	return r.GetAction() != nil || r.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_PAUSED ||
		state != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
}

// end is how an operation ended.
type end struct {
	failure *api.Error
	note    string
}

// finish writes the end of op down and answers those who wait for it. A failure
// that left the workspace as it was is the operation's alone: what was wanted
// before it counts again, under its generation.
func (k *keeper) finish(op *operation, how end) {
	result := k.report()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.op != op {
		return
	}
	result.Note = how.note
	next := k.record
	next.request = bare(op.request)
	if e := how.failure; e != nil {
		result.ErrorCode, result.Message, result.Next = string(e.Code), e.Message, e.Next
		if next.prior != nil && besides(op.request) {
			next.request = proto.CloneOf(next.prior)
			next.request.OperationId, next.request.Generation = op.request.GetOperationId(), op.request.GetGeneration()
		}
	} else {
		if digest := result.GetImageDigest(); digest != "" && next.request.GetSpec() != nil {
			// An instance that is made again has the image that this one has.
			next.request.Spec.ImageDigest = digest
		}
		desired := op.request.GetDesired()
		next.made = next.made || desired == vendettav1.DesiredState_DESIRED_STATE_RUNNING || desired == vendettav1.DesiredState_DESIRED_STATE_PAUSED
	}
	next.pending, next.prior, next.observed = false, nil, proto.CloneOf(result)
	if err := k.server.agent.journal.write(k.server.id, next); err != nil {
		// The work is done whatever the journal says. It stays pending there, and
		// a restarted agent does it again, which changes nothing.
		k.server.log.Error("end of operation not written down", "workspace", k.id, "operation", op.request.GetOperationId(), "error", err)
	}
	k.record = next
	k.server.log.Info("operation ended", "workspace", k.id, "operation", op.request.GetOperationId(), "state", stateName(result.GetState()), "error_code", result.GetErrorCode())
	op.end(result, nil)
}

// maintain brings back what should be and is not: after a reboot, or when an
// instance died.
func (k *keeper) maintain(ctx context.Context, r record) time.Duration {
	paused := r.request.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_PAUSED
	running := paused || r.request.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_RUNNING
	if k.looked && !running {
		return forever
	}
	// The guest of a paused one says nothing, and that is no sign of its end.
	if l := k.guest(); k.looked && !paused && l != nil && l.up() {
		return forever
	}
	p, err := k.server.provider(r.request.GetSpec().GetProvider())
	if err != nil {
		k.seeFailure(failure("look at", r.request.GetWorkspaceName(), err))
		return k.timing.restartMax
	}
	inst, err := k.inspect(ctx, p)
	switch {
	case ctx.Err() != nil:
		return 0
	case err == nil && paused && inst.State == providers.StatePaused:
		k.looked = true
		k.seeInstance(inst)
		if l := k.guest(); l != nil && !l.up() {
			// It would be tried in vain until somebody resumes the workspace.
			k.dropLink()
		}
		return k.timing.restartMax
	case err == nil && running && !paused && inst.State == providers.StateRunning:
		k.looked = true
		k.seeInstance(inst)
		k.keepLink(p)
		return k.timing.look
	case err == nil && running && inst.State == providers.StateStopped:
		k.server.log.Warn("instance is not running and should be", "workspace", k.id, "instance", inst.Name, "how", inst.Message)
	case errors.Is(err, providers.ErrNotFound) && running:
		k.server.log.Warn("instance is gone and should be running", "workspace", k.id)
	}
	if pause := k.restartPause(); k.looked && pause > 0 {
		k.see(func(o *nodeagentv1.ObservedWorkspace) {
			o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
			o.Message = "its instance ended and is being started again"
			if inst.Message != "" {
				o.Message += ": " + inst.Message
			}
		})
		if !wait(ctx, pause) {
			return 0
		}
	}
	k.dropLink()
	k.looked = true
	k.startedAt = time.Now()
	k.see(func(o *nodeagentv1.ObservedWorkspace) {
		// One that failed to come back reads failed until it is.
		if o.GetErrorCode() == "" {
			o.State = workingState(r.request.GetDesired())
		}
	})
	if err := k.converge(ctx, r.request, false); err != nil {
		if ctx.Err() != nil {
			return 0
		}
		k.failures++
		pause := backoff(k.failures, k.timing.restart, k.timing.restartMax)
		e := failure("bring back", r.request.GetWorkspaceName(), err)
		k.server.log.Warn("workspace not brought back", "workspace", k.id, "error", err, "attempt", k.failures, "pause", pause)
		k.seeFailure(e)
		// The pause was served here; the next turn goes straight on.
		k.startedAt = time.Time{}
		return pause
	}
	return 0
}

// restartPause is how long a dead instance stays dead: longer each time it dies
// young.
func (k *keeper) restartPause() time.Duration {
	if k.startedAt.IsZero() {
		return 0
	}
	if time.Since(k.startedAt) > k.timing.stable {
		k.failures = 0
	}
	k.failures++
	return backoff(k.failures, k.timing.restart, k.timing.restartMax)
}

// observe looks once at a workspace whose last operation failed, so that a
// running instance can be reached all the same.
func (k *keeper) observe(ctx context.Context, r record) time.Duration {
	if k.looked {
		return forever
	}
	p, err := k.server.provider(r.request.GetSpec().GetProvider())
	if err != nil {
		return forever
	}
	inst, err := k.inspect(ctx, p)
	if err == nil && inst.State == providers.StateRunning {
		k.keepLink(p)
	}
	k.looked = ctx.Err() == nil
	return forever
}

// bury keeps a removed workspace's generation for a while, so that a change
// which was sent before the removal and comes after it is still refused.
func (k *keeper) bury() time.Duration {
	k.mu.Lock()
	at := k.record.observed.GetAt().AsTime()
	k.mu.Unlock()
	left := k.timing.tombstone - k.server.agent.options.Now().Sub(at)
	if left > 0 {
		return min(left, forever)
	}
	if err := k.server.agent.journal.remove(k.server.id, k.id); err != nil {
		k.server.log.Warn("tombstone not removed", "workspace", k.id, "error", err)
		return k.timing.restartMax
	}
	k.server.drop(k.workspace)
	return 0
}

// instanceStates are the providers' states in the words that users read.
var instanceStates = map[providers.State]vendettav1.WorkspaceState{
	providers.StateRunning: vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING,
	providers.StatePaused:  vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED,
	providers.StateStopped: vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED,
}

func (k *keeper) seeInstance(inst providers.Instance) {
	k.see(func(o *nodeagentv1.ObservedWorkspace) {
		o.State = instanceStates[inst.State]
		o.Instance = inst.Name
		if inst.Digest != "" {
			o.ImageDigest = inst.Digest
		}
		o.ErrorCode, o.Message, o.Next = "", "", ""
	})
}

func (k *keeper) seeFailure(e *api.Error) {
	k.server.log.Warn("workspace failed", "workspace", k.id, "error", e, "cause", errors.Unwrap(e))
	k.see(func(o *nodeagentv1.ObservedWorkspace) {
		o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
		o.ErrorCode, o.Message, o.Next = string(e.Code), e.Message, e.Next
	})
}

// workingState is what a workspace is in on its way to desired.
func workingState(desired vendettav1.DesiredState) vendettav1.WorkspaceState {
	switch desired {
	case vendettav1.DesiredState_DESIRED_STATE_RUNNING, vendettav1.DesiredState_DESIRED_STATE_PAUSED:
		return vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING
	case vendettav1.DesiredState_DESIRED_STATE_REMOVED:
		return vendettav1.WorkspaceState_WORKSPACE_STATE_REMOVING
	default:
		return vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPING
	}
}

// stateName is a state in the words that users read.
func stateName(s vendettav1.WorkspaceState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "WORKSPACE_STATE_"))
}

// actionName is what a request does beside reaching the desired state, for the log.
func actionName(r *nodeagentv1.ApplyRequest) string {
	switch r.GetAction().(type) {
	case *nodeagentv1.ApplyRequest_CreateSnapshot:
		return "create snapshot"
	case *nodeagentv1.ApplyRequest_RestoreSnapshot:
		return "restore snapshot"
	case *nodeagentv1.ApplyRequest_RemoveSnapshot:
		return "remove snapshot"
	case *nodeagentv1.ApplyRequest_ForkOf:
		return "fork"
	case *nodeagentv1.ApplyRequest_Resize:
		return "resize"
	}
	return ""
}
