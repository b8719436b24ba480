package coordination

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/memory"
)

// fakeAgent is a node agent in memory: a journal, real HTTP/2, no instances. It
// may be killed and started again, and keeps its journal over that.
type fakeAgent struct {
	nodeagentv1connect.UnimplementedNodeAgentServiceHandler

	mu       sync.Mutex
	alive    bool
	mute     bool // takes streams and says nothing
	protocol int32
	report   *vendettav1.NodeReport
	journal  map[string]*nodeagentv1.ObservedWorkspace // by workspace id
	answers  map[string]*nodeagentv1.ObservedWorkspace // by operation id
	applied  []*nodeagentv1.ApplyRequest               // in the order of their coming
	done     map[string]int                            // by operation id: how often it was carried out
	fail     map[vendettav1.DesiredState]*api.Error
	harmless *api.Error // what fails beside the desired state, and leaves the workspace
	note     string
	digest   string
	kept     map[string][]string // snapshots, by workspace id
	asked    *api.Error          // what questions are answered with
	wrong    bool                // answers with another state than the desired one
	refuse   *api.Error          // what Apply answers with instead
	hold     chan struct{}       // Apply waits for it after journaling
	project  *guestv1.ProjectStatusResponse
	guestErr *api.Error
	logs     []string
	stall    chan struct{}   // closed by the next request to a guest, which then hangs
	servers  map[string]bool // ids of the servers that called
	watchers map[chan struct{}]struct{}
	conns    map[net.Conn]struct{}
	stop     []context.CancelFunc
	dials    int
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{
		alive:    true,
		protocol: api.Protocol,
		report: &vendettav1.NodeReport{
			Hostname: "fake", AgentVersion: "test", Protocol: api.Protocol,
			Capacity: &vendettav1.Capacity{MemoryFreeBytes: 4 << 30, DiskBytes: 100 << 30, DiskFreeBytes: 50 << 30},
			Providers: []*vendettav1.ProviderStatus{
				{Name: "docker", Usable: true, Version: "28", Capabilities: []string{"fork", "pause", "resize", "snapshot"}},
				{Name: "native", Usable: true},
			},
		},
		journal:  map[string]*nodeagentv1.ObservedWorkspace{},
		answers:  map[string]*nodeagentv1.ObservedWorkspace{},
		done:     map[string]int{},
		kept:     map[string][]string{},
		fail:     map[vendettav1.DesiredState]*api.Error{},
		project:  &guestv1.ProjectStatusResponse{},
		servers:  map[string]bool{},
		watchers: map[chan struct{}]struct{}{},
		conns:    map[net.Conn]struct{}{},
	}
}

func (a *fakeAgent) set(fn func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn()
}

func (a *fakeAgent) mux() http.Handler {
	mux := http.NewServeMux()
	path, h := nodeagentv1connect.NewNodeAgentServiceHandler(a)
	mux.Handle(path, h)
	_, guest := guestv1connect.NewProjectServiceHandler(fakeGuest{a})
	mux.HandleFunc("/workspaces/", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		stall := a.stall
		a.mu.Unlock()
		if stall != nil {
			close(stall)
			<-r.Context().Done()
			return
		}
		parts := strings.SplitN(r.URL.Path, "/", 5)
		r.URL.Path = "/" + parts[4]
		guest.ServeHTTP(w, r)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.set(func() { a.servers[r.Header.Get(api.ServerHeader)] = true })
		mux.ServeHTTP(w, r)
	})
}

type fakeGuest struct{ a *fakeAgent }

func (g fakeGuest) ProjectStatus(context.Context, *guestv1.ProjectStatusRequest) (*guestv1.ProjectStatusResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	if g.a.guestErr != nil {
		return nil, api.ToConnect(g.a.guestErr)
	}
	return g.a.project, nil
}

func (a *fakeAgent) dial() (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dials++
	if !a.alive {
		return nil, &api.Error{Code: api.Unavailable, Message: "no node agent is listening", Cause: ErrNoAgent}
	}
	client, server := net.Pipe()
	a.conns[server] = struct{}{}
	if a.mute {
		go func() { _, _ = io.Copy(io.Discard, server) }()
		return client, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = append(a.stop, cancel)
	go wire.Serve(ctx, server, a.mux())
	return client, nil
}

// kill ends the agent as kill -9 does.
func (a *fakeAgent) kill() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alive = false
	a.cut()
}

