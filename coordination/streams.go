package coordination

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// connectCeiling bounds the way to a node: name, TCP, handshakes, stream.
const connectCeiling = 10 * time.Second

// channel carries requests over one HTTP/2 connection to a node agent, which is
// made when it is first needed and anew after it was lost. Control, guest
// streams and bulk have one each, so that they never share a window.
type channel struct {
	dialer    Dialer
	target    func() Target
	serverID  string
	transport http.RoundTripper

	mu      sync.Mutex
	ceiling time.Duration // of a dial
	closed  bool
	conns   map[net.Conn]struct{}
}

func newChannel(dialer Dialer, target func() Target, serverID string) *channel {
	c := &channel{dialer: dialer, target: target, serverID: serverID, ceiling: connectCeiling, conns: map[net.Conn]struct{}{}}
	c.transport = wire.NewTransport(c.dial)
	return c
}

// RoundTrip sends a request to the node agent in the name of this server. Its
// error is an *api.Error, unless the request's own context ended it.
func (c *channel) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(api.ServerHeader, c.serverID)
	resp, err := c.transport.RoundTrip(r)
	var own *api.Error
	if err != nil && r.Context().Err() == nil && !errors.As(err, &own) {
		name := c.target().Name
		err = &api.Error{
			Code: api.Unavailable, Message: "node " + name + ": the connection was lost: " + err.Error(),
			Next: "try again; if it stays, vendetta node test " + name, Cause: err,
		}
	}
	return resp, err
}

// client is an http.Client that stays on the channel: it follows no redirect.
func (c *channel) client() *http.Client {
	return &http.Client{
		Transport:     c,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (c *channel) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	ceiling := c.ceiling
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, ceiling)
	defer cancel()
	target := c.target()
	conn, err := c.dialer.Dial(ctx, target)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no connection within %s: %w", ceiling, err)
		}
		return nil, dialError(target.Name, err)
	}
	kept := &keptConn{Conn: conn, channel: c}
	c.mu.Lock()
	if !c.closed {
		c.conns[kept] = struct{}{}
		c.mu.Unlock()
		return kept, nil
	}
	c.mu.Unlock()
	_ = conn.Close()
	return nil, api.Errorf(api.Unavailable, "node %s: its link was closed", target.Name)
}

// nodeError makes err, from the way to a node, one that a user can act upon.
func nodeError(name string, err error) *api.Error {
	e := api.From(err)
	if e.Code == api.Internal || e.Code == api.DeadlineExceeded {
		e = &api.Error{Code: api.Unavailable, Message: "node " + name + ": " + e.Message, Next: e.Next, Cause: err}
	}
	if e.Next == "" {
		e = e.WithNext("vendetta node test %s", name)
	}
	return e
}

// dialError is nodeError for a failed dial. The RPC library takes any error with
// io.EOF in its chain for a broken answer and throws its text away, so a cause
// like that is left behind; what the link must know of it is kept.
func dialError(name string, err error) *api.Error {
	e := nodeError(name, err)
	if !errors.Is(e, io.EOF) {
		return e
	}
	kept := *e
	kept.Cause = nil
	if errors.Is(e, ErrNoAgent) {
		kept.Cause = ErrNoAgent
	}
	return &kept
}

// bound sets the longest that a dial may take from now on.
func (c *channel) bound(ceiling time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ceiling = ceiling
}

// reset closes the connections; the next request dials.
func (c *channel) reset() {
	c.mu.Lock()
	conns := make([]net.Conn, 0, len(c.conns))
	for conn := range c.conns {
		conns = append(conns, conn)
	}
	c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// close is reset for good.
func (c *channel) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.reset()
}

// keptConn leaves the channel's books when it is closed.
type keptConn struct {
	net.Conn
	channel *channel
}

func (k *keptConn) Close() error {
	k.channel.mu.Lock()
	delete(k.channel.conns, k)
	k.channel.mu.Unlock()
	return k.Conn.Close()
}
