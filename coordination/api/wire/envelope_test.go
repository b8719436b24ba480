package wire_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// talker sends messages and then waits for its end.
type talker struct {
	guestv1connect.UnimplementedProcessServiceHandler
	fail error
}

func (g talker) Attach(ctx context.Context, _ *guestv1.AttachRequest, stream *connect.ServerStream[guestv1.ProcessEvent]) error {
	for i := range 3 {
		event := &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Output{Output: &guestv1.Output{Offset: uint64(i), Data: make([]byte, 1000*i)}}}
		if err := stream.Send(event); err != nil {
			return err
		}
	}
	if g.fail != nil {
		return g.fail
	}
	<-ctx.Done()
	return ctx.Err()
}

// cuttable serves handler and can cut its connections.
func cuttable(t *testing.T, handler http.Handler) (client *http.Client, cut func()) {
	var mu sync.Mutex
	var conns []net.Conn
	socket := serveUnix(t, handler)
	client = wire.Client(func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, conn)
		return conn, err
	})
	return client, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

func TestLostInTheMiddleOfAStream(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewProcessServiceHandler(talker{}))
	upstream, cut := cuttable(t, mux)
	client := hop(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
		return upstream.Transport, r.URL.Path, nil
	}, quiet()))
	within(t, 10*time.Second, "a cut stream", func() {
		stream, err := guestv1connect.NewProcessServiceClient(client, wire.BaseURL).Attach(t.Context(), &guestv1.AttachRequest{})
		if err != nil {
			t.Error(err)
			return
		}
		for i := range 3 {
			if !stream.Receive() || len(stream.Msg().GetOutput().GetData()) != 1000*i {
				t.Errorf("message %d: %v", i, stream.Err())
			}
		}
		cut()
		if stream.Receive() {
			t.Error("a message after the cut")
		}
		if e := api.From(stream.Err()); e == nil || e.Code != api.Unavailable || e.Next == "" {
			t.Errorf("got %#v", e)
		}
	})
}

func TestStreamsOwnErrorIsKept(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewProcessServiceHandler(talker{fail: api.ToConnect(api.Errorf(api.Conflict, "attach: no").WithNext("wait"))}))
	stream, err := guestv1connect.NewProcessServiceClient(chain(t, 2, mux), wire.BaseURL).Attach(t.Context(), &guestv1.AttachRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	if e := api.From(stream.Err()); e == nil || e.Code != api.Conflict || e.Next != "wait" {
		t.Fatalf("got %#v", e)
	}
}

func TestLostWithinAMessage(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"header": "\x00\x00", "message": "\x00\x00\x00\x00\x09half", "after the end": "\x02\x00\x00\x00\x02{}"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := hop(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
				return streamHop(body), r.URL.Path, nil
			}, quiet()))
			res, err := client.Post(wire.BaseURL+"/x", "application/connect+proto", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if got, err := io.ReadAll(res.Body); err == nil || string(got) != body {
				t.Fatalf("got %q %v", got, err)
			}
		})
	}
}

// streamHop answers with the beginning of a stream and then loses the connection.
type streamHop string

func (s streamHop) RoundTrip(r *http.Request) (*http.Response, error) {
	body := io.NopCloser(io.MultiReader(&onceReader{string(s)}, errReader{}))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/connect+proto"}}, Body: body, Request: r}, nil
}

// onceReader gives its text byte by byte.
type onceReader struct{ text string }

func (o *onceReader) Read(p []byte) (int, error) {
	if o.text == "" {
		return 0, io.EOF
	}
	p[0] = o.text[0]
	o.text = o.text[1:]
	return 1, nil
}
