package coordination

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// The keys of the server's own values in the store.
const (
	metaServerID = "server_id"
	metaEpoch    = "epoch"
)

// reconcileInterval is how often desired and observed states are compared when
// nothing calls for it earlier.
const reconcileInterval = 10 * time.Second

// Options are what a server needs.
type Options struct {
	Store     store.Store
	Dialer    Dialer
	Installer Installer
	// Version of the program, for people and for node agents.
	Version string
	// StateDir is named in the status and nowhere else used.
	StateDir string
	// PublicKey is the server's own key, as authorized_keys has it.
	PublicKey string
	// PID of the server's process, for the status.
	PID int
	// Shutdown is called when a caller asks the server to end. It must not wait
	// for that end.
	Shutdown func()
	// Now is the clock of records; nil means time.Now.
	Now func() time.Time
	// Rand is the source of ids; nil means crypto/rand.
	Rand   io.Reader
	Logger *slog.Logger
}

// Server is the domain: it answers the services of vendetta.v1, keeps a link to
// every node, dispatches operations and reconciles. Its methods may be called
// at the same time; those that need a node wait until Run is running.
type Server struct {
	opts    Options
	log     *slog.Logger
	now     func() time.Time
	store   store.Store
	id      string
	epoch   string
	started time.Time

	waiters     waiters
	spareMemory spareMemory

	running chan struct{} // closed when Run has loaded what the store holds
	kick    chan struct{} // asks for a reconciliation of every node

	mu sync.Mutex
	// spawn runs a task until Run ends or the returned function is called; nil
	// while nothing may be started.
	spawn   func(task func(context.Context)) context.CancelFunc
	links   map[string]*link
	joining map[string]bool // names of nodes that are being added or removed
}

var (
	_ vendettav1connect.NodeServiceHandler      = (*Server)(nil)
	_ vendettav1connect.WorkspaceServiceHandler = (*Server)(nil)
	_ vendettav1connect.OperationServiceHandler = (*Server)(nil)
	_ vendettav1connect.ServerServiceHandler    = (*Server)(nil)
)

// New returns a server on opts.Store. The first server on a store gives it the
// id by which node agents keep servers apart.
func New(ctx context.Context, opts Options) (*Server, error) {
	if opts.Store == nil || opts.Dialer == nil || opts.Installer == nil {
		return nil, errors.New("new server: a store, a dialer and an installer are needed")
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opts:    opts,
		log:     opts.Logger,
		now:     opts.Now,
		store:   opts.Store,
		started: opts.Now(),
		running: make(chan struct{}),
		kick:    make(chan struct{}, 1),
		links:   map[string]*link{},
		joining: map[string]bool{},
	}
	fresh, err := s.newID(serverIDLength)
	if err != nil {
		return nil, fmt.Errorf("new server: %w", err)
	}
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if s.id, err = metaOr(tx, metaServerID, fresh); err != nil {
			return err
		}
		s.epoch, err = metaOr(tx, metaEpoch, "1")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("new server: %w", err)
	}
	return s, nil
}

// metaOr returns the value under key, which is set to value when there is none.
func metaOr(tx store.Tx, key, value string) (string, error) {
	have, err := tx.Meta(key)
	if errors.Is(err, store.ErrNotFound) {
		return value, tx.SetMeta(key, value)
	}
	return have, err
}

// ID is the server's own, the same for the life of its store.
func (s *Server) ID() string { return s.id }

// Run keeps the links to the nodes, dispatches what is pending and reconciles,
// until ctx is done; then it waits for everything it started. It is called once.
func (s *Server) Run(ctx context.Context) error {
	var nodes []store.Node
	if err := s.store.View(ctx, func(tx store.Tx) (err error) {
		nodes, err = tx.Nodes()
		return err
	}); err != nil {
		if ctx.Err() != nil {
			return nil // it ended before it began
		}
		return fmt.Errorf("run server: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	tasks := conc.NewWaitGroup()
	defer tasks.Wait()
	defer func() {
		cancel()
		s.mu.Lock()
		s.spawn = nil
		s.mu.Unlock()
	}()

	s.mu.Lock()
	s.spawn = func(task func(context.Context)) context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		tasks.Go(func() { task(ctx) })
		return cancel
	}
	s.mu.Unlock()
	for _, n := range nodes {
		if n.State != vendettav1.NodeState_NODE_STATE_REMOVED {
			if _, err := s.openLink(n); err != nil {
				return err
			}
		}
	}
	close(s.running)

	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	again := time.NewTimer(reconcileInterval)
	again.Stop() // nothing is known yet that needs to be looked at again
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-again.C:
		case <-s.kick:
		}
		s.reconcile(ctx)
		if d := s.lookAfterSpares(ctx); d > 0 {
			again.Reset(d)
		}
	}
}

// reconcileSoon asks Run for a reconciliation.
func (s *Server) reconcileSoon() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// awaitRun returns when the server runs, or why it does not.
func (s *Server) awaitRun(ctx context.Context) error {
	select {
	case <-s.running:
		return nil
	case <-ctx.Done():
		return api.Errorf(api.Unavailable, "server: not running yet: %w", context.Cause(ctx))
	}
}

// openLink starts the link of a node, or returns the one that it has.
func (s *Server) openLink(n store.Node) (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.links[n.ID]; l != nil {
		return l, nil
	}
	if s.spawn == nil {
		return nil, api.Errorf(api.Unavailable, "node %s: the server is ending", n.Name).
			WithNext("vendetta server start")
	}
	l := newLink(s, n)
	s.links[n.ID] = l
	l.stop = s.spawn(l.run)
	return l, nil
}

// closeLink ends the link of a node and waits for it.
func (s *Server) closeLink(ctx context.Context, nodeID string) {
	s.mu.Lock()
	l := s.links[nodeID]
	delete(s.links, nodeID)
	s.mu.Unlock()
	if l == nil {
		return
	}
	l.stop()
	select {
	case <-l.ended:
	case <-ctx.Done():
	}
}

// linkTo returns the link of a node, nil when it has none.
func (s *Server) linkTo(nodeID string) *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[nodeID]
}
