package wire_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

func TestServeTakesHTTP1(t *testing.T) {
	t.Parallel()
	socket := serveUnix(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Get(wire.BaseURL + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if body, _ := io.ReadAll(res.Body); string(body) != "HTTP/1.1" {
		t.Fatalf("got %q", body)
	}
}

func TestEarlyEndOverHTTP1(t *testing.T) {
	t.Parallel()
	upstream := hop(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "early", http.StatusConflict) }))
	socket := serveUnix(t, wire.PassThrough(func(r *http.Request) (http.RoundTripper, string, error) {
		return upstream.Transport, r.URL.Path, nil
	}, quiet()))
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: vendetta\r\nContent-Length: 100\r\n\r\nfirst")
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	status := make([]byte, 12)
	if _, err := io.ReadFull(conn, status); err != nil || string(status) != "HTTP/1.1 409" {
		t.Fatalf("got %q %v", status, err)
	}
}

func TestServeWaitsForRequests(t *testing.T) {
	t.Parallel()
	begun, returned := make(chan struct{}), make(chan struct{})
	release := make(chan struct{})
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		wire.Serve(ctx, far, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			<-release
			close(returned)
		}))
	}()
	conn, err := wire.NewConn(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lost := make(chan struct{})
	conn.SetStateHook(func(c *http.ClientConn) {
		if c.Err() != nil {
			select {
			case <-lost:
			default:
				close(lost)
			}
		}
	})
	failed := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, wire.BaseURL+"/x", nil)
		res, err := conn.RoundTrip(req)
		if err == nil {
			_ = res.Body.Close()
		}
		failed <- err
	}()
	<-begun
	cancel()
	within(t, 5*time.Second, "the client's sight of the end", func() {
		if err := <-failed; err == nil {
			t.Error("the request succeeded")
		}
		<-lost
	})
	select {
	case <-served:
		t.Fatal("Serve returned before its request")
	default:
	}
	close(release)
	within(t, 5*time.Second, "Serve", func() { <-served; <-returned })
}
