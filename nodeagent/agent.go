package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"
	"github.com/sourcegraph/conc/pool"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/providers"
)

// Options are what an Agent needs.
type Options struct {
	// StateDir holds the journal and the log; it belongs to the agent alone.
	StateDir string
	// Providers returns the drivers for one server's instances. It is called
	// once for each server.
	Providers func(serverID string) []providers.Provider
	// Images returns the machine's image stores; nil means that it has none.
	Images func() []providers.Images
	// Version is reported; empty means api.Version.
	Version string
	Logger  *slog.Logger
	// Now is the clock of what is reported; nil means time.Now.
	Now func() time.Time

	timing *timing
}

// providerLimit is how many actions of one provider run at the same time, over
// all servers.
const providerLimit = 8

// maxRequest bounds one message of a request: a piece of an archive, at most.
const maxRequest = 8 << 20

// serverLimit bounds the servers that one agent serves.
const serverLimit = 64

// Agent is the node agent. It is made by New and works while Run does.
type Agent struct {
	options Options
	log     *slog.Logger
	timing  timing
	journal *journal
	machine *machine
	started time.Time

	imageWork imageWork

	// tasks are the agent's goroutines; Run waits for them.
	tasks     conc.WaitGroup
	stopping  chan struct{}
	stopOnce  sync.Once
	uninstall atomic.Bool

	// root is the life of Run, set before anything else runs. Work goes on in it
	// when the call that began it is lost.
	root context.Context //nolint:containedctx // see above

	mu      sync.Mutex
	servers map[string]*server
	lanes   map[string]*pool.Pool
}

// New makes an agent; nothing runs before Run.
func New(options Options) (*Agent, error) {
	if options.StateDir == "" || options.Providers == nil || options.Logger == nil {
		return nil, errors.New("make node agent: state directory, providers and logger are needed")
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Version == "" {
		options.Version = api.Version
	}
	if options.timing == nil {
		options.timing = &defaultTiming
	}
	if err := os.MkdirAll(options.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make node agent: %w", err)
	}
	return &Agent{
		options:  options,
		log:      options.Logger,
		timing:   *options.timing,
		journal:  newJournal(filepath.Join(options.StateDir, "journal")),
		machine:  newMachine(options.StateDir),
		started:  options.Now(),
		stopping: make(chan struct{}),
		servers:  map[string]*server{},
		lanes:    map[string]*pool.Pool{},

		imageWork: newImageWork(),
	}, nil
}

// Run takes up what the journal holds and serves on listener until ctx ends or
// a Shutdown call came. It returns when nothing of the agent runs any more;
// instances go on. An agent runs once.
func (a *Agent) Run(ctx context.Context, listener net.Listener) error {
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.root = ctx
	if err := a.recover(); err != nil {
		return err
	}
	handler := a.handler()
	var conns conc.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				// Out of descriptors, say: the next try may work.
				a.log.Warn("connection not accepted", "error", err)
				if !wait(ctx, 100*time.Millisecond) {
					return
				}
				continue
			}
			conns.Go(func() { wire.Serve(ctx, conn, handler) })
		}
	})
	conns.Go(func() { a.keepLog(ctx) })
	conns.Go(func() { a.searchOrphans(ctx) })
	a.log.Info("node agent runs", "version", a.options.Version, "socket", listener.Addr().String())
	select {
	case <-ctx.Done():
	case <-a.stopping:
		wait(ctx, a.timing.farewell)
	}
	cancel()
	_ = listener.Close()
	conns.Wait()
	// From here on no call can begin anything.
	a.tasks.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, lane := range a.lanes {
		lane.Wait()
	}
	if a.uninstall.Load() {
		return a.removeState()
	}
	return nil
}

// recover takes up every workspace of the journal.
func (a *Agent) recover() error {
	records, problems, err := a.journal.load()
	if err != nil {
		return err
	}
	for _, problem := range problems {
		a.log.Error("journal", "error", problem)
	}
	for serverID, workspaces := range records {
		s, err := a.server(serverID)
		if err != nil {
			a.log.Error("journal", "error", err)
			continue
		}
		for id, r := range workspaces {
			s.adopt(id, r)
		}
	}
	return nil
}

// handler is everything that the agent's socket serves.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	path, service := nodeagentv1connect.NewNodeAgentServiceHandler(&service{agent: a}, connect.WithReadMaxBytes(maxRequest))
	mux.Handle(path, fromServer(service))
	mux.Handle("/workspaces/{id}/guest/{path...}", fromServer(wire.PassThrough(a.guest, a.log)))
	mux.HandleFunc("GET "+alivePath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return mux
}

// guest finds the link that a call to a guest takes.
func (a *Agent) guest(r *http.Request) (http.RoundTripper, string, error) {
	s, err := a.server(serverOf(r.Context()))
	if err != nil {
		return nil, "", err
	}
	l, err := s.link(r.PathValue("id"))
	if err != nil {
		return nil, "", err
	}
	// Who asks is none of the guest's business.
	r.Header.Del(api.ServerHeader)
	return l, "/" + r.PathValue("path"), nil
}

