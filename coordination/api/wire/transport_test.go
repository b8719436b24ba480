package wire_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// counter dials a socket and counts; it keeps the connections to cut them.
type counter struct {
	socket string
	dials  atomic.Int32
	mu     sync.Mutex
	conns  []net.Conn
}

func (c *counter) dial(ctx context.Context) (net.Conn, error) {
	c.dials.Add(1)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

func (c *counter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

func get(ctx context.Context, t http.RoundTripper) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, wire.BaseURL+"/x", strings.NewReader("body"))
	if err != nil {
		return err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

func TestTransportKeepsOneConnection(t *testing.T) {
	t.Parallel()
	c := &counter{socket: serveUnix(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))}
	transport := wire.NewTransport(c.dial)
	defer transport.CloseIdleConnections()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := get(t.Context(), transport); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := c.dials.Load(); n != 1 {
		t.Fatalf("%d dials", n)
	}
	c.cut()
	deadline := time.After(5 * time.Second)
	for get(t.Context(), transport) != nil {
		select {
		case <-deadline:
			t.Fatal("no new connection")
		default:
		}
	}
	if n := c.dials.Load(); n != 2 {
		t.Fatalf("%d dials after the cut", n)
	}
	// A connection is idle a moment after its last answer was read.
	for c.dials.Load() != 3 {
		transport.CloseIdleConnections()
		if err := get(t.Context(), transport); err != nil {
			t.Fatal(err)
		}
		select {
		case <-deadline:
			t.Fatal("idle connections are not closed")
		default:
		}
	}
}

func TestTransportDialErrors(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	begun, release := make(chan struct{}, 10), make(chan struct{})
	var dials atomic.Int32
	transport := wire.NewTransport(func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		begun <- struct{}{}
		select {
		case <-release:
			return nil, boom
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	// One that gives up does not fail the others; they share what comes of theirs.
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- get(ctx, transport) }()
	<-begun
	rest := make(chan error, 3)
	for range 3 {
		go func() { rest <- get(t.Context(), transport) }()
	}
	waiting, giveUp := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer giveUp()
	if err := get(waiting, transport); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that waits no longer: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that gave up: %v", err)
	}
	<-begun
	close(release)
	for range 3 {
		if err := <-rest; !errors.Is(err, boom) {
			t.Errorf("the others: %v", err)
		}
	}
	// A stream that is no connection.
	near, far := net.Pipe()
	_, _ = near.Close(), far.Close()
	broken := wire.NewTransport(func(context.Context) (net.Conn, error) { return near, nil })
	if err := get(t.Context(), broken); err == nil {
		t.Error("a request on a closed stream")
	}
}
