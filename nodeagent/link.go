package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// helloLimit bounds what a guest may answer to Hello, in bytes.
const helloLimit = 64 << 10

// link keeps the one connection to a running guest and makes it anew when it
// was lost. It is an http.RoundTripper: requests that come while there is no
// connection wait for the next one, for a while.
type link struct {
	connect func(context.Context) (net.Conn, error)
	changed func()
	log     *slog.Logger
	timing  timing

	mu     sync.Mutex
	name   string
	cancel context.CancelFunc
	ended  chan struct{}
	conn   *http.ClientConn
	// found is closed when conn is set, and new when it was lost.
	found   chan struct{}
	lastErr error
}

func newLink(name string, connect func(context.Context) (net.Conn, error), changed func(), log *slog.Logger, t timing) *link {
	return &link{name: name, connect: connect, changed: changed, log: log, timing: t, found: make(chan struct{})}
}

// rename makes what is said of the workspace from now on call it by this name.
func (l *link) rename(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.name = name
}

func (l *link) called() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.name
}

// start keeps the link up until stop or the end of ctx. spawn runs the loop;
// whoever owns the link waits for it. Starting twice is starting once.
func (l *link) start(ctx context.Context, spawn func(func())) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	l.cancel, l.ended, l.lastErr = cancel, ended, nil
	spawn(func() {
		defer close(ended)
		l.run(ctx)
	})
}

// stop closes the link and returns when nothing of it runs any more.
func (l *link) stop() {
	l.mu.Lock()
	cancel, ended := l.cancel, l.ended
	l.cancel = nil
	l.mu.Unlock()
	if cancel != nil {
		cancel()
		<-ended
	}
}

// up reports whether the guest answers.
func (l *link) up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}

// alive is up for who is about to rely on it: a connection of which the loss was
// not yet seen by all does not count.
func (l *link) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil && l.conn.Err() == nil
}

// started reports whether the link is being kept.
func (l *link) started() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cancel != nil
}

func (l *link) run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		err := l.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
		} else {
			failures++
			l.mu.Lock()
			l.lastErr = err
			l.mu.Unlock()
			l.log.Debug("guest link not made", "workspace", l.called(), "error", err, "attempt", failures)
		}
		wait(ctx, backoff(failures, l.timing.linkRetry, l.timing.linkRetryMax))
	}
}

// once makes a connection and holds it until it is lost. An error says that
// none was made.
func (l *link) once(ctx context.Context) error {
	// The stream ends with the context of Connect, so that is the connection's
	// own, and a timer, not a deadline, bounds the making of it.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(l.timing.linkOpen, func() {
		cancel(fmt.Errorf("no answer within %v", l.timing.linkOpen))
	})
	defer timer.Stop()
	conn, err := l.open(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	defer func() { _ = conn.Close() }()
	if !timer.Stop() {
		return context.Cause(ctx)
	}
	lost := make(chan struct{})
	var once sync.Once
	conn.SetStateHook(func(c *http.ClientConn) {
		if c.Err() != nil {
			once.Do(func() { close(lost) })
		}
	})
	l.set(conn)
	l.log.Info("guest link made", "workspace", l.called())
	select {
	case <-lost:
		l.log.Info("guest link lost", "workspace", l.called(), "error", conn.Err())
	case <-ctx.Done():
	}
	l.set(nil)
	return nil
}

// open returns a connection on which the guest has answered.
func (l *link) open(ctx context.Context) (*http.ClientConn, error) {
	stream, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := wire.OpenLink(ctx, stream); err != nil {
		_ = stream.Close()
		return nil, err
	}
	conn, err := wire.NewConn(ctx, stream)
	if err != nil {
		_ = stream.Close()
		return nil, err
	}
	if err := l.hello(ctx, conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (l *link) hello(ctx context.Context, conn *http.ClientConn) error {
	guest := guestv1connect.NewGuestServiceClient(&http.Client{Transport: conn}, wire.BaseURL, connect.WithReadMaxBytes(helloLimit))
	hello, err := guest.Hello(ctx, &guestv1.HelloRequest{ProtocolMin: api.ProtocolOldest, ProtocolMax: api.Protocol})
	if err != nil {
		return api.From(err)
	}
	_, err = api.Negotiate(hello.GetProtocol(), hello.GetProtocol(),
		fmt.Sprintf("vendetta workspace down %[1]s, then vendetta workspace up %[1]s: the new instance gets the node's guest", l.called()))
	return err
}

func (l *link) set(conn *http.ClientConn) {
	l.mu.Lock()
	switch {
	case conn != nil:
		l.conn, l.lastErr = conn, nil
		close(l.found)
	case l.conn != nil:
		l.conn = nil
		l.found = make(chan struct{})
	}
	l.mu.Unlock()
	l.changed()
}

// await returns the connection, waiting for it until ctx ends.
func (l *link) await(ctx context.Context) (*http.ClientConn, error) {
	for {
		l.mu.Lock()
		conn, found := l.conn, l.found
		l.mu.Unlock()
		if conn != nil && conn.Err() == nil {
			return conn, nil
		}
		if conn != nil {
			// It was lost this moment; the loop is about to notice.
			if !wait(ctx, 5*time.Millisecond) {
				return nil, l.silence(ctx)
			}
			continue
		}
		select {
		case <-found:
		case <-ctx.Done():
			return nil, l.silence(ctx)
		}
	}
}

// silence explains why there is no connection.
func (l *link) silence(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var own *api.Error
	if errors.As(l.lastErr, &own) && own.Code == api.FailedPrecondition {
		return own
	}
	cause := l.lastErr
	if cause == nil {
		cause = ctx.Err()
	}
	return (&api.Error{Code: api.Unavailable, Message: fmt.Sprintf("reach workspace %s: its guest does not answer", l.name), Cause: cause}).
		WithNext("repeat the call in a moment; if it stays so, vendetta workspace stop %s and vendetta workspace up %s", l.name, l.name)
}

// RoundTrip sends a request to the guest.
func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), l.timing.linkWait)
	conn, err := l.await(ctx)
	cancel()
	if err != nil {
		return nil, err
	}
	return conn.RoundTrip(r)
}
