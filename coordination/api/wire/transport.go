package wire

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// Transport is a client that keeps one HTTP/2 connection, made by dial when it
// is first needed and anew after it was lost. Silence on it is pinged. Beyond the
// streams that a connection carries at the same time, requests wait.
type Transport struct {
	dial func(context.Context) (net.Conn, error)

	mu      sync.Mutex
	conn    *http.ClientConn
	attempt *attempt
}

// attempt is one dial; requests that come during it share its outcome.
type attempt struct {
	done chan struct{}
	conn *http.ClientConn
	err  error
	// abandoned: it ended since its own caller gave up, which says nothing about
	// the other side.
	abandoned bool
}

// NewTransport returns a Transport. Its requests go to BaseURL. An error of dial
// comes back from RoundTrip as it is.
func NewTransport(dial func(context.Context) (net.Conn, error)) *Transport {
	return &Transport{dial: dial}
}

// RoundTrip sends a request on the kept connection.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		conn, err := t.usable(r.Context())
		if err != nil {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			return nil, err
		}
		// What was lost before the request went out is not the request's failure.
		if conn.Reserve() != nil && conn.Err() != nil {
			continue
		}
		return conn.RoundTrip(r)
	}
}

// CloseIdleConnections closes the connection unless requests run on it.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil && t.conn.InFlight() == 0 {
		_ = t.conn.Close()
		t.conn = nil
	}
}

func (t *Transport) usable(ctx context.Context) (*http.ClientConn, error) {
	for {
		t.mu.Lock()
		conn, running := t.conn, t.attempt
		if conn != nil && conn.Err() == nil {
			t.mu.Unlock()
			return conn, nil
		}
		if running == nil {
			own := &attempt{done: make(chan struct{})}
			t.attempt = own
			t.mu.Unlock()
			t.try(ctx, own, conn)
			return own.conn, own.err
		}
		t.mu.Unlock()
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if running.err != nil && !running.abandoned {
			return nil, running.err
		}
	}
}

// try makes a connection in place of the lost one.
func (t *Transport) try(ctx context.Context, a *attempt, lost *http.ClientConn) {
	if lost != nil {
		_ = lost.Close()
	}
	var stream net.Conn
	if stream, a.err = t.dial(ctx); a.err == nil {
		if a.conn, a.err = NewConn(ctx, stream); a.err != nil {
			_ = stream.Close()
		}
	}
	a.abandoned = a.err != nil && ctx.Err() != nil
	t.mu.Lock()
	t.conn, t.attempt = a.conn, nil
	t.mu.Unlock()
	close(a.done)
}