// cut breaks every stream; a.mu is held.
func (a *fakeAgent) cut() {
	for _, stop := range a.stop {
		stop()
	}
	for c := range a.conns {
		_ = c.Close()
	}
	a.stop, a.conns = nil, map[net.Conn]struct{}{}
}

func (a *fakeAgent) start() { a.set(func() { a.alive = true }) }

func (a *fakeAgent) Hello(context.Context, *nodeagentv1.HelloRequest) (*nodeagentv1.HelloResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &nodeagentv1.HelloResponse{Protocol: a.protocol, Version: "test", Report: a.report}, nil
}

func (a *fakeAgent) Watch(ctx context.Context, req *nodeagentv1.WatchRequest, out *connect.ServerStream[nodeagentv1.WatchResponse]) error {
	wake := make(chan struct{}, 1)
	a.set(func() { a.watchers[wake] = struct{}{} })
	defer a.set(func() { delete(a.watchers, wake) })
	tick := time.NewTicker(time.Duration(req.GetIntervalSeconds()) * time.Second)
	defer tick.Stop()
	for {
		a.mu.Lock()
		mute := a.mute
		m := &nodeagentv1.WatchResponse{Report: proto.CloneOf(a.report)}
		for _, o := range a.journal {
			m.Workspaces = append(m.Workspaces, proto.CloneOf(o))
		}
		a.mu.Unlock()
		if !mute {
			if err := out.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// changed wakes the watchers; a.mu is held.
func (a *fakeAgent) changed() {
	for w := range a.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

func (a *fakeAgent) Apply(ctx context.Context, req *nodeagentv1.ApplyRequest) (*nodeagentv1.ApplyResponse, error) {
	a.mu.Lock()
	a.applied = append(a.applied, proto.CloneOf(req))
	hold, refuse := a.hold, a.refuse
	a.mu.Unlock()
	if refuse != nil {
		return nil, api.ToConnect(refuse)
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if have := a.journal[req.GetWorkspaceId()]; have.GetGeneration() > req.GetGeneration() {
		return nil, api.ToConnect(api.Errorf(api.Conflict, "apply: generation %d is older than %d", req.GetGeneration(), have.GetGeneration()))
	}
	if o := a.answers[req.GetOperationId()]; o != nil {
		return &nodeagentv1.ApplyResponse{Observed: o}, nil
	}
	a.done[req.GetOperationId()]++
	o := &nodeagentv1.ObservedWorkspace{
		WorkspaceId: req.GetWorkspaceId(), Generation: req.GetGeneration(), OperationId: req.GetOperationId(),
		Instance: "vendetta-" + req.GetWorkspaceId(), ImageDigest: a.digest, Note: a.note,
	}
	if answered := a.beside(req, o); answered {
		return &nodeagentv1.ApplyResponse{Observed: o}, nil
	}
	switch req.GetDesired() {
	case vendettav1.DesiredState_DESIRED_STATE_RUNNING:
		o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
	case vendettav1.DesiredState_DESIRED_STATE_STOPPED:
		o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED
	case vendettav1.DesiredState_DESIRED_STATE_PAUSED:
		o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED
	default:
		o.State, o.Instance = vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN, ""
	}
	o.Linked = o.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
	if a.wrong {
		o.State = vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING
	}
	if e := a.fail[req.GetDesired()]; e != nil {
		o.State, o.Linked = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED, req.GetDesired() != vendettav1.DesiredState_DESIRED_STATE_RUNNING
		o.ErrorCode, o.Message, o.Next = string(e.Code), e.Message, e.Next
	}
	a.journal[req.GetWorkspaceId()] = o
	if req.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_REMOVED && o.GetErrorCode() == "" {
		delete(a.journal, req.GetWorkspaceId())
	}
	a.answers[req.GetOperationId()] = o
	a.changed()
	return &nodeagentv1.ApplyResponse{Observed: o}, nil
}

// beside does what is not about the desired state, and fails what is to fail
// without harm; it tells whether that is the answer. a.mu is held.
func (a *fakeAgent) beside(req *nodeagentv1.ApplyRequest, o *nodeagentv1.ObservedWorkspace) bool {
	id := req.GetWorkspaceId()
	have := a.journal[id]
	stays := req.GetDesired() == vendettav1.DesiredState_DESIRED_STATE_PAUSED || req.GetAction() != nil && req.GetForkOf() == ""
	if a.harmless != nil && stays {
		o.State, o.Linked = have.GetState(), have.GetLinked()
		a.journal[id] = proto.CloneOf(o)
		o.ErrorCode, o.Message, o.Next = string(a.harmless.Code), a.harmless.Message, a.harmless.Next
		a.answers[req.GetOperationId()] = o
		a.changed()
		return true
	}
	switch action := req.GetAction().(type) {
	case *nodeagentv1.ApplyRequest_CreateSnapshot:
		a.kept[id] = append(a.kept[id], action.CreateSnapshot)
	case *nodeagentv1.ApplyRequest_RemoveSnapshot:
		a.kept[id] = slices.DeleteFunc(a.kept[id], func(s string) bool { return s == action.RemoveSnapshot })
	case *nodeagentv1.ApplyRequest_Resize:
	default:
		return false
	}
	o.State, o.Linked = have.GetState(), have.GetLinked()
	a.journal[id], a.answers[req.GetOperationId()] = o, o
	a.changed()
	return true
}

func (a *fakeAgent) ListSnapshots(_ context.Context, req *nodeagentv1.ListSnapshotsRequest) (*nodeagentv1.ListSnapshotsResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked != nil {
		return nil, api.ToConnect(a.asked)
	}
	out := &nodeagentv1.ListSnapshotsResponse{}
	for _, name := range a.kept[req.GetWorkspaceId()] {
		out.Snapshots = append(out.Snapshots, &vendettav1.Snapshot{Name: name, Bytes: -1})
	}
	return out, nil
}

func (a *fakeAgent) Usage(context.Context, *nodeagentv1.UsageRequest) (*nodeagentv1.UsageResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked != nil {
		return nil, api.ToConnect(a.asked)
	}
	return &nodeagentv1.UsageResponse{CpuSeconds: 2.5, MemoryBytes: 7 << 20, DiskBytes: -1}, nil
}

func (a *fakeAgent) Logs(_ context.Context, _ *nodeagentv1.LogsRequest, out *connect.ServerStream[nodeagentv1.LogsResponse]) error {
	for _, line := range a.logs {
		if err := out.Send(&nodeagentv1.LogsResponse{Data: []byte(line)}); err != nil {
			return err
		}
	}
	return nil
}

func (a *fakeAgent) Shutdown(context.Context, *nodeagentv1.ShutdownRequest) (*nodeagentv1.ShutdownResponse, error) {
	return nil, errors.New("not used by the server")
}

// fleet is every machine there is: dialer and installer in one, by host name,
// "" for this machine.
type fleet struct {
	mu        sync.Mutex
	agents    map[string]*fakeAgent
	forgotten []string
	starts    int
	startErr  error
	install   func(Target, *vendettav1.Login) error
	uninstall func(Target) error
	dialErr   error
	keys      []*vendettav1.HostKey
	targets   []Target
}

func (f *fleet) agent(host string) *fakeAgent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.agents[host]
}

func (f *fleet) Dial(ctx context.Context, t Target) (net.Conn, error) {
	f.mu.Lock()
	err := f.dialErr
	f.mu.Unlock()
	a := f.agent(t.Address.GetHost())
	if err != nil {
		return nil, err
	}
	if a == nil {
		<-ctx.Done() // packets vanish
		return nil, ctx.Err()
	}
	return a.dial()
}

func (f *fleet) Forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten = append(f.forgotten, id)
}

func (f *fleet) Probe(_ context.Context, t Target, _ *vendettav1.Login) ([]*vendettav1.HostKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets = append(f.targets, t)
	return f.keys, f.dialErr
}

func (f *fleet) Install(_ context.Context, t Target, login *vendettav1.Login) (Target, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets = append(f.targets, t)
	if f.install != nil {
		if err := f.install(t, login); err != nil {
			return t, err
		}
	}
	t.Address = proto.CloneOf(t.Address)
	t.Address.Socket, t.Address.Program = "/run/agent.sock", "/bin/vendetta"
	return t, nil
}

func (f *fleet) Start(_ context.Context, t Target) error {
	a := f.agent(t.Address.GetHost())
	f.mu.Lock()
	f.starts++
	err := f.startErr
	f.mu.Unlock()
	if err != nil {
		return err
	}
	a.start()
	return nil
}

func (f *fleet) Uninstall(_ context.Context, t Target) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.uninstall != nil {
		return f.uninstall(t)
	}
	return nil
}

// world is a server with its machines. Everything lives in a synctest bubble.
type world struct {
	t      *testing.T
	fleet  *fleet
	store  store.Store
	server *Server
	stop   context.CancelFunc
	ended  chan error
	down   int // calls of Shutdown
}

// inWorld runs a test in a bubble with a server and machines of these names.
func inWorld(t *testing.T, hosts []string, fn func(ctx context.Context, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, fleet: &fleet{agents: map[string]*fakeAgent{}}, store: &faultyStore{Store: memory.New()}}
		for _, h := range hosts {
			w.fleet.agents[h] = newFakeAgent()
		}
		defer func() { // also when fn gives up
			w.halt()
			for _, a := range maps.Clone(w.fleet.agents) {
				if a != nil {
					a.kill()
				}
			}
			if err := w.store.Close(); err != nil {
				t.Error(err)
			}
		}()
		w.start()
		ctx := WithPrincipal(t.Context(), Principal{Name: "tester", Scope: vendettav1.Scope_SCOPE_ADMIN, Local: true})
		fn(ctx, w)
	})
}

