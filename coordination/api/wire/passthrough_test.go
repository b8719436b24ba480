package wire_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// hop serves handler on a unix socket and returns a client of it.
func hop(t testing.TB, handler http.Handler) *http.Client {
	t.Helper()
	socket := serveUnix(t, handler)
	client := wire.Client(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// serveUnix serves handler on a fresh socket until the test ends.
func serveUnix(t testing.TB, handler http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { wire.Serve(ctx, conn, handler) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		cancel()
		conns.Wait()
		_ = os.RemoveAll(dir)
	})
	return socket
}

// chain puts n pass-throughs before handler.
func chain(t testing.TB, n int, handler http.Handler) *http.Client {
	t.Helper()
	client := hop(t, handler)
	for range n {
		next := client.Transport
		client = hop(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
			return next, r.URL.Path, nil
		}, quiet()))
	}
	return client
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// within fails the test when fn has not returned in time.
func within(t *testing.T, d time.Duration, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(d):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: still running after %v\n%s", what, d, buf[:runtime.Stack(buf, true)])
	}
}

// openBody is a request body that stays open until its owner closes it, as the
// body of a streaming client does.
type openBody struct {
	first io.Reader
	rest  *io.PipeReader
}

func newOpenBody(t testing.TB, first string) *openBody {
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	return &openBody{first: strings.NewReader(first), rest: r}
}

func (b *openBody) Read(p []byte) (int, error) {
	if n, err := b.first.Read(p); err == nil {
		return n, nil
	}
	return b.rest.Read(p)
}

func (b *openBody) Close() error { return b.rest.Close() }

func TestEarlyEndWithOpenRequest(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusOK, http.StatusNotFound, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			client := chain(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "early")
			}))
			within(t, 5*time.Second, "early end", func() {
				res, err := client.Post(wire.BaseURL+"/x", "text/plain", newOpenBody(t, "first"))
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = res.Body.Close() }()
				body, err := io.ReadAll(res.Body)
				if err != nil || string(body) != "early" || res.StatusCode != status {
					t.Errorf("got %d %q %v", res.StatusCode, body, err)
				}
			})
			// The connections are still good.
			res, err := client.Get(wire.BaseURL + "/again")
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
		})
	}
}

func TestFullDuplex(t *testing.T) {
	t.Parallel()
	client := chain(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		_ = control.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = control.Flush()
			if err != nil {
				return
			}
		}
	}))
	within(t, 5*time.Second, "echo", func() {
		r, w := io.Pipe()
		res, err := client.Post(wire.BaseURL+"/echo", "application/octet-stream", r)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		buf := make([]byte, 4)
		for i := range 50 {
			word := fmt.Sprintf("%04d", i)
			_, _ = io.WriteString(w, word)
			if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != word {
				t.Errorf("echo of %s: %q %v", word, buf, err)
				return
			}
		}
		_ = w.Close()
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
			t.Errorf("after the end: %q %v", rest, err)
		}
	})
}

func TestCancelFreesUpstream(t *testing.T) {
	t.Parallel()
	for name, answered := range map[string]bool{"before the answer": false, "in the answer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begun, freed := make(chan struct{}), make(chan struct{})
			client := chain(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if answered {
					w.WriteHeader(http.StatusOK)
					_ = http.NewResponseController(w).Flush()
				}
				close(begun)
				<-r.Context().Done()
				close(freed)
			}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, wire.BaseURL+"/x", newOpenBody(t, "first"))
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				res, err := client.Do(req)
				if err == nil {
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
			}()
			<-begun
			cancel()
			within(t, time.Second, "freeing upstream", func() { <-freed })
			<-ended
		})
	}
}

// deadHop fails every call as a lost connection does.
type deadHop struct{ err error }

func (d deadHop) RoundTrip(*http.Request) (*http.Response, error) { return nil, d.err }

func TestDeadUpstream(t *testing.T) {
	t.Parallel()
	own := (&api.Error{Code: api.FailedPrecondition, Message: "reach workspace w: it is stopped"}).WithNext("vendetta workspace up w")
	for _, tc := range []struct {
		name string
		err  error
		code api.Code
		next string
	}{
		{"lost", io.ErrUnexpectedEOF, api.Unavailable, "repeat the call"},
		{"slow", context.DeadlineExceeded, api.DeadlineExceeded, ""},
		{"own", own, api.FailedPrecondition, "vendetta workspace up w"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			client := hop(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
				return deadHop{tc.err}, r.URL.Path, nil
			}, quiet()))
			check := func(t *testing.T, err error) {
				t.Helper()
				e := api.From(err)
				if e == nil || e.Code != tc.code || !strings.HasPrefix(e.Next, tc.next) || e.Message == "" {
					t.Fatalf("got %#v", e)
				}
			}
			for proto, options := range map[string][]connect.ClientOption{"connect": nil, "json": {connect.WithProtoJSON()}, "grpc": {connect.WithGRPC()}} {
				t.Run(proto, func(t *testing.T) {
					_, err := guestv1connect.NewGuestServiceClient(client, wire.BaseURL, options...).Hello(t.Context(), &guestv1.HelloRequest{})
					check(t, err)
					stream, err := guestv1connect.NewProcessServiceClient(client, wire.BaseURL, options...).Attach(t.Context(), &guestv1.AttachRequest{})
					if err == nil {
						if stream.Receive() {
							t.Fatal("received a message")
						}
						err = stream.Err()
					}
					check(t, err)
				})
			}
			t.Run("plain", func(t *testing.T) {
				within(t, 5*time.Second, "plain", func() {
					res, err := client.Post(wire.BaseURL+"/tunnel", "application/octet-stream", newOpenBody(t, "x"))
					if err != nil {
						t.Error(err)
						return
					}
					defer func() { _ = res.Body.Close() }()
					body, _ := io.ReadAll(res.Body)
					if res.StatusCode < 400 || !bytes.Contains(body, []byte(`"message"`)) {
						t.Errorf("got %d %s", res.StatusCode, body)
					}
				})
			})
		})
	}
}

