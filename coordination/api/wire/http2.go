package wire

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// HTTP/2's defaults (16 KiB frames, 64 KiB windows) halve bulk speed; these were
// measured at 2.5 times the throughput. The stream window also bounds what a
// stalled reader can hold in memory on each hop; the connection's window is the
// sum of many, so that a few stalled streams do not hold up the others.
const (
	frameSize        = 1 << 20
	streamWindow     = 4 << 20
	connectionWindow = 256 << 20
	maxStreams       = 1000
	// headerBytes bounds the headers of a request and of an answer; who sends
	// them may be a guest.
	headerBytes = 64 << 10
)

// Keepalive of a connection in silence: a ping after pingAfter, and the
// connection is closed when no answer came within pingTimeout. Together they
// stay below the 15 seconds after which a dead link must be redialled.
const (
	pingAfter   = 8 * time.Second
	pingTimeout = 5 * time.Second
)

// settings of both ends of a connection.
func settings() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          maxStreams,
		MaxReadFrameSize:              frameSize,
		MaxReceiveBufferPerConnection: connectionWindow,
		MaxReceiveBufferPerStream:     streamWindow,
		SendPingTimeout:               pingAfter,
		PingTimeout:                   pingTimeout,
	}
}

// Serve answers requests on one connection until it ends or ctx is done.
// Requests still running then have their contexts cancelled, and Serve returns
// when the last of them has returned. It closes conn. Besides HTTP/2 it takes
// HTTP/1.1, which serves a person with curl.
func Serve(ctx context.Context, conn net.Conn, handler http.Handler) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	running := &gate{next: handler}
	defer running.wait()
	defer cancel()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           running,
		Protocols:         protocols,
		HTTP2:             settings(),
		MaxHeaderBytes:    headerBytes,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	one := &oneConn{conn: conn, closed: make(chan struct{})}
	_ = server.Serve(one)
}

// oneConn is a listener that has a single connection to give and ends with it.
type oneConn struct {
	conn   net.Conn
	given  bool
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return &watchedConn{Conn: l.conn, listener: l}, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// watchedConn tells its listener that it was closed.
type watchedConn struct {
	net.Conn
	listener *oneConn
}

func (c *watchedConn) Close() error {
	err := c.Conn.Close()
	_ = c.listener.Close()
	return err
}

// gate counts the requests that run, so that the connection's owner can wait
// for them. A request that comes when the connection has ended is not begun.
type gate struct {
	next http.Handler

	mu      sync.Mutex
	ended   bool
	running sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ended {
		g.running.Add(1)
	}
	return !g.ended
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.enter() {
		return
	}
	defer g.running.Done()
	g.next.ServeHTTP(w, r)
}

func (g *gate) wait() {
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	g.running.Wait()
}

// NewConn makes conn an HTTP/2 client connection that its caller keeps: requests
// go out on it whatever their URL, its state hook tells when it was lost, and
// Close ends it and the requests that run.
func NewConn(ctx context.Context, conn net.Conn) (*http.ClientConn, error) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols:              protocols,
		HTTP2:                  settings(),
		DisableCompression:     true,
		MaxResponseHeaderBytes: headerBytes,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	return transport.NewClientConn(ctx, "http", "vendetta:80")
}

// Client is an http.Client on NewTransport. Its calls go to BaseURL. It follows no
// redirect: who answers may be a guest, and would send the caller's request, with
// the caller's rights, to where it likes.
func Client(dial func(context.Context) (net.Conn, error)) *http.Client {
	return &http.Client{
		Transport:     NewTransport(dial),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// BaseURL is the address under which a connection's own server is reached; the
// connection decides where the bytes go, so the name means nothing.
const BaseURL = "http://vendetta"
