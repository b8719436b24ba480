package nodeagent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/providers"
)

// box is a machine with one kind of instance. It outlives the agents on it.
type box struct {
	mu        sync.Mutex
	instances map[string]*boxInstance
	volumes   map[string]bool
	calls     []string
	// fail answers a call, named "create w1", with an error; block holds it up
	// until it is closed or the call's context ends.
	fail  map[string]error
	block map[string]chan struct{}
	// mute guests never answer; dying ones end at once.
	mute, dying bool
	boot        time.Duration
	digest      string
	specs       []providers.Spec
	status      providers.Status
	guests      sync.WaitGroup
	hello       *guestv1.HelloResponse
}

type boxInstance struct {
	providers.Instance
	// serve runs a guest on a stream until the instance ends.
	serve  func(net.Conn, http.Handler)
	cancel context.CancelFunc
	conns  map[net.Conn]bool
}

func newBox(t *testing.T) *box {
	b := &box{
		instances: map[string]*boxInstance{}, volumes: map[string]bool{},
		fail: map[string]error{}, block: map[string]chan struct{}{},
		status: providers.Status{Usable: true, Version: "1"},
		hello:  &guestv1.HelloResponse{Protocol: api.Protocol, Version: "test"},
	}
	t.Cleanup(func() {
		b.reboot()
		b.guests.Wait()
	})
	return b
}

func (b *box) Name() string { return "box" }

func (b *box) Probe(context.Context) providers.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// call records a call and lets it fail or wait as the test wants.
func (b *box) call(ctx context.Context, what, id string) error {
	name := what + " " + id
	b.mu.Lock()
	b.calls = append(b.calls, name)
	err, block := b.fail[name], b.block[name]
	b.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (b *box) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	b.mu.Lock()
	b.volumes[spec.Workspace] = true
	b.specs = append(b.specs, spec)
	b.mu.Unlock()
	if err := b.call(ctx, "create", spec.Workspace); err != nil {
		return providers.Instance{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.instances[spec.Workspace]
	if i == nil {
		i = &boxInstance{Instance: providers.Instance{Workspace: spec.Workspace, Name: "box-" + spec.Workspace, State: providers.StateStopped, Boot: b.boot, Digest: b.digest}, conns: map[net.Conn]bool{}}
		b.instances[spec.Workspace] = i
	}
	return i.Instance, nil
}

func (b *box) Start(ctx context.Context, id string) error {
	if err := b.call(ctx, "start", id); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.instances[id]
	if i == nil {
		return providers.ErrNotFound
	}
	if b.dying {
		i.State, i.Message = providers.StateStopped, "exec format error"
		return nil
	}
	if i.State == providers.StatePaused {
		i.State = providers.StateRunning
		return nil
	}
	if i.State != providers.StateRunning {
		i.State, i.Message = providers.StateRunning, ""
		var ctx context.Context
		ctx, i.cancel = context.WithCancel(context.Background())
		i.serve = func(conn net.Conn, guest http.Handler) {
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			if guest == nil {
				<-ctx.Done()
			} else if wire.AcceptLink(conn) == nil {
				wire.Serve(ctx, conn, guest)
			}
		}
	}
	return nil
}

// halt ends an instance as a crash of its guest does.
func (b *box) halt(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.haltLocked(id)
}

func (b *box) haltLocked(id string) {
	i := b.instances[id]
	if i == nil || i.State != providers.StateRunning && i.State != providers.StatePaused {
		return
	}
	i.State, i.Message = providers.StateStopped, "killed"
	i.cancel()
	for conn := range i.conns {
		_ = conn.Close()
	}
}

// cut closes the guests' streams and leaves the instances running.
func (b *box) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, i := range b.instances {
		for conn := range i.conns {
			_ = conn.Close()
		}
	}
}

// reboot stops everything.
func (b *box) reboot() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.instances {
		b.haltLocked(id)
	}
}

func (b *box) Stop(ctx context.Context, id string, _ time.Duration) error {
	if err := b.call(ctx, "stop", id); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.instances[id] == nil {
		return providers.ErrNotFound
	}
	b.haltLocked(id)
	return nil
}

func (b *box) Destroy(ctx context.Context, id string, removeVolume bool) error {
	what := "destroy"
	if removeVolume {
		what = "remove"
	}
	if err := b.call(ctx, what, id); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.haltLocked(id)
	delete(b.instances, id)
	if removeVolume {
		delete(b.volumes, id)
	}
	return nil
}

func (b *box) Inspect(_ context.Context, id string) (providers.Instance, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.fail["inspect "+id]; err != nil {
		return providers.Instance{}, err
	}
	if i := b.instances[id]; i != nil {
		return i.Instance, nil
	}
	return providers.Instance{}, providers.ErrNotFound
}

func (b *box) List(context.Context) ([]providers.Instance, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.fail["list"]; err != nil {
		return nil, err
	}
	var all []providers.Instance
	for _, i := range b.instances {
		all = append(all, i.Instance)
	}
	return all, nil
}

func (b *box) Usage(ctx context.Context, id string) (providers.Usage, error) {
	if err := b.call(ctx, "usage", id); err != nil {
		return providers.Usage{}, err
	}
	return providers.Usage{CPU: 1500 * time.Millisecond, MemoryBytes: 7, DiskBytes: -1}, nil
}

