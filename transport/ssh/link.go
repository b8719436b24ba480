package ssh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"
	gossh "golang.org/x/crypto/ssh"

	"github.com/vendetta-dev/vendetta/transport"
)

// errSilent ends a link whose other side no longer answers.
var errSilent = errors.New("no answer to keepalive")

// link is a live connection to the node, jump hosts included: when one part of
// it fails all of it is closed. Its goroutines end with it.
type link struct {
	options Options
	parts   []*part
	// stdio says that the sshd is known to forbid streams to sockets.
	stdio atomic.Bool

	done chan struct{}
	mu   sync.Mutex
	err  error
	wg   conc.WaitGroup
}

// part is the connection to one host of the way.
type part struct {
	hop    *hop
	wire   *wire
	client *gossh.Client
	// ownKey: the server's own key was what the host accepted.
	ownKey bool
}

// wire is the connection below SSH. It knows when it last heard something, and
// whether it failed, which x/crypto does not tell its streams.
type wire struct {
	net.Conn
	born   time.Time
	heard  atomic.Int64
	broken atomic.Bool
}

func newWire(conn net.Conn) *wire { return &wire{Conn: conn, born: time.Now()} }

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.heard.Store(int64(time.Since(w.born)))
	}
	if err != nil {
		w.broken.Store(true)
	}
	return n, err
}

// silence is the time since the other side was last heard.
func (w *wire) silence() time.Duration {
	return time.Since(w.born) - time.Duration(w.heard.Load())
}

// connect makes a link. Its dials and handshakes end with ctx; the link itself
// lives until it fails or is closed.
func connect(ctx context.Context, o Options) (*link, error) {
	route, err := o.route()
	if err != nil {
		return nil, err
	}
	keys, err := o.knownKeys()
	if err != nil {
		return nil, err
	}
	l := &link{options: o, done: make(chan struct{})}
	for _, h := range route {
		p, err := l.reach(ctx, h, keys, nil)
		if err != nil {
			l.close(err)
			return nil, err
		}
		l.keep(p)
	}
	if err := l.warmUp(ctx); err != nil {
		l.close(err)
		return nil, err
	}
	return l, nil
}

// node is the last part.
func (l *link) node() *part { return l.parts[len(l.parts)-1] }

// reach connects to the next host of the way and logs in. Observe, when given,
// is told of each key that the host shows.
func (l *link) reach(ctx context.Context, h *hop, keys *knownKeys, observe func(gossh.PublicKey)) (*part, error) {
	creds, err := l.options.credentials(ctx, h)
	if err != nil {
		return nil, err
	}
	defer creds.close()
	config := &gossh.ClientConfig{
		User: h.user,
		Auth: creds.methods(),
	}
	// aes-gcm is the fastest by far where the processor knows AES.
	config.Ciphers = []string{
		gossh.CipherAES128GCM, gossh.CipherAES256GCM, gossh.CipherChaCha20Poly1305,
		gossh.CipherAES128CTR, gossh.CipherAES192CTR, gossh.CipherAES256CTR,
	}
	limit := handshakeTimeout
	if l.options.Login != nil {
		limit = loginTimeout
	}
	var seen gossh.PublicKey
	w, conn, chans, reqs, err := l.handshake(ctx, h, config, limit, keys, func(key gossh.PublicKey) error {
		seen = key
		if observe != nil {
			observe(key)
		}
		return keys.verify(h, key)
	})
	switch {
	case err == nil:
		return &part{hop: h, wire: w, client: gossh.NewClient(conn, chans, reqs), ownKey: creds.usedOwn()}, nil
	case isTransportError(err), ctx.Err() != nil, seen == nil:
		return nil, err
	case loginRefused(err):
		return nil, creds.refused(h, err)
	}
	return nil, err
}

