package httpapi

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination"
	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// world is an edge with fakes behind it, reached over real connections.
type world struct {
	options Options
	handler *handler
	client  *http.Client
	log     *logLines

	mu      sync.Mutex
	entries []Entry
	// auditErr is what recording fails with.
	auditErr error
	nodes    fakeNodes
	guest    fakeGuest
	bulk     []bool
	// headers are those of the last request that came to the node agent.
	headers http.Header
}

// newWorld starts the edge. change may alter its options.
func newWorld(t *testing.T, change func(*Options)) *world {
	t.Helper()
	w := &world{log: &logLines{}}
	w.guest.world = w
	w.options = bare()
	w.options.Nodes = &w.nodes
	w.options.Guests = w
	w.options.Audit = w.audit
	w.options.Authenticate = Local
	w.options.Logger = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if change != nil {
		change(&w.options)
	}
	h := New(w.options)
	w.handler = h.(*handler)
	w.client = connectTo(t, h)
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewProcessServiceHandler(&w.guest))
	mux.Handle(guestv1connect.NewFileServiceHandler(&w.guest))
	agent := connectTo(t, http.StripPrefix("/workspaces/id7/guest", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.headers = r.Header.Clone()
		w.mu.Unlock()
		mux.ServeHTTP(rw, r)
	})))
	w.guest.way = agent.Transport
	return w
}

// connectTo is a client of h.
func connectTo(t *testing.T, h http.Handler) *http.Client {
	t.Helper()
	return wire.Client(dialer(t, h))
}

// dialer serves h on as many connections as are asked for.
func dialer(t *testing.T, h http.Handler) func(context.Context) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var servers conc.WaitGroup
	t.Cleanup(func() {
		cancel()
		servers.Wait()
	})
	return func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		servers.Go(func() { wire.Serve(ctx, far, h) })
		return near, nil
	}
}

func (w *world) audit(_ context.Context, e Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.auditErr != nil {
		return w.auditErr
	}
	w.entries = append(w.entries, e)
	return nil
}

func (w *world) recorded() []Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Entry(nil), w.entries...)
}

// Guest implements Guests: there is one workspace, hello.
func (w *world) Guest(_ context.Context, workspace string, bulk bool) (string, http.RoundTripper, error) {
	if workspace != "hello" {
		return "", nil, api.Errorf(api.NotFound, "workspace %s: there is none", workspace).WithNext("vendetta workspace list")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bulk = append(w.bulk, bulk)
	return "id7", w.guest.way, nil
}

type fakeNodes struct {
	vendettav1connect.UnimplementedNodeServiceHandler
	get  func(context.Context) (*vendettav1.Node, error)
	logs func(*connect.ServerStream[vendettav1.NodeLogsResponse]) error
	add  *vendettav1.AddNodeRequest
}

func (f *fakeNodes) GetNode(ctx context.Context, _ *vendettav1.GetNodeRequest) (*vendettav1.Node, error) {
	return f.get(ctx)
}

func (f *fakeNodes) AddNode(_ context.Context, req *vendettav1.AddNodeRequest) (*vendettav1.Node, error) {
	f.add = req
	return &vendettav1.Node{Name: req.GetName()}, nil
}

func (f *fakeNodes) NodeLogs(_ context.Context, _ *vendettav1.NodeLogsRequest, s *connect.ServerStream[vendettav1.NodeLogsResponse]) error {
	return f.logs(s)
}

// fakeGuest keeps the last request of each kind, and how many entries stood in
// the audit log when it came.
type fakeGuest struct {
	guestv1connect.UnimplementedProcessServiceHandler
	guestv1connect.UnimplementedFileServiceHandler
	world *world
	way   http.RoundTripper

	recordedBefore int
	start          *guestv1.StartRequest
	signal         *guestv1.SignalRequest
	write          *guestv1.WriteFileRequest
	imported       []*guestv1.ImportRequest
	attached       chan struct{}
	released       chan struct{}
}

func (g *fakeGuest) came() { g.recordedBefore = len(g.world.recorded()) }

func (g *fakeGuest) Start(ctx context.Context, req *guestv1.StartRequest, s *connect.ServerStream[guestv1.ProcessEvent]) error {
	g.came()
	g.start = req
	if err := s.Send(&guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Started{Started: &guestv1.Process{Id: req.GetProcessId()}}}); err != nil {
		return err
	}
	if req.GetStdinOpen() { // stands for a command that goes on
		close(g.attached)
		<-ctx.Done()
		close(g.released)
	}
	return nil
}

func (g *fakeGuest) Attach(_ context.Context, _ *guestv1.AttachRequest, s *connect.ServerStream[guestv1.ProcessEvent]) error {
	g.came()
	return nil
}

func (g *fakeGuest) Signal(_ context.Context, req *guestv1.SignalRequest) (*guestv1.SignalResponse, error) {
	g.came()
	g.signal = req
	return &guestv1.SignalResponse{}, nil
}

func (g *fakeGuest) WriteFile(_ context.Context, req *guestv1.WriteFileRequest) (*guestv1.FileInfo, error) {
	g.came()
	g.write = req
	return &guestv1.FileInfo{Path: req.GetPath(), Size: uint64(len(req.GetData()))}, nil
}

func (g *fakeGuest) Import(_ context.Context, s *connect.ClientStream[guestv1.ImportRequest]) (*guestv1.ImportResponse, error) {
	g.came()
	g.imported = nil
	for s.Receive() {
		g.imported = append(g.imported, s.Msg())
	}
	return &guestv1.ImportResponse{Entries: int64(len(g.imported))}, s.Err()
}

// logLines is a log that tests can read.
type logLines struct {
	mu   sync.Mutex
	text []byte
}

var _ io.Writer = (*logLines)(nil)

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// reader is a principal who may only look.
func reader(*http.Request) (coordination.Principal, error) {
	return coordination.Principal{Name: "ann", Scope: vendettav1.Scope_SCOPE_READ}, nil
}

// bare are options with services that serve nothing.
func bare() Options {
	return Options{
		Nodes:      vendettav1connect.UnimplementedNodeServiceHandler{},
		Workspaces: vendettav1connect.UnimplementedWorkspaceServiceHandler{},
		Operations: vendettav1connect.UnimplementedOperationServiceHandler{},
		Server:     vendettav1connect.UnimplementedServerServiceHandler{},
	}
}