func TestResolveError(t *testing.T) {
	t.Parallel()
	client := hop(t, wire.PassThrough(func(*http.Request) (http.RoundTripper, string, error) {
		return nil, "", api.Errorf(api.NotFound, "reach workspace x: there is none")
	}, quiet()))
	_, err := guestv1connect.NewGuestServiceClient(client, wire.BaseURL).Hello(t.Context(), &guestv1.HelloRequest{})
	if api.CodeOf(err) != api.NotFound {
		t.Fatal(err)
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	var got http.Header
	var path, query, host string
	next := hop(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, path, query, host = r.Header.Clone(), r.URL.Path, r.URL.RawQuery, r.Host
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("X-Kept", "yes")
		w.Header().Set("Trailer", "X-End")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-End", "announced")
		w.Header().Set(http.TrailerPrefix+"X-Late", "not announced")
	}))
	client := hop(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
		r.Header.Set(api.ServerHeader, "s1")
		return next.Transport, strings.TrimPrefix(r.URL.Path, "/workspaces/w/guest"), nil
	}, quiet()))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, wire.BaseURL+"/workspaces/w/guest/a%20b?q=1", nil)
	req.Header.Set("Authorization", "Bearer secret")
	req.Header.Set("Cookie", "secret=1")
	req.Header.Set("X-Forwarded-For", "192.0.2.1")
	req.Header.Set("X-Mine", "1")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.ReadAll(res.Body)
	for _, name := range []string{"Authorization", "Cookie", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded"} {
		if got.Get(name) != "" {
			t.Errorf("%s travelled: %q", name, got.Get(name))
		}
	}
	if got.Get("X-Mine") != "1" || got.Get(api.ServerHeader) != "s1" || path != "/a b" || query != "q=1" || host != "vendetta" {
		t.Errorf("upstream got %v %q %q %q", got, path, query, host)
	}
	if res.Header.Get("Set-Cookie") != "" || res.Header.Get("Access-Control-Allow-Origin") != "" || res.Header.Get("X-Kept") != "yes" {
		t.Errorf("caller got %v", res.Header)
	}
	if res.Trailer.Get("X-End") != "announced" || res.Trailer.Get("X-Late") != "not announced" {
		t.Errorf("trailers %v", res.Trailer)
	}
}

func TestHeadersBounded(t *testing.T) {
	t.Parallel()
	client := chain(t, 1, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Big", strings.Repeat("x", 1<<20))
	}))
	_, err := guestv1connect.NewGuestServiceClient(client, wire.BaseURL).Hello(t.Context(), &guestv1.HelloRequest{})
	if api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
}

func TestStalledReaderBoundsMemory(t *testing.T) {
	// Not parallel: it looks at the memory of the whole process.
	const total = 256 << 20
	block := make([]byte, 1<<20)
	written := make(chan int64, total/len(block)+1)
	client := chain(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int64
		for n < total {
			m, err := w.Write(block)
			n += int64(m)
			written <- n
			if err != nil {
				return
			}
		}
	}))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, wire.BaseURL+"/bulk", nil)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	// Back-pressure has reached the source when it writes no more.
	var n int64
	for quietly := false; !quietly; {
		select {
		case n = <-written:
		case <-time.After(300 * time.Millisecond):
			quietly = true
		}
	}
	if n == 0 || n > 64<<20 {
		t.Errorf("the source wrote %d MiB to a reader that reads nothing", n>>20)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d MiB are held for a reader that reads nothing", grown>>20)
	}
	// Nothing is lost once it reads.
	got, err := io.Copy(io.Discard, res.Body)
	if err != nil || got != total {
		t.Errorf("read %d of %d: %v", got, int64(total), err)
	}
}

// breakingHop answers a call and then loses the connection.
type breakingHop struct{ body io.ReadCloser }

func (b breakingHop) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: b.body, Request: r}, nil
}

func TestLostInTheAnswer(t *testing.T) {
	t.Parallel()
	client := hop(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
		return breakingHop{io.NopCloser(io.MultiReader(strings.NewReader("half"), errReader{}))}, r.URL.Path, nil
	}, quiet()))
	within(t, 5*time.Second, "lost answer", func() {
		res, err := client.Post(wire.BaseURL+"/x", "text/plain", newOpenBody(t, "x"))
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		if body, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("a cut answer looks whole: %q", body)
		}
	})
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection lost") }

func BenchmarkTwoHops(b *testing.B) {
	block := make([]byte, 1<<20)
	client := chain(b, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bulk" {
			for range 64 {
				_, _ = w.Write(block)
			}
		}
	}))
	for _, path := range []string{"/ping", "/bulk"} {
		b.Run(path[1:], func(b *testing.B) {
			if path == "/bulk" {
				b.SetBytes(64 << 20)
			}
			for b.Loop() {
				res, err := client.Get(wire.BaseURL + path)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		})
	}
}