// handshake connects to h and runs the SSH handshake, in which judge decides on
// the host's key. A host that shows a key of a type that is not accepted, or a
// jump host's, while fingerprints were accepted is asked for its other types.
func (l *link) handshake(ctx context.Context, h *hop, config *gossh.ClientConfig, limit time.Duration, keys *knownKeys, judge func(gossh.PublicKey) error) (*wire, gossh.Conn, <-chan gossh.NewChannel, <-chan *gossh.Request, error) {
	without := map[string]bool{}
	var first error
	for {
		config.HostKeyAlgorithms = keys.algorithms(h, without)
		var verdict error
		var keyType string
		config.HostKeyCallback = func(_ string, _ net.Addr, key gossh.PublicKey) error {
			keyType = key.Type()
			verdict = judge(key)
			return verdict
		}
		w, conn, chans, reqs, err := l.attempt(ctx, h, config, limit)
		if err == nil {
			return w, conn, chans, reqs, nil
		}
		if verdict == nil {
			if first != nil && keyType == "" {
				// It has no key of another type.
				err = first
			}
			return nil, nil, nil, nil, err
		}
		if !isUnknown(verdict) && !errors.Is(verdict, errShared) {
			return nil, nil, nil, nil, verdict
		}
		if first == nil {
			first = verdict
		}
		if len(keys.accepted) == 0 || without[keyType] {
			return nil, nil, nil, nil, first
		}
		without[keyType] = true
	}
}

// attempt is one connection and handshake.
func (l *link) attempt(ctx context.Context, h *hop, config *gossh.ClientConfig, limit time.Duration) (*wire, gossh.Conn, <-chan gossh.NewChannel, <-chan *gossh.Request, error) {
	raw, err := l.tcp(ctx, h)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	w := newWire(raw)
	hctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// x/crypto knows no deadline: closing the connection ends the handshake.
	stop := context.AfterFunc(hctx, func() { _ = raw.Close() })
	conn, chans, reqs, err := gossh.NewClientConn(w, h.keyName, config)
	if !stop() && err == nil {
		_ = conn.Close()
		err = hctx.Err()
	}
	switch {
	case err == nil:
		return w, conn, chans, reqs, nil
	case ctx.Err() != nil:
		return nil, nil, nil, nil, fmt.Errorf("connect to %s: %w", h, ctx.Err())
	case hctx.Err() != nil:
		return nil, nil, nil, nil, &transport.Error{
			Kind:    transport.ErrUnreachable,
			Message: fmt.Sprintf("connect to %s: the SSH handshake did not end within %v", h, limit),
			Next:    "check the network and that the port is an OpenSSH server's" + h.note(),
			Cause:   err,
		}
	case loginRefused(err):
		return nil, nil, nil, nil, err
	}
	return nil, nil, nil, nil, &transport.Error{
		Kind:    transport.ErrUnreachable,
		Message: fmt.Sprintf("connect to %s: the SSH handshake ended early: %v", h, err),
		Next:    "check that the port is an OpenSSH server's and read its log" + h.note(),
		Cause:   err,
	}
}

// tcp connects to h from the last host reached so far, or from here.
func (l *link) tcp(ctx context.Context, h *hop) (net.Conn, error) {
	cctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	from, dial := "", l.options.Dial
	if len(l.parts) > 0 {
		last := l.node()
		from, dial = " from "+last.hop.String(), last.client.DialContext
	}
	conn, err := dial(cctx, "tcp", h.addr())
	switch {
	case err == nil:
		return conn, nil
	case ended(ctx):
		return nil, fmt.Errorf("connect to %s: %w", h, ctx.Err())
	}
	message := fmt.Sprintf("connect to %s%s: %v", h, from, tcpReason(err))
	if ended(cctx) {
		message = fmt.Sprintf("connect to %s%s: no answer within %v", h, from, connectTimeout)
	}
	return nil, &transport.Error{
		Kind:    transport.ErrUnreachable,
		Message: message,
		Next:    "check that the machine is up, its address and port are right, and sshd runs there" + h.note(),
		Cause:   err,
	}
}

// ended says whether ctx is done or about to be: a dialer notices a deadline a
// moment before the context does. It returns once ctx.Err says so.
func ended(ctx context.Context) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 {
		<-ctx.Done()
	}
	return ctx.Err() != nil
}