// start runs a server on the world's store.
func (w *world) start() {
	w.t.Helper()
	s, err := New(context.Background(), Options{
		Store: w.store, Dialer: w.fleet, Installer: w.fleet, Version: "test", StateDir: "/state", PublicKey: "ssh-ed25519 AAAA",
		PID: 42, Shutdown: func() { w.down++ }, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.server, w.stop, w.ended = s, cancel, make(chan error, 1)
	go func() { w.ended <- s.Run(ctx) }()
}

// halt ends the server and waits for everything that it started.
func (w *world) halt() {
	w.t.Helper()
	w.stop()
	if err := <-w.ended; err != nil {
		w.t.Errorf("run: %v", err)
	}
}

// addLocal adds this machine.
func (w *world) addLocal(ctx context.Context) *vendettav1.Node {
	w.t.Helper()
	n, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "local", Address: &vendettav1.NodeAddress{Local: true}})
	if err != nil {
		w.t.Fatalf("add node: %v", err)
	}
	return n
}

func (w *world) addRemote(ctx context.Context, name string) *vendettav1.Node {
	w.t.Helper()
	n, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: name, Address: &vendettav1.NodeAddress{Host: name, User: "dev"}})
	if err != nil {
		w.t.Fatalf("add node: %v", err)
	}
	return n
}

