package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination"
	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

const (
	getNode   = "/vendetta.v1.NodeService/GetNode"
	startPath = "/workspaces/hello/guest/vendetta.guest.v1.ProcessService/Start"
)

func TestRefusals(t *testing.T) {
	authenticate := func(p coordination.Principal, err error) func(*Options) {
		return func(o *Options) {
			o.Authenticate = func(*http.Request) (coordination.Principal, error) { return p, err }
		}
	}
	readOnly := func(o *Options) { o.Authenticate = reader }
	for _, c := range []struct {
		name    string
		options func(*Options)
		method  string
		path    string
		host    string
		header  map[string]string
		status  int
		code    api.Code
		says    string
	}{
		{name: "a web page", path: getNode, header: map[string]string{"Origin": "https://evil.example"}, status: 403, code: api.PermissionDenied, says: "evil.example"},
		{name: "a page with an opaque origin", path: getNode, header: map[string]string{"Origin": "null"}, status: 403, code: api.PermissionDenied, says: "null"},
		{name: "an empty origin", path: getNode, header: map[string]string{"Origin": ""}, status: 403, code: api.PermissionDenied, says: "origin"},
		{name: "a streaming web page", path: startPath, header: map[string]string{"Origin": "http://localhost", "Content-Type": "application/connect+json"}, status: 403, code: api.PermissionDenied, says: "web pages"},
		{name: "a preflight", method: http.MethodOptions, path: getNode, header: map[string]string{"Origin": "http://localhost"}, status: 403, code: api.PermissionDenied, says: "web pages"},
		{name: "another host", path: getNode, host: "evil.example", status: 403, code: api.PermissionDenied, says: "evil.example"},
		{name: "another host with our port", path: getNode, host: "evil.example:80", status: 403, code: api.PermissionDenied, says: "vendetta, localhost"},
		{name: "a host that is not configured", options: func(o *Options) { o.Hosts = []string{"build.example"} }, path: getNode, host: "vendetta", status: 403, code: api.PermissionDenied, says: "build.example"},
		{name: "no authentication", options: func(o *Options) { o.Authenticate = nil }, path: getNode, status: 401, code: api.Unauthenticated, says: "authenticate"},
		{name: "failed authentication", options: authenticate(coordination.Principal{}, api.Errorf(api.Unauthenticated, "token: it is not known")), path: getNode, status: 401, code: api.Unauthenticated, says: "token"},
		{name: "a principal without a scope", options: authenticate(coordination.Principal{Name: "eve"}, nil), path: getNode, status: 403, code: api.PermissionDenied, says: "eve"},
		{name: "too narrow a scope", options: readOnly, path: "/vendetta.v1.NodeService/AddNode", status: 403, code: api.PermissionDenied, says: "it needs the scope admin, ann has read"},
		{name: "too narrow a scope in a workspace", options: readOnly, path: "/workspaces/hello/guest/vendetta.guest.v1.ProcessService/Signal", status: 403, code: api.PermissionDenied, says: "operate"},
		{name: "GET", method: http.MethodGet, path: getNode, status: 501, code: api.Unimplemented, says: "POST"},
		{name: "the root", path: "/", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "an unknown service", path: "/vendetta.v1.NoService/GetNode", status: 501, code: api.Unimplemented, says: "NoService"},
		{name: "an unknown method", path: "/vendetta.v1.NodeService/NoMethod", status: 501, code: api.Unimplemented, says: "NoMethod"},
		{name: "a path that goes up", path: "/x/../vendetta.v1.NodeService/GetNode", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "the node agent's service", path: "/vendetta.nodeagent.v1.NodeAgentService/Apply", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "the node agent's service in a workspace", path: "/workspaces/hello/guest/vendetta.nodeagent.v1.NodeAgentService/Apply", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "an own service in a workspace", path: "/workspaces/hello/guest" + getNode, status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "the guest without a workspace", path: "/vendetta.guest.v1.ProcessService/Start", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "a workspace alone", path: "/workspaces/hello", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "a workspace without a name", path: "/workspaces//guest/vendetta.guest.v1.ProcessService/Start", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "a workspace with a slash", path: "/workspaces/a%2Fb/guest/vendetta.guest.v1.ProcessService/Signal", status: 501, code: api.Unimplemented, says: "does not know"},
		{name: "a workspace that goes up", path: "/workspaces/../guest/vendetta.guest.v1.ProcessService/Signal", status: 404, code: api.NotFound, says: ".."},
		{name: "an unknown workspace", path: "/workspaces/nobody/guest/vendetta.guest.v1.ProcessService/Signal", status: 404, code: api.NotFound, says: "nobody"},
		{name: "a long path", path: "/" + strings.Repeat("x", 5000), status: 501, code: api.Unimplemented, says: "..."},
		{name: "an unknown content type", path: "/workspaces/hello/guest/vendetta.guest.v1.ProcessService/Signal", header: map[string]string{"Content-Type": "text/plain"}, status: 501, code: api.Unimplemented, says: "text/plain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.options)
			method := c.method
			if method == "" {
				method = http.MethodPost
			}
			req, err := http.NewRequestWithContext(t.Context(), method, wire.BaseURL+c.path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			if c.host != "" {
				req.Host = c.host
			} else if len(w.options.Hosts) > 0 {
				req.Host = w.options.Hosts[0]
			}
			resp, err := w.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			var body struct{ Code, Message string }
			if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || body.Code != string(c.code) || !strings.Contains(body.Message, c.says) || len(body.Message) > 400 {
				t.Errorf("%d %+v, want %d %s with %q", resp.StatusCode, body, c.status, c.code, c.says)
			}
			if got := w.recorded(); len(got) != 0 {
				t.Errorf("recorded %v, want nothing of a refused call", got)
			}
			if c.path != "/" && w.log.String() == "" {
				t.Error("the log does not tell of it")
			}
		})
	}
}

