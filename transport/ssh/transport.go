package ssh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/transport"
)

// Waiting after failed attempts, doubled each time and jittered by half.
const (
	backoffFirst = 200 * time.Millisecond
	// backoffLimit keeps a repaired link from waiting for long: with the
	// connect timeout it is in use again within five seconds.
	backoffLimit = time.Second
	// refusalFirst and refusalLimit are for a refused login or host key: nothing
	// but a person changes that, and many tries look like an attack.
	refusalFirst = time.Second
	refusalLimit = 10 * time.Second
)

// Transport keeps a connection to one node. It implements transport.Transport.
type Transport struct {
	options Options

	// turn is held by the one caller that connects.
	turn   chan struct{}
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	link     *link
	failures int
	retryAt  time.Time
	failure  error
}

// New returns a transport. It does not connect: that is left to the first call
// that needs the node.
func New(o Options) (*Transport, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Transport{options: o, turn: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

// Dial implements transport.Transport.
func (t *Transport) Dial(ctx context.Context) (net.Conn, error) {
	if t.options.Socket == "" {
		return nil, fmt.Errorf("dial the agent of %s: its socket is not known", t.options.Host)
	}
	conn, err := use(ctx, t, (*link).stream)
	if err != nil && !isTransportError(err) {
		err = fmt.Errorf("dial the agent of %s: %w", t.options.Host, err)
	}
	return conn, err
}

// use calls f with a live link. When the link ends meanwhile, which may have
// been dead for a while without anyone knowing, it calls f with a new one.
func use[T any](ctx context.Context, t *Transport, f func(*link, context.Context) (T, error)) (T, error) {
	for {
		l, err := t.live(ctx)
		if err != nil {
			var none T
			return none, err
		}
		value, err := f(l, ctx)
		if err == nil || !l.broken() || ctx.Err() != nil {
			return value, err
		}
	}
}

// live returns the link, made anew when there is none.
func (t *Transport) live(ctx context.Context) (*link, error) {
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-t.closed:
		return nil, t.closedError()
	case <-ctx.Done():
		return nil, t.overtime(ctx)
	}
	t.mu.Lock()
	l, old := t.link, (*link)(nil)
	if l != nil && l.broken() {
		t.link, old, l = nil, l, nil
	}
	wait, failure := time.Until(t.retryAt), t.failure
	t.mu.Unlock()
	if old != nil {
		old.close(errLost)
		t.options.Logger.Info("connection to node lost", "host", t.options.Host, "error", old.reason())
	}
	if l != nil {
		return l, nil
	}
	if err := t.backOff(ctx, wait, failure); err != nil {
		return nil, err
	}
	// Closing the transport ends the attempt.
	cctx, cancel := context.WithCancel(ctx)
	var watch conc.WaitGroup
	watch.Go(func() {
		select {
		case <-t.closed:
			cancel()
		case <-cctx.Done():
		}
	})
	l, err := connect(cctx, t.options)
	cancel()
	watch.Wait()
	return t.connected(ctx, l, err)
}

// backOff waits after a failure. Refusals are repeated at once instead.
func (t *Transport) backOff(ctx context.Context, wait time.Duration, failure error) error {
	select {
	case <-t.closed:
		return t.closedError()
	default:
	}
	if ctx.Err() != nil {
		return t.overtime(ctx)
	}
	if wait <= 0 {
		return nil
	}
	if refusal(failure) {
		return failure
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.closed:
		return t.closedError()
	case <-ctx.Done():
		return t.overtime(ctx)
	}
}

// connected records how an attempt ended.
func (t *Transport) connected(ctx context.Context, l *link, err error) (*link, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.closed:
		if l != nil {
			l.close(net.ErrClosed)
		}
		return nil, t.closedError()
	default:
	}
	if err == nil {
		t.link, t.failures, t.failure, t.retryAt = l, 0, nil, time.Time{}
		t.options.Logger.Info("connected to node", "host", l.node().hop.String())
		return l, nil
	}
	if ctx.Err() != nil && !isTransportError(err) {
		// The caller gave up; that says nothing about the node.
		return nil, err
	}
	first, limit := backoffFirst, backoffLimit
	if refusal(err) {
		first, limit = refusalFirst, refusalLimit
	}
	t.failure = err
	t.retryAt = time.Now().Add(backoff(t.failures, first, limit))
	t.failures++
	return nil, err
}

// backoff is the wait after the given number of earlier failures.
func backoff(failures int, first, limit time.Duration) time.Duration {
	wait := limit
	if failures < 10 {
		wait = min(first<<failures, limit)
	}
	return wait/2 + rand.N(wait/2) //nolint:gosec // spreads retries; nobody gains by guessing it
}

// refusal says whether err is the host's decision, or ours about its key.
func refusal(err error) bool {
	return errors.Is(err, transport.ErrLogin) || errors.Is(err, transport.ErrHostKey)
}

// overtime is the answer to a caller whose context ended, with the last failure
// where there was one.
func (t *Transport) overtime(ctx context.Context) error {
	t.mu.Lock()
	failure := t.failure
	t.mu.Unlock()
	if failure == nil {
		return fmt.Errorf("connect to %s: %w", t.options.Host, ctx.Err())
	}
	var te *transport.Error
	if errors.As(failure, &te) {
		again := *te
		again.Cause = errors.Join(ctx.Err(), te.Cause)
		return &again
	}
	return fmt.Errorf("%w (%w)", failure, ctx.Err())
}

func (t *Transport) closedError() error {
	return fmt.Errorf("connect to %s: %w", t.options.Host, net.ErrClosed)
}

// Close implements transport.Transport.
func (t *Transport) Close() error {
	t.once.Do(func() { close(t.closed) })
	// Whoever connects sees closed, so the turn comes.
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	t.mu.Lock()
	l := t.link
	t.link = nil
	t.mu.Unlock()
	if l != nil {
		l.close(net.ErrClosed)
	}
	return nil
}

// Jumps are the jump hosts of the present way, in order, and whether each took
// the server's own key. It connects when there is no connection.
func (t *Transport) Jumps(ctx context.Context) ([]*Jump, error) {
	return use(ctx, t, func(l *link, _ context.Context) ([]*Jump, error) {
		var jumps []*Jump
		for i, p := range l.parts[:len(l.parts)-1] {
			jumps = append(jumps, &Jump{Host: p.hop.String(), OwnKey: p.ownKey, transport: t, index: i})
		}
		return jumps, nil
	})
}

// Jump is a host on the way to a node.
type Jump struct {
	Host string
	// OwnKey says that it took the server's own key, so that later connections
	// need nothing that was lent.
	OwnKey bool

	transport *Transport
	index     int
}

// Quote writes words so that a POSIX shell, and csh or fish as a login shell,
// reads them as they are: for a command that sshd hands to a shell.
func Quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quoteWord(w)
	}
	return strings.Join(quoted, " ")
}

// plain are the characters that no shell treats specially anywhere in a word.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@,+"

func quoteWord(w string) string {
	if w != "" && strings.Trim(w, plain) == "" {
		return w
	}
	// Fish takes a backslash between single quotes for its own, and csh an
	// exclamation mark, so both stand outside of them.
	return "'" + strings.NewReplacer("'", `'\''`, `\`, `'\\'`, "!", `'\!'`).Replace(w) + "'"
}