func (b *box) Connect(ctx context.Context, id string) (net.Conn, error) {
	if err := b.call(ctx, "connect", id); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.instances[id]
	if i == nil || i.State != providers.StateRunning {
		return nil, errors.New("no guest there")
	}
	near, far := net.Pipe()
	i.conns[far] = true
	guest, serve := guestHandler(b.hello), i.serve
	if b.mute {
		guest = nil
	}
	b.guests.Go(func() {
		defer func() {
			_ = far.Close()
			b.mu.Lock()
			defer b.mu.Unlock()
			delete(i.conns, far)
		}()
		serve(far, guest)
	})
	return near, nil
}

// did returns the calls of the kinds that change something.
func (b *box) did() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.calls), func(c string) bool { return len(c) > 8 && c[:8] == "connect " })
}

func (b *box) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *box) state(id string) providers.State {
	i, err := b.Inspect(context.Background(), id)
	if err != nil {
		return "absent"
	}
	return i.State
}

type helloGuest struct{ answer *guestv1.HelloResponse }

func (g helloGuest) Hello(context.Context, *guestv1.HelloRequest) (*guestv1.HelloResponse, error) {
	return g.answer, nil
}

func guestHandler(hello *guestv1.HelloResponse) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewGuestServiceHandler(helloGuest{hello}))
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Seen-Server", r.Header.Get(api.ServerHeader))
		_, _ = io.Copy(w, r.Body)
	})
	return mux
}

var quick = timing{
	guestAnswer: 5 * time.Second, linkOpen: 2 * time.Second, linkRetry: time.Millisecond, linkRetryMax: 20 * time.Millisecond,
	linkWait: 2 * time.Second, restart: 5 * time.Millisecond, restartMax: 20 * time.Millisecond, stable: time.Minute,
	look: 20 * time.Millisecond, probe: time.Second, probed: time.Minute, interval: time.Minute, tombstone: time.Hour,
	orphans: time.Hour, grace: 24 * time.Hour, follow: 5 * time.Millisecond, farewell: 700 * time.Millisecond, importIdle: time.Minute,
}

// node is a running agent and a client of it.
type node struct {
	*testing.T
	agent  *Agent
	dir    string
	socket string
	http   *http.Client
	cancel context.CancelFunc
	ended  chan error
	once   sync.Once
}

// start runs an agent on dir, a fresh one when dir is empty.
func start(t *testing.T, dir string, drivers []providers.Provider, change ...func(*Options)) *node {
	t.Helper()
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "v"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	fast := quick
	options := Options{StateDir: dir, Logger: slog.New(slog.DiscardHandler), Providers: func(string) []providers.Provider { return drivers }, timing: &fast}
	for _, c := range change {
		c(&options)
	}
	agent, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, agent, dir)
}

func run(t *testing.T, agent *Agent, dir string) *node {
	t.Helper()
	listener, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{T: t, agent: agent, dir: dir, socket: SocketPath(dir), cancel: cancel, ended: make(chan error, 1)}
	go func() { n.ended <- agent.Run(ctx, listener) }()
	n.http = wire.Client(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.socket)
	})
	t.Cleanup(func() { n.end() })
	return n
}

// end shuts the agent down and waits for it.
func (n *node) end() {
	n.once.Do(func() {
		n.cancel()
		n.http.CloseIdleConnections()
		select {
		case err := <-n.ended:
			if err != nil {
				n.Errorf("run: %v", err)
			}
		case <-time.After(10 * time.Second):
			n.Errorf("the agent did not end")
		}
	})
}

// from adds the header that names a server.
type from struct {
	next http.RoundTripper
	id   string
}

func (f from) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if f.id != "" {
		r.Header.Set(api.ServerHeader, f.id)
	}
	return f.next.RoundTrip(r)
}

func (n *node) as(server string) nodeagentv1connect.NodeAgentServiceClient {
	return nodeagentv1connect.NewNodeAgentServiceClient(n.client(server), wire.BaseURL)
}

func (n *node) client(server string) *http.Client {
	return &http.Client{Transport: from{n.http.Transport, server}}
}

const (
	running = vendettav1.DesiredState_DESIRED_STATE_RUNNING
	stopped = vendettav1.DesiredState_DESIRED_STATE_STOPPED
	down    = vendettav1.DesiredState_DESIRED_STATE_DOWN
	removed = vendettav1.DesiredState_DESIRED_STATE_REMOVED
	paused  = vendettav1.DesiredState_DESIRED_STATE_PAUSED

	isRunning = vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING
	isStopped = vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED
	isDown    = vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN
	isFailed  = vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED
	isPaused  = vendettav1.WorkspaceState_WORKSPACE_STATE_PAUSED
)

func request(op string, generation int64, desired vendettav1.DesiredState) *nodeagentv1.ApplyRequest {
	return &nodeagentv1.ApplyRequest{
		OperationId: op, WorkspaceId: "w1", WorkspaceName: "web", Generation: generation, Desired: desired,
		Spec: &vendettav1.WorkspaceSpec{Provider: "box", Image: "debian:12"},
	}
}

// apply applies and expects an answer.
func (n *node) apply(r *nodeagentv1.ApplyRequest) *nodeagentv1.ObservedWorkspace {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 20*time.Second)
	defer cancel()
	res, err := n.as("s1").Apply(ctx, r)
	if err != nil {
		n.Fatalf("apply %s: %v", r.GetOperationId(), err)
	}
	return res.GetObserved()
}

// seen returns what is reported of w1 now.
func (n *node) seen() *nodeagentv1.ObservedWorkspace {
	n.Helper()
	s, err := n.agent.server("s1")
	if err != nil {
		n.Fatal(err)
	}
	for _, w := range s.list() {
		if w.id == "w1" {
			return w.report()
		}
	}
	return nil
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func (n *node) journalFile() string { return filepath.Join(n.dir, "journal", "s1", "w1.json") }