// Each protocol gets its own kind of error, with the code and the next step.
func TestErrorsSpeakTheProtocolOfTheCall(t *testing.T) {
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			check := func(err error, code api.Code, next string) {
				t.Helper()
				if e := api.From(err); e.Code != code || !strings.Contains(e.Next, next) {
					t.Errorf("error is %+v, want %s with %q next", e, code, next)
				}
			}
			processes := guestv1connect.NewProcessServiceClient(w.client, wire.BaseURL+"/workspaces/nobody/guest", options...)
			_, err := processes.Signal(t.Context(), &guestv1.SignalRequest{})
			check(err, api.NotFound, "vendetta workspace list")
			stream, err := processes.Start(t.Context(), &guestv1.StartRequest{})
			if err == nil {
				if stream.Receive() {
					t.Error("a refused stream has a message")
				}
				err = stream.Err()
			}
			check(err, api.NotFound, "vendetta workspace list")

			nodes := vendettav1connect.NewNodeServiceClient(w.client, wire.BaseURL, options...)
			w.nodes.get = func(context.Context) (*vendettav1.Node, error) {
				return nil, api.Errorf(api.Conflict, "node n: %w", errors.New("the cause")).WithNext("do that")
			}
			_, err = nodes.GetNode(t.Context(), &vendettav1.GetNodeRequest{})
			check(err, api.Conflict, "do that")
			w.nodes.logs = func(s *connect.ServerStream[vendettav1.NodeLogsResponse]) error {
				_ = s.Send(&vendettav1.NodeLogsResponse{Data: []byte("x")})
				return api.Errorf(api.Unavailable, "node n: it is lost").WithNext("wait")
			}
			logs, err := nodes.NodeLogs(t.Context(), &vendettav1.NodeLogsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for logs.Receive() {
			}
			check(logs.Err(), api.Unavailable, "wait")
			w.nodes.get = func(context.Context) (*vendettav1.Node, error) { panic("at the disco") }
			_, err = nodes.GetNode(t.Context(), &vendettav1.GetNodeRequest{})
			check(err, api.Internal, "log")
			if text := w.log.String(); strings.Count(text, "the cause") != 2 || strings.Count(text, "at the disco") != 1 || strings.Contains(err.Error(), "disco") {
				t.Errorf("the causes should stand once each in the log, in message and cause, and not in the error %v:\n%s", err, text)
			}
		})
	}
}

func TestCallsRunForThePrincipal(t *testing.T) {
	for _, c := range []struct {
		authenticate func(*http.Request) (coordination.Principal, error)
		want         coordination.Principal
	}{
		{Local, coordination.Principal{Name: "local", Scope: vendettav1.Scope_SCOPE_ADMIN, Local: true}},
		{reader, coordination.Principal{Name: "ann", Scope: vendettav1.Scope_SCOPE_READ}},
	} {
		w := newWorld(t, func(o *Options) { o.Authenticate = c.authenticate })
		var got coordination.Principal
		w.nodes.get = func(ctx context.Context) (*vendettav1.Node, error) {
			got = coordination.PrincipalFrom(ctx)
			return &vendettav1.Node{}, nil
		}
		nodes := vendettav1connect.NewNodeServiceClient(w.client, wire.BaseURL)
		if _, err := nodes.GetNode(t.Context(), &vendettav1.GetNodeRequest{}); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("principal is %+v, want %+v", got, c.want)
		}
	}
}

