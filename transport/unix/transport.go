package unix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"syscall"

	"github.com/vendetta-dev/vendetta/transport"
)

// pathLimit is the longest socket path that Linux takes (sun_path less its NUL).
const pathLimit = 107

// Transport dials one socket. It implements transport.Transport.
type Transport struct {
	socket string

	mu     sync.Mutex
	closed bool
	open   map[*stream]struct{}
}

// New returns a transport to the node agent that listens on socket.
func New(socket string) *Transport {
	return &Transport{socket: socket, open: map[*stream]struct{}{}}
}

// Dial implements transport.Transport. A socket that is absent, or that nobody
// listens on any more, is ErrNoAgent.
func (t *Transport) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := dial(ctx, t.socket)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: %w", t.socket, net.ErrClosed)
	}
	s := &stream{UnixConn: conn, owner: t}
	t.open[s] = struct{}{}
	return s, nil
}

// Close implements transport.Transport.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	open := t.open
	t.open = map[*stream]struct{}{}
	t.mu.Unlock()
	for s := range open {
		_ = s.UnixConn.Close()
	}
	return nil
}

// stream is a connection that its transport can close.
type stream struct {
	*net.UnixConn
	owner *Transport
}

// Close ends the stream.
func (s *stream) Close() error {
	s.owner.mu.Lock()
	delete(s.owner.open, s)
	s.owner.mu.Unlock()
	return s.UnixConn.Close()
}

func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	if len(socket) > pathLimit {
		return nil, &transport.Error{
			Kind:    transport.ErrNoAgent,
			Message: fmt.Sprintf("dial %s: the path has %d bytes, a socket's path may have %d", socket, len(socket), pathLimit),
			Next:    "choose a shorter state directory with --state-dir",
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		return conn.(*net.UnixConn), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &transport.Error{
			Kind:    transport.ErrNoAgent,
			Message: fmt.Sprintf("dial %s: no node agent is listening", socket),
			Next:    "start it: vendetta nodeagent start",
			Cause:   err,
		}
	default:
		return nil, &transport.Error{
			Kind:    transport.ErrUnreachable,
			Message: fmt.Sprintf("dial %s: %v", socket, reason(err)),
			Cause:   err,
		}
	}
}

// reason is the innermost error: the operation's names around it repeat the path.
func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
