package main

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
)

// stage is a command line before a server in memory.
type stage struct {
	t      *testing.T
	server *clienttest.Server
	nodes  *fakeNodes
	images *fakeImages
	env    map[string]string
	input  string
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, server: clienttest.New(t), env: map[string]string{"VENDETTA_STATE_DIR": t.TempDir()}}
	s.nodes = &fakeNodes{server: s.server}
	s.images = &fakeImages{}
	mux := http.NewServeMux()
	mux.Handle(vendettav1connect.NewNodeServiceHandler(s.nodes))
	mux.Handle(vendettav1connect.NewServerServiceHandler(s.nodes))
	mux.Handle(vendettav1connect.NewImageServiceHandler(s.images))
	s.server.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if s.nodes.refusal(r) {
			connectError(w, r)
			return true
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			return false
		}
		mux.ServeHTTP(w, r)
		return true
	}
	return s
}

// connectError answers as a handler that failed does.
func connectError(w http.ResponseWriter, r *http.Request) {
	_ = connect.NewErrorWriter().Write(w, r, api.ToConnect(api.Errorf(api.Internal, "the server is out of order")))
}

type result struct {
	out, err string
	code     int
}

// run runs one command line as main does.
func (s *stage) run(args ...string) result {
	s.t.Helper()
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(s.input), &out, &errOut, func(name string) string { return s.env[name] })
	a.connect = s.connect
	code := run(context.Background(), a, args)
	return result{out.String(), errOut.String(), code}
}

// connect is what a command line connects to.
func (s *stage) connect(context.Context) (*client.Client, error) {
	return client.New(s.server.Dial), nil
}

// ok runs a command line that has to succeed and print every one of the words.
func (s *stage) ok(line string, words ...string) result {
	s.t.Helper()
	r := s.run(strings.Fields(line)...)
	if r.code != 0 {
		s.t.Fatalf("vendetta %s: exit code %d\n%s%s", line, r.code, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.out, w) {
			s.t.Errorf("vendetta %s: %q is missing in:\n%s", line, w, r.out)
		}
	}
	return r
}

// fails runs a command line that has to end with the code and say the words.
func (s *stage) fails(code int, line string, words ...string) result {
	s.t.Helper()
	r := s.run(strings.Fields(line)...)
	if r.code != code {
		s.t.Errorf("vendetta %s: exit code %d, want %d\n%s%s", line, r.code, code, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			s.t.Errorf("vendetta %s: %q is missing in:\n%s", line, w, r.err)
		}
	}
	return r
}

// await polls until the condition holds.
func (s *stage) await(what string, holds func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

// fakeNodes is what the server in memory lacks: changes of nodes, and the server
// itself.
type fakeNodes struct {
	vendettav1connect.UnimplementedNodeServiceHandler
	vendettav1connect.UnimplementedServerServiceHandler
	server *clienttest.Server

	mu     sync.Mutex
	broken string
	probes [][]*vendettav1.HostKey
	added  *vendettav1.AddNodeRequest
	label  *vendettav1.LabelNodeRequest
	drain  *vendettav1.DrainNodeRequest
	remove *vendettav1.RemoveNodeRequest
	spares *vendettav1.SetSparesRequest
	checks []*vendettav1.NodeCheck
}

// breaks makes calls fail whose path contains the word.
func (f *fakeNodes) breaks(word string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = word
}

func (f *fakeNodes) refusal(r *http.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken != "" && strings.Contains(r.URL.Path, f.broken)
}

func (f *fakeNodes) find(name string) (*vendettav1.Node, error) {
	f.server.Lock()
	defer f.server.Unlock()
	for _, n := range f.server.Nodes {
		if n.GetName() == name {
			return n, nil
		}
	}
	return nil, api.ToConnect(api.Errorf(api.NotFound, "node %s: there is none", name).WithNext("vendetta node list"))
}

func (f *fakeNodes) ListNodes(context.Context, *vendettav1.ListNodesRequest) (*vendettav1.ListNodesResponse, error) {
	f.server.Lock()
	defer f.server.Unlock()
	return &vendettav1.ListNodesResponse{Nodes: f.server.Nodes}, nil
}

func (f *fakeNodes) GetNode(_ context.Context, r *vendettav1.GetNodeRequest) (*vendettav1.Node, error) {
	return f.find(r.GetName())
}

func (f *fakeNodes) ProbeNode(context.Context, *vendettav1.ProbeNodeRequest) (*vendettav1.ProbeNodeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.probes) == 0 {
		return &vendettav1.ProbeNodeResponse{}, nil
	}
	keys := f.probes[0]
	f.probes = f.probes[1:]
	return &vendettav1.ProbeNodeResponse{HostKeys: keys}, nil
}

func (f *fakeNodes) AddNode(_ context.Context, r *vendettav1.AddNodeRequest) (*vendettav1.Node, error) {
	f.mu.Lock()
	f.added = r
	f.mu.Unlock()
	return f.server.AddNode(r.GetName()), nil
}

func (f *fakeNodes) LabelNode(_ context.Context, r *vendettav1.LabelNodeRequest) (*vendettav1.Node, error) {
	f.label = r
	return f.find(r.GetName())
}

func (f *fakeNodes) DrainNode(_ context.Context, r *vendettav1.DrainNodeRequest) (*vendettav1.Node, error) {
	f.drain = r
	return f.find(r.GetName())
}

func (f *fakeNodes) SetSpares(_ context.Context, r *vendettav1.SetSparesRequest) (*vendettav1.Node, error) {
	f.spares = r
	return f.find(r.GetNode())
}

func (f *fakeNodes) RemoveNode(_ context.Context, r *vendettav1.RemoveNodeRequest) (*vendettav1.RemoveNodeResponse, error) {
	f.remove = r
	_, err := f.find(r.GetName())
	return &vendettav1.RemoveNodeResponse{Message: "the agent stays on the machine"}, err
}

func (f *fakeNodes) TestNode(_ context.Context, r *vendettav1.TestNodeRequest) (*vendettav1.TestNodeResponse, error) {
	_, err := f.find(r.GetName())
	return &vendettav1.TestNodeResponse{Checks: f.checks}, err
}

func (f *fakeNodes) NodeLogs(_ context.Context, r *vendettav1.NodeLogsRequest, s *connect.ServerStream[vendettav1.NodeLogsResponse]) error {
	if _, err := f.find(r.GetName()); err != nil {
		return err
	}
	for _, line := range []string{"first line\n", "second line\n"} {
		if err := s.Send(&vendettav1.NodeLogsResponse{Data: []byte(line)}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeNodes) ServerStatus(context.Context, *vendettav1.ServerStatusRequest) (*vendettav1.ServerStatusResponse, error) {
	return &vendettav1.ServerStatusResponse{Version: "v9", Protocol: 1, Pid: 4711, Nodes: 2}, nil
}