// tcpReason is the innermost error: the address stands in the message already.
func tcpReason(err error) error {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return errors.New(dns.Err)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return innermost(op.Err)
	}
	var refused *gossh.OpenChannelError
	if errors.As(err, &refused) {
		if refused.Reason == gossh.Prohibited {
			return errors.New("the jump host forbids TCP forwarding")
		}
		return errors.New("the jump host could not connect: " + refused.Message)
	}
	return err
}

// loginRefused tells a refused login from other ends of a handshake. x/crypto
// has no type for either.
func loginRefused(err error) bool {
	text := err.Error()
	return errors.Is(err, errQuestions) || strings.Contains(text, "unable to authenticate") || strings.Contains(text, "authentication failures")
}

func isTransportError(err error) bool {
	var te *transport.Error
	return errors.As(err, &te)
}

// keep adds a part to the link and watches over it.
func (l *link) keep(p *part) {
	l.mu.Lock()
	l.parts = append(l.parts, p)
	l.mu.Unlock()
	l.wg.Go(func() {
		err := p.client.Wait()
		l.fail(fmt.Errorf("connection to %s ended: %w", p.hop, err))
	})
	l.wg.Go(func() { l.keepalive(p) })
}

// keepalive closes the link when p has been silent for too long. Every byte that
// arrives counts as an answer, so bulk data in the way does no harm.
func (l *link) keepalive(p *part) {
	o := l.options.Keepalive
	tick := time.NewTicker(max(min(o.Interval, o.Limit)/4, time.Millisecond))
	defer tick.Stop()
	asking := make(chan struct{}, 1)
	for {
		select {
		case <-l.done:
			return
		case <-tick.C:
		}
		silence := p.wire.silence()
		if silence >= o.Limit {
			l.fail(fmt.Errorf("connection to %s: %w for %v", p.hop, errSilent, silence.Round(time.Millisecond)))
			return
		}
		if silence < o.Interval {
			continue
		}
		select {
		case asking <- struct{}{}:
			// A request may block on a full connection, so it has its own goroutine.
			l.spawn(func() {
				_, _, _ = p.client.SendRequest("keepalive@openssh.com", true, nil)
				<-asking
			})
		default:
		}
	}
}

// spawn runs f as part of the link, unless that has ended.
func (l *link) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return false
	}
	l.wg.Go(f)
	return true
}

// fail ends the link because of err.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	close(l.done)
	// The first wire carries the others. Closing a later one by itself could
	// block on a connection that is stuck.
	if len(l.parts) > 0 {
		_ = l.parts[0].wire.Close()
	}
}

// close ends the link and waits for what it runs.
func (l *link) close(err error) {
	l.fail(err)
	l.wg.Wait()
}

// alive says whether the link can be used.
func (l *link) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// reason is why the link ended.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// broken says whether any connection below has ended, which is known before its
// streams see their end.
func (l *link) broken() bool {
	for _, p := range l.parts {
		if p.wire.broken.Load() {
			return true
		}
	}
	return !l.alive()
}

// warmUp runs a command that does nothing: only with a session's start does sshd
// set TCP_NODELAY, without which two small writes cost 40 ms. A host that lets
// nobody run commands may still carry streams.
func (l *link) warmUp(ctx context.Context) error {
	session, err := l.session(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("connect to %s: %w", l.node().hop, ctx.Err())
		}
		l.options.Logger.Debug("node opens no session", "host", l.node().hop.String(), "error", err)
		return nil
	}
	started := make(chan struct{})
	ok := l.spawn(func() {
		err := session.Start("exec true")
		close(started)
		if err == nil {
			_ = session.Wait()
		}
		_ = session.Close()
	})
	if !ok {
		return fmt.Errorf("connect to %s: %w", l.node().hop, l.reason())
	}
	select {
	case <-started:
		return nil
	case <-l.done:
		return &transport.Error{
			Kind:    transport.ErrUnreachable,
			Message: fmt.Sprintf("connect to %s: the connection was lost", l.node().hop),
			Next:    "try again",
			Cause:   l.reason(),
		}
	case <-ctx.Done():
		return fmt.Errorf("connect to %s: %w", l.node().hop, ctx.Err())
	}
}