// create makes a workspace and waits until its operation ends.
func (w *world) create(ctx context.Context, name string, spec *vendettav1.WorkspaceSpec) *vendettav1.Operation {
	w.t.Helper()
	resp, err := w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: name, Spec: spec})
	if err != nil {
		w.t.Fatalf("create %s: %v", name, err)
	}
	return w.wait(ctx, resp.GetOperation().GetId())
}

func (w *world) wait(ctx context.Context, op string) *vendettav1.Operation {
	w.t.Helper()
	v, err := w.server.WaitOperation(ctx, &vendettav1.WaitOperationRequest{Id: op, Seconds: 120})
	if err != nil {
		w.t.Fatalf("wait: %v", err)
	}
	return v
}

func (w *world) get(ctx context.Context, name string) *vendettav1.Workspace {
	w.t.Helper()
	v, err := w.server.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: name})
	if err != nil {
		w.t.Fatalf("get %s: %v", name, err)
	}
	return v
}

func (w *world) node(ctx context.Context, name string) *vendettav1.Node {
	w.t.Helper()
	v, err := w.server.GetNode(ctx, &vendettav1.GetNodeRequest{Name: name})
	if err != nil {
		w.t.Fatalf("get node %s: %v", name, err)
	}
	return v
}

// wantError checks code, words of the message, and that a next step is named.
func wantError(t *testing.T, err error, code api.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", code)
	}
	e := api.From(err)
	if e.Code != code {
		t.Errorf("code %s, want %s: %v", e.Code, code, err)
	}
	for _, word := range words {
		if !strings.Contains(e.Message, word) {
			t.Errorf("message %q lacks %q", e.Message, word)
		}
	}
	if e.Next == "" {
		t.Errorf("%q names no next step", e.Message)
	}
}