func TestHostsOfTheServer(t *testing.T) {
	w := newWorld(t, nil)
	w.nodes.get = func(context.Context) (*vendettav1.Node, error) { return &vendettav1.Node{Name: "n"}, nil }
	for _, host := range []string{"vendetta", "localhost", "LOCALHOST:8080"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, wire.BaseURL+getNode, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("Content-Type", "application/json")
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"n"`) {
			t.Errorf("host %s: %d %s", host, resp.StatusCode, body)
		}
	}
}

// A server's own request is bounded.
func TestOwnRequestsAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	nodes := vendettav1connect.NewNodeServiceClient(w.client, wire.BaseURL)
	_, err := nodes.GetNode(t.Context(), &vendettav1.GetNodeRequest{Name: strings.Repeat("x", maxOwnMessage+1)})
	if api.CodeOf(err) != api.ResourceExhausted {
		t.Errorf("error is %v, want resource_exhausted", err)
	}
}

// A caller that goes away frees the guest at once, also when the beginning of
// its request was looked at.
func TestCallerGoesAway(t *testing.T) {
	w := newWorld(t, nil)
	w.guest.attached, w.guest.released = make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	processes := guestv1connect.NewProcessServiceClient(w.client, wire.BaseURL+"/workspaces/hello/guest")
	stream, err := processes.Start(ctx, &guestv1.StartRequest{ProcessId: "p", Argv: []string{"sleep", "9"}, StdinOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	<-w.guest.attached
	cancel()
	select {
	case <-w.guest.released:
	case <-time.After(time.Second):
		t.Error("the guest still works for a caller that is gone")
	}
}

// A command that goes on for long keeps no place for the large message that
// began it.
func TestLongCallsKeepNoPlace(t *testing.T) {
	w := newWorld(t, nil)
	w.guest.attached, w.guest.released = make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	processes := guestv1connect.NewProcessServiceClient(w.client, wire.BaseURL+"/workspaces/hello/guest")
	stdin := make([]byte, 2*largeMessage)
	if _, err := processes.Start(ctx, &guestv1.StartRequest{ProcessId: "p", Argv: []string{"cat"}, StdinOpen: true, Stdin: stdin}); err != nil {
		t.Fatal(err)
	}
	<-w.guest.attached
	if got := w.guest.start.GetStdin(); len(got) != len(stdin) {
		t.Errorf("%d bytes of input came", len(got))
	}
	if n := len(w.handler.large); n != 0 {
		t.Errorf("%d places are taken", n)
	}
	cancel()
	<-w.guest.released
}

func TestPassedOnRequests(t *testing.T) {
	w := newWorld(t, nil)
	files := guestv1connect.NewFileServiceClient(w.client, wire.BaseURL+"/workspaces/hello/guest", connect.WithInterceptors(
		connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
				req.Header().Set(api.ServerHeader, "another")
				return next(ctx, req)
			}
		})))
	if _, err := files.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "a"}); err != nil {
		t.Fatal(err)
	}
	if got := w.headers.Get(api.ServerHeader); got != "" {
		t.Errorf("the caller named the server %q", got)
	}
	_, err := files.StatFile(t.Context(), &guestv1.StatFileRequest{})
	if api.CodeOf(err) != api.Unimplemented {
		t.Errorf("the guest's own error came as %v", err)
	}
	stream, err := files.Export(t.Context(), &guestv1.ExportRequest{})
	if err == nil {
		stream.Receive()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.bulk) != 3 || w.bulk[0] || w.bulk[1] || !w.bulk[2] {
		t.Errorf("bulk is %v, want it for Export alone", w.bulk)
	}
}

func TestDefaults(t *testing.T) {
	h := New(bare()).(*handler)
	if h.log == nil || len(h.options.Hosts) == 0 {
		t.Errorf("a logger and hosts are missing: %+v", h.options)
	}
}

// What a person does with curl: HTTP/1.1 and JSON.
func TestPlainHTTP(t *testing.T) {
	w := newWorld(t, nil)
	dial := dialer(t, w.handler)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
	defer client.CloseIdleConnections()
	for range 3 {
		resp, err := client.Post("http://localhost/workspaces/hello/guest/vendetta.guest.v1.ProcessService/Signal", "application/json",
			strings.NewReader(`{"processId":"p","signal":"INT"}`))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 || string(body) != "{}" {
			t.Errorf("%s %s %q, %v", resp.Proto, resp.Status, body, err)
		}
		if w.guest.signal.GetSignal() != "INT" {
			t.Errorf("the guest got %v", w.guest.signal)
		}
	}
	if got := w.recorded(); len(got) != 3 || got[2].Fields != `{"process_id":"p","signal":"INT"}` {
		t.Errorf("recorded %+v", got)
	}
}
