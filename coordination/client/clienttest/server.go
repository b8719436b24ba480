package clienttest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// Server is a coordination server whose state a test sets and reads under Lock.
type Server struct {
	sync.Mutex
	Nodes []*vendettav1.Node
	// Programs are the commands that every workspace has, by argv[0].
	Programs map[string]Program
	// Hold keeps operations pending while it is set.
	Hold bool
	// Refuse, when set, may answer any call instead of its handler.
	Refuse func(w http.ResponseWriter, r *http.Request) bool
	// Calls counts requests by the last element of their path.
	Calls map[string]int

	ctx        context.Context //nolint:containedctx // the test's, for the commands that outlive a call
	owner      conc.WaitGroup
	workspaces map[string]*workspace
	operations map[string]*vendettav1.Operation
	changed    chan struct{}
	conns      map[net.Conn]bool
	down       bool
	nextID     int
	handler    http.Handler
}

type workspace struct {
	record *vendettav1.Workspace
	guest  *Guest
	// snapshots are the oldest first.
	snapshots []*vendettav1.Snapshot
	measured  int
	// mounted answers in the guest's place.
	mounted http.Handler
}

// Mount puts another guest, a real one say, into a workspace.
func (s *Server) Mount(name string, guest http.Handler) {
	s.Lock()
	defer s.Unlock()
	s.workspaces[name].mounted = guest
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	ctx, cancel := context.WithCancel(t.Context())
	s := &Server{
		Programs: programs(), Calls: map[string]int{}, ctx: ctx,
		workspaces: map[string]*workspace{}, operations: map[string]*vendettav1.Operation{},
		changed: make(chan struct{}), conns: map[net.Conn]bool{},
	}
	mux := http.NewServeMux()
	mux.Handle(vendettav1connect.NewNodeServiceHandler(nodes{server: s}))
	mux.Handle(vendettav1connect.NewWorkspaceServiceHandler(workspaces{s: s}))
	mux.Handle(vendettav1connect.NewOperationServiceHandler(operations{server: s}))
	mux.HandleFunc("/workspaces/{name}/guest/", s.toGuest)
	s.handler = mux
	t.Cleanup(func() {
		s.Cut()
		cancel()
		s.owner.Wait()
	})
	return s
}

// Dial connects to the server, or fails while it is down.
func (s *Server) Dial(context.Context) (net.Conn, error) {
	s.Lock()
	defer s.Unlock()
	if s.down {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	s.conns[far] = true
	s.owner.Go(func() {
		wire.Serve(s.ctx, far, http.HandlerFunc(s.serve))
		s.Lock()
		delete(s.conns, far)
		s.Unlock()
	})
	return near, nil
}

// Cut breaks every connection.
func (s *Server) Cut() {
	s.Lock()
	defer s.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// SetDown makes dialling fail, or work again. Connections stay; see Cut.
func (s *Server) SetDown(down bool) {
	s.Lock()
	defer s.Unlock()
	s.down = down
}

// Guest is the inside of a workspace; the test fails without one of that name.
func (s *Server) Guest(t testing.TB, name string) *Guest {
	t.Helper()
	s.Lock()
	defer s.Unlock()
	w, ok := s.workspaces[name]
	if !ok {
		t.Fatalf("no workspace %s", name)
	}
	return w.guest
}

// Count is how often a method was called.
func (s *Server) Count(method string) int {
	s.Lock()
	defer s.Unlock()
	return s.Calls[method]
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	method := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	s.Lock()
	s.Calls[method]++
	refuse := s.Refuse
	s.Unlock()
	if refuse != nil && refuse(w, r) {
		return
	}
	s.handler.ServeHTTP(w, r)
}

func (s *Server) toGuest(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	s.Lock()
	ws := s.workspaces[name]
	s.Unlock()
	if ws != nil && ws.mounted != nil {
		http.StripPrefix("/workspaces/"+name+"/guest", ws.mounted).ServeHTTP(w, r)
		return
	}
	g := &Guest{missing: name}
	if ws != nil {
		g = ws.guest
	}
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewProcessServiceHandler(processes{guest: g}))
	mux.Handle(guestv1connect.NewFileServiceHandler(files{guest: g}))
	mux.Handle(guestv1connect.NewProjectServiceHandler(project{guest: g}))
	http.StripPrefix("/workspaces/"+name+"/guest", mux).ServeHTTP(w, r)
}

// ServeQuietly answers a request without asking Refuse.
func (s *Server) ServeQuietly(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }
