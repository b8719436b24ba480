package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/vendetta-dev/vendetta/coordination"
	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// fakeAgents is one node, build1, and its agent.
type fakeAgents struct {
	nodeagentv1connect.UnimplementedNodeAgentServiceHandler
	way http.RoundTripper

	mu       sync.Mutex
	asked    []string
	header   http.Header
	refuse   *api.Error
	received int
	// pulling waits before the image; gone is closed when a pull's caller left.
	pulling chan struct{}
	gone    chan struct{}
}

// withAgents is an edge before a node agent, and a client of it.
func withAgents(t *testing.T, change func(*Options)) (*world, *fakeAgents, vendettav1connect.ImageServiceClient) {
	t.Helper()
	f := &fakeAgents{gone: make(chan struct{})}
	path, service := nodeagentv1connect.NewNodeAgentServiceHandler(f)
	mux := http.NewServeMux()
	mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.header = r.Header.Clone()
		f.mu.Unlock()
		service.ServeHTTP(w, r)
	}))
	f.way = connectTo(t, mux).Transport
	w := newWorld(t, func(o *Options) {
		o.Agents = f
		if change != nil {
			change(o)
		}
	})
	return w, f, vendettav1connect.NewImageServiceClient(w.client, wire.BaseURL)
}

// NodeAgent implements Agents.
func (f *fakeAgents) NodeAgent(_ context.Context, node string, bulk bool) (http.RoundTripper, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bulk {
		node += " in bulk"
	}
	f.asked = append(f.asked, node)
	if strings.HasPrefix(node, "nowhere") {
		return nil, api.Errorf(api.NotFound, "node %s: there is none", node).WithNext("vendetta node list")
	}
	return f.way, nil
}

func (f *fakeAgents) ListImages(_ context.Context, r *vendettav1.ListImagesRequest) (*vendettav1.ListImagesResponse, error) {
	return &vendettav1.ListImagesResponse{Images: []*vendettav1.Image{{Store: "node", Ref: r.GetNode()}}}, nil
}

func (f *fakeAgents) PullImage(ctx context.Context, r *vendettav1.PullImageRequest, s *connect.ServerStream[vendettav1.PullImageResponse]) error {
	if err := s.Send(&vendettav1.PullImageResponse{Progress: "begun"}); err != nil {
		return err
	}
	if f.pulling != nil {
		select {
		case <-f.pulling:
		case <-ctx.Done():
			close(f.gone)
			return ctx.Err()
		}
	}
	return s.Send(&vendettav1.PullImageResponse{Image: &vendettav1.Image{Ref: r.GetRef()}})
}

func (f *fakeAgents) ImportImage(_ context.Context, s *connect.ClientStream[vendettav1.ImportImageRequest]) (*vendettav1.Image, error) {
	n := 0
	for s.Receive() {
		if f.refuse != nil {
			return nil, api.ToConnect(f.refuse)
		}
		n += len(s.Msg().GetData())
		f.mu.Lock()
		f.received = n
		f.mu.Unlock()
	}
	return &vendettav1.Image{Ref: "mine:1", Bytes: int64(n)}, s.Err()
}

// The agents serve what is routed to them, with the same messages.
func TestAgentsServeTheImageService(t *testing.T) {
	theirs := nodeagentv1.File_vendetta_nodeagent_v1_nodeagent_proto.Services().ByName("NodeAgentService").Methods()
	ours := vendettav1.File_vendetta_v1_image_proto.Services().ByName("ImageService").Methods()
	for i := range ours.Len() {
		m := ours.Get(i)
		same := theirs.ByName(m.Name())
		if same == nil || same.Input() != m.Input() || same.Output() != m.Output() ||
			same.IsStreamingClient() != m.IsStreamingClient() || same.IsStreamingServer() != m.IsStreamingServer() {
			t.Errorf("%s is not served by node agents in the same way", m.FullName())
		}
		r, _, err := newRoutes(bare()).find("/vendetta.v1.ImageService/" + string(m.Name()))
		if err != nil || r.node == nil || r.node.Kind() != protoreflect.StringKind || r.agent != "/vendetta.nodeagent.v1.NodeAgentService/"+string(m.Name()) {
			t.Errorf("%s: %+v, %v", m.FullName(), r, err)
		}
	}
}

func TestCallsToNodeAgents(t *testing.T) {
	w, f, images := withAgents(t, nil)
	ctx, info := connect.NewClientContext(t.Context())
	info.RequestHeader().Set(api.ServerHeader, "forged")
	info.RequestHeader().Set("Authorization", "Bearer secret")
	list, err := images.ListImages(ctx, &vendettav1.ListImagesRequest{Node: "build1"})
	if err != nil || list.GetImages()[0].GetRef() != "build1" {
		t.Errorf("list: %v, %v", list, err)
	}
	if f.header.Get(api.ServerHeader) != "" || f.header.Get("Authorization") != "" {
		t.Errorf("headers that passed: %v", f.header)
	}
	pull, err := images.PullImage(t.Context(), &vendettav1.PullImageRequest{Node: "build1", Ref: "debian:12"})
	if err != nil || !pull.Receive() || pull.Msg().GetProgress() != "begun" || !pull.Receive() || pull.Msg().GetImage().GetRef() != "debian:12" {
		t.Errorf("pull: %v, %v", pull.Msg(), err)
	}
	_ = pull.Close()
	upload, err := images.ImportImage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 { // more than one window
		r := &vendettav1.ImportImageRequest{Data: make([]byte, 128<<10)}
		if i == 0 {
			r.Ref = "mine:1"
		}
		if err := upload.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	image, err := upload.CloseAndReceive()
	if err != nil || image.GetBytes() != 40*128<<10 {
		t.Errorf("import: %v, %v", image, err)
	}
	if want := []string{"build1", "build1", " in bulk"}; !slices.Equal(f.asked, want) {
		t.Errorf("nodes %q, want %q", f.asked, want)
	}
	entries := w.recorded()
	if len(entries) != 2 || entries[0].Fields != `{"node":"build1","ref":"debian:12"}` || entries[1].Fields != `{"ref":"mine:1"}` {
		t.Errorf("recorded %v", entries)
	}
	if _, err := images.PruneImages(t.Context(), &vendettav1.PruneImagesRequest{Node: "build1"}); api.CodeOf(err) != api.Unimplemented {
		t.Errorf("an agent that does not know the method: %v", err)
	}
}

func TestCallsToNodeAgentsRefused(t *testing.T) {
	w, f, images := withAgents(t, nil)
	_, err := images.ListImages(t.Context(), &vendettav1.ListImagesRequest{Node: "nowhere"})
	if e := api.From(err); e.Code != api.NotFound || e.Next != "vendetta node list" {
		t.Errorf("an unknown node: %v", err)
	}
	w.auditErr = errors.New("the disk is full")
	if _, err := images.PruneImages(t.Context(), &vendettav1.PruneImagesRequest{Node: "build1"}); !strings.Contains(api.From(err).Message, "could not be recorded") {
		t.Errorf("a call that is not recorded: %v", err)
	}
	// Looking is not recorded.
	if _, err := images.ListImages(t.Context(), &vendettav1.ListImagesRequest{Node: "build1"}); err != nil {
		t.Error(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, wire.BaseURL+"/vendetta.v1.ImageService/ListImages", strings.NewReader("{"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an unreadable message: %d", resp.StatusCode)
	}
	if len(f.asked) != 3 {
		t.Errorf("asked for %q", f.asked)
	}
	_, _, reading := withAgents(t, func(o *Options) { o.Authenticate = reader })
	if _, err := reading.PruneImages(t.Context(), &vendettav1.PruneImagesRequest{}); api.CodeOf(err) != api.PermissionDenied {
		t.Errorf("prune by a reader: %v", err)
	}
}

// A node that refuses an archive ends the call although the caller keeps the
// request open and sends nothing more.
func TestImportRefusedWhileTheRequestIsOpen(t *testing.T) {
	w, f, images := withAgents(t, nil)
	f.refuse = api.Errorf(api.FailedPrecondition, "import image: it is no archive").WithNext("docker save writes one")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	body, writer := io.Pipe()
	defer func() { _ = writer.Close() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, wire.BaseURL+vendettav1connect.ImageServiceImportImageProcedure, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/connect+json")
	const first = `{"data":"eA=="}`
	var sending conc.WaitGroup
	defer sending.Wait()
	sending.Go(func() { _, _ = writer.Write(append([]byte{0, 0, 0, 0, byte(len(first))}, first...)) })
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(answer), "it is no archive") || !strings.Contains(string(answer), "failed_precondition") {
		t.Errorf("got %q, %v", answer, err)
	}
	// The library's client, which goes on sending, hears of it too.
	upload, err := images.ImportImage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = upload.Send(&vendettav1.ImportImageRequest{Data: make([]byte, 128<<10)})
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("a piece after the end: %v", err)
	}
	if _, err = upload.CloseAndReceive(); api.From(err).Next != "docker save writes one" {
		t.Errorf("got %v", err)
	}
}

// A caller that goes away ends the pull on the node.
func TestPullGivenUp(t *testing.T) {
	_, f, images := withAgents(t, nil)
	f.pulling = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	pull, err := images.PullImage(ctx, &vendettav1.PullImageRequest{Node: "build1", Ref: "debian:12"})
	if err != nil || !pull.Receive() {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-f.gone:
	case <-time.After(20 * time.Second):
		t.Error("the node agent goes on")
	}
	_ = pull.Close()
}

var _ Agents = (*coordination.Server)(nil)