// server returns what is kept for a server; it is made when it first calls.
func (a *Agent) server(id string) (*server, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.servers[id]; s != nil {
		return s, nil
	}
	if len(a.servers) >= serverLimit {
		return nil, api.Errorf(api.ResourceExhausted, "serve server %s: this node agent serves %d servers already", id, serverLimit)
	}
	s := newServer(a, id, a.options.Providers(id))
	a.servers[id] = s
	return s, nil
}

// do runs fn as one of the provider's actions and returns when it has ended.
func (a *Agent) do(ctx context.Context, provider string, fn func(context.Context) error) error {
	a.mu.Lock()
	lane := a.lanes[provider]
	if lane == nil {
		lane = pool.New().WithMaxGoroutines(providerLimit)
		a.lanes[provider] = lane
	}
	a.mu.Unlock()
	done := make(chan error, 1)
	lane.Go(func() {
		if err := ctx.Err(); err != nil {
			done <- err
			return
		}
		done <- fn(ctx)
	})
	return <-done
}

// stop ends Run soon.
func (a *Agent) stop() { a.stopOnce.Do(func() { close(a.stopping) }) }

// removeState takes away what the agent itself wrote. The providers' folders are
// left to whoever removes the state directory: a mount may be in them.
func (a *Agent) removeState() error {
	var errs []error
	for _, name := range []string{"journal", logName, logName + ".1", programName} {
		errs = append(errs, os.RemoveAll(filepath.Join(a.options.StateDir, name)))
	}
	return errors.Join(errs...)
}

// workspaces counts what any server has here.
func (a *Agent) workspaces() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, s := range a.servers {
		n += len(s.list())
	}
	return n
}

// server is what the agent keeps for one server.
type server struct {
	agent     *Agent
	id        string
	log       *slog.Logger
	providers []providers.Provider
	probes    *probes
	orphans   *orphans

	mu         sync.Mutex
	workspaces map[string]*workspace
	// changed is closed and made anew at each change.
	changed chan struct{}
}

func newServer(a *Agent, id string, drivers []providers.Provider) *server {
	s := &server{
		agent:      a,
		id:         id,
		log:        a.log.With("server", id),
		providers:  drivers,
		workspaces: map[string]*workspace{},
		changed:    make(chan struct{}),
	}
	s.probes = newProbes(drivers, a.timing, a.options.Now, s.notify)
	s.orphans = newOrphans(s)
	return s
}

// provider finds a driver by its name.
func (s *server) provider(name string) (providers.Provider, error) {
	for _, p := range s.providers {
		if p.Name() == name {
			return p, nil
		}
	}
	return nil, api.Errorf(api.FailedPrecondition, "use provider %q: this node has none of that name", name).
		WithNext("vendetta node status shows the providers of a node")
}

// notify wakes every watcher.
func (s *server) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// changes returns a channel that is closed at the next change.
func (s *server) changes() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// adopt takes a workspace up from the journal.
func (s *server) adopt(id string, r record) {
	w := newWorkspace(s, id)
	w.load(r)
	s.mu.Lock()
	s.workspaces[id] = w
	s.mu.Unlock()
	w.begin()
}

// workspace returns the workspace of an id; it is made when there is none.
func (s *server) workspace(id string) *workspace {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.workspaces[id]
	if w == nil {
		w = newWorkspace(s, id)
		s.workspaces[id] = w
		w.begin()
	}
	return w
}

// drop forgets a workspace of which there is nothing to remember.
func (s *server) drop(w *workspace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.record.request == nil || w.removed() && (w.op == nil || w.op.ended) {
		w.gone = true
		delete(s.workspaces, w.id)
		w.nudge()
	}
}

// list returns the workspaces that are not removed.
func (s *server) list() []*workspace {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*workspace
	for _, w := range s.workspaces {
		if w.present() {
			all = append(all, w)
		}
	}
	return all
}

func (s *server) link(id string) (*link, error) {
	s.mu.Lock()
	w := s.workspaces[id]
	s.mu.Unlock()
	if w == nil || !w.present() {
		return nil, api.Errorf(api.NotFound, "reach workspace %q: this node has none with that id", id)
	}
	o := w.report()
	if o.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED {
		return nil, api.Errorf(api.FailedPrecondition, "reach workspace %s: it is paused", w.name()).
			WithNext("vendetta workspace resume %s", w.name())
	}
	if l := w.guest(); l != nil {
		return l, nil
	}
	state := stateName(o.GetState())
	if o.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED && o.GetMessage() != "" {
		state += ": " + o.GetMessage()
	}
	return nil, api.Errorf(api.FailedPrecondition, "reach workspace %s: it is %s", w.name(), state).
		WithNext("vendetta workspace up %s", w.name())
}
