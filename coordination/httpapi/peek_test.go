package httpapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

const (
	startName  = "/vendetta.guest.v1.ProcessService/Start"
	signalName = "/vendetta.guest.v1.ProcessService/Signal"
)

func envelope(flags byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(payload)))
	return append(b, payload...)
}

func packed(t testing.TB, payload []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(payload); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newPeeker() *handler { return New(bare()).(*handler) }

func peekRequest(contentType, encoding string, body io.Reader) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", body)
	r.Header.Set("Content-Type", contentType)
	for _, name := range []string{"Content-Encoding", "Connect-Content-Encoding", "Grpc-Encoding"} {
		if encoding != "" {
			r.Header.Set(name, encoding)
		}
	}
	return r
}

func TestUnreadableMessages(t *testing.T) {
	const stream, unary = "application/connect+proto", "application/proto"
	huge := binary.BigEndian.AppendUint32([]byte{0}, maxMessage+1)
	bomb := packed(t, make([]byte, maxMessage+1))
	for _, c := range []struct {
		name, method, contentType, encoding string
		body                                []byte
		code                                api.Code
		says                                string
	}{
		{"no content type", signalName, "", "", nil, api.Unimplemented, "content type"},
		{"a broken content type", signalName, "application/json; charset", "", nil, api.Unimplemented, "content type"},
		{"another charset", signalName, "application/json; charset=utf-16", "", nil, api.Unimplemented, "utf-16"},
		{"a form", signalName, "application/x-www-form-urlencoded", "", nil, api.Unimplemented, "form"},
		{"a stream of a unary method", signalName, stream, "", nil, api.Unimplemented, "connect"},
		{"a message of a streaming method", startName, unary, "", nil, api.Unimplemented, "application/proto"},
		{"broken protobuf", signalName, unary, "", []byte{0xff}, api.InvalidArgument, "cannot be read"},
		{"broken JSON", signalName, "application/json", "", []byte(`{"signal":`), api.InvalidArgument, "cannot be read"},
		{"JSON of another type", signalName, "application/json", "", []byte(`{"signal":[1]}`), api.InvalidArgument, "cannot be read"},
		{"a name twice", signalName, "application/json", "", []byte(`{"signal":"A","signal":"B"}`), api.InvalidArgument, "cannot be read"},
		{"empty JSON", signalName, "application/json", "", nil, api.InvalidArgument, "cannot be read"},
		{"invalid text", signalName, unary, "", []byte{0x0a, 1, 0xff}, api.InvalidArgument, "cannot be read"},
		{"another compression", signalName, unary, "br", []byte("x"), api.Unimplemented, "br"},
		{"not compressed", signalName, unary, "gzip", []byte("hello"), api.InvalidArgument, "unpacked"},
		{"cut compression", signalName, unary, "gzip", packed(t, []byte("hello"))[:14], api.InvalidArgument, "unpacked"},
		{"a bomb", signalName, unary, "gzip", bomb, api.ResourceExhausted, "8 MiB"},
		{"too large a body", signalName, unary, "", make([]byte, maxMessage+1), api.ResourceExhausted, "8 MiB"},
		{"a cut prefix", startName, stream, "", []byte{0, 0}, api.InvalidArgument, "ended"},
		{"a cut message", startName, stream, "", envelope(0, []byte("hello"))[:7], api.InvalidArgument, "ended"},
		{"too large a message", startName, stream, "", huge, api.ResourceExhausted, "8 MiB"},
		{"an end before the message", startName, stream, "", envelope(2, []byte("{}")), api.InvalidArgument, "does not begin"},
		{"unknown flags", startName, "application/grpc", "", envelope(0x80, nil), api.InvalidArgument, "does not begin"},
		{"compressed with nothing", startName, stream, "", envelope(1, []byte("hello")), api.Unimplemented, "compression"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, length := range []int64{int64(len(c.body)), -1} { // told, not told
				h := newPeeker()
				call := &call{route: h.routes.guest[c.method]}
				r := peekRequest(c.contentType, c.encoding, bytes.NewReader(c.body))
				r.ContentLength = length
				_, err := h.peek(call, r)
				if e := api.From(err); err == nil || e.Code != c.code || !strings.Contains(e.Message, c.says) || !strings.Contains(e.Message, c.method) {
					t.Errorf("error is %v, want %s with %q", err, c.code, c.says)
				}
				call.close()
				if len(h.large) != 0 {
					t.Error("a place for a large message was not given back")
				}
			}
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	boom := errors.New("boom")
	for _, contentType := range []string{"application/proto", "application/grpc"} {
		h := newPeeker()
		_, err := h.peek(&call{route: h.routes.guest[signalName]}, peekRequest(contentType, "", iotest.ErrReader(boom)))
		if api.CodeOf(err) != api.InvalidArgument || !errors.Is(err, boom) {
			t.Errorf("error is %v, want invalid_argument by the cause", err)
		}
	}
	h := newPeeker()
	r := peekRequest("application/proto", "", nil)
	r.Body = nil
	if m, err := h.peek(&call{route: h.routes.guest[signalName]}, r); err != nil || m == nil {
		t.Errorf("no body at all: %v", err)
	}
}

// Only the first message is waited for.
func TestPeekReadsNoFurther(t *testing.T) {
	h := newPeeker()
	payload, err := proto.Marshal(&guestv1.StartRequest{Dir: "/d"})
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	defer func() { _ = writer.Close() }()
	written := make(chan error, 1)
	go func() {
		_, err := writer.Write(envelope(0, payload))
		written <- err
	}()
	r := peekRequest("application/connect+proto", "", reader)
	m, err := h.peek(&call{route: h.routes.guest[startName]}, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if got := m.Get(m.Descriptor().Fields().ByName("dir")).String(); got != "/d" {
		t.Errorf("dir is %q", got)
	}
	go func() {
		_, _ = writer.Write([]byte("rest"))
		_ = writer.Close()
	}()
	all, err := io.ReadAll(r.Body)
	if err != nil || !bytes.Equal(all, append(envelope(0, payload), "rest"...)) {
		t.Errorf("the body reads %q, %v", all, err)
	}
	if err := r.Body.Close(); err != nil {
		t.Error(err)
	}
}

func TestLargeMessagesPass(t *testing.T) {
	for name, options := range map[string][]connect.ClientOption{
		"proto": nil,
		"JSON":  {connect.WithProtoJSON()},
		"gRPC":  {connect.WithGRPC()},
		"gzip":  {connect.WithSendGzip()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			files := guestv1connect.NewFileServiceClient(w.client, wire.BaseURL+"/workspaces/hello/guest", options...)
			data := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
			info, err := files.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "big", Data: data})
			if err != nil {
				t.Fatal(err)
			}
			if info.GetSize() != uint64(len(data)) || !bytes.Equal(w.guest.write.GetData(), data) {
				t.Errorf("%d bytes came", info.GetSize())
			}
			if got := w.recorded(); len(got) != 1 || got[0].Fields != `{"path":"big"}` {
				t.Errorf("recorded %+v", got)
			}
			_, err = files.WriteFile(t.Context(), &guestv1.WriteFileRequest{Path: "bigger", Data: make([]byte, maxMessage+1)})
			if e := api.From(err); err == nil || e.Code != api.ResourceExhausted || e.Next == "" {
				t.Errorf("error is %+v, want resource_exhausted with a next step", e)
			}
			if len(w.recorded()) != 1 {
				t.Error("a refused call was recorded")
			}
		})
	}
}

// Large messages wait for their turn; small ones do not.
func TestLargeMessagesWait(t *testing.T) {
	h := newPeeker()
	for range largeMessages {
		h.large <- struct{}{}
	}
	large, err := proto.Marshal(&guestv1.SignalRequest{Signal: strings.Repeat("x", largeMessage)})
	if err != nil {
		t.Fatal(err)
	}
	peek := func(ctx context.Context, body []byte, length int64) (*call, error) {
		c := &call{route: h.routes.guest[signalName]}
		r := peekRequest("application/proto", "", bytes.NewReader(body)).WithContext(ctx)
		r.ContentLength = length
		_, err := h.peek(c, r)
		return c, err
	}
	if _, err := peek(t.Context(), nil, 0); err != nil {
		t.Errorf("a small one: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, length := range []int64{int64(len(large)), -1} {
		if _, err := peek(gone, large, length); !errors.Is(err, context.Canceled) {
			t.Errorf("one that waits: %v, want the end of its context", err)
		}
	}
	<-h.large
	for range 3 {
		c, err := peek(t.Context(), large, -1)
		if err != nil {
			t.Fatal(err)
		}
		if len(h.large) != largeMessages {
			t.Errorf("%d places taken, want %d", len(h.large), largeMessages)
		}
		c.close()
	}
}

// FuzzPeek: whatever comes, the looked-at body is passed on byte for byte, and
// what is recorded is what a reader of the protocol would see.
func FuzzPeek(f *testing.F) {
	types := []string{
		"application/proto", "application/json", "application/connect+proto", "application/connect+json",
		"application/grpc", "application/grpc-web+json", "application/json; charset=utf-8", "text/plain",
	}
	message := &guestv1.StartRequest{ProcessId: "p", Argv: []string{"a", "b"}, Stdin: []byte("x")}
	binaryForm, err := proto.Marshal(message)
	if err != nil {
		f.Fatal(err)
	}
	jsonForm, err := protojson.Marshal(message)
	if err != nil {
		f.Fatal(err)
	}
	for i := range types {
		for _, form := range [][]byte{binaryForm, jsonForm, envelope(0, binaryForm), envelope(0, jsonForm), envelope(1, packed(f, binaryForm)), packed(f, jsonForm), nil} {
			f.Add(uint8(i), "gzip", form)
			f.Add(uint8(i), "", form)
		}
	}
	h := newPeeker()
	f.Fuzz(func(t *testing.T, kind uint8, encoding string, body []byte) {
		for _, name := range []string{startName, signalName} {
			c := &call{route: h.routes.guest[name]}
			r := peekRequest(types[int(kind)%len(types)], "", bytes.NewReader(body))
			for _, header := range []string{"Content-Encoding", "Connect-Content-Encoding", "Grpc-Encoding"} {
				r.Header.Set(header, encoding)
			}
			m, err := h.peek(c, r)
			c.close()
			if err != nil {
				if e := api.From(err); e.Code != api.InvalidArgument && e.Code != api.Unimplemented && e.Code != api.ResourceExhausted {
					t.Fatalf("error is %+v", e)
				}
				continue
			}
			again, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(again, body) {
				t.Fatalf("the body reads %q, %v; want %q", again, err, body)
			}
			if got := fields(m, c.route.audit); len(got) > 4*maxFields {
				t.Fatalf("%d bytes recorded of %d", len(got), len(body))
			}
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	h := newPeeker()
	h.options.Audit = func(context.Context, Entry) error { return nil }
	payload, err := proto.Marshal(&guestv1.StartRequest{ProcessId: "p", Argv: []string{"go", "test", "./..."}, Dir: "/workspace"})
	if err != nil {
		b.Fatal(err)
	}
	body := envelope(0, payload)
	b.ReportAllocs()
	for b.Loop() {
		c := &call{route: h.routes.guest[startName]}
		if err := h.record(c, peekRequest("application/connect+proto", "", bytes.NewReader(body))); err != nil {
			b.Fatal(err)
		}
	}
}

func peekRequestTo(path string) *http.Request {
	return httptest.NewRequest(http.MethodPost, path, nil)
}
