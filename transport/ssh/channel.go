package ssh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	"github.com/vendetta-dev/vendetta/transport"
)

// await runs open as part of the link and returns with ctx at the latest; what
// comes after that is thrown away.
func await[T any](ctx context.Context, l *link, open func() (T, error), discard func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	results := make(chan result)
	abandoned := make(chan struct{})
	ok := l.spawn(func() {
		value, err := open()
		select {
		case results <- result{value, err}:
		case <-abandoned:
			if err == nil {
				discard(value)
			}
		}
	})
	if !ok {
		return none, errLost
	}
	select {
	case r := <-results:
		return r.value, r.err
	case <-l.done:
		close(abandoned)
		return none, errLost
	case <-ctx.Done():
		close(abandoned)
		return none, ctx.Err()
	}
}

// errLost says that the link ended during an operation.
var errLost = errors.New("connection lost")

// session opens a session on the node.
func (l *link) session(ctx context.Context) (*gossh.Session, error) {
	return await(ctx, l, l.node().client.NewSession, func(s *gossh.Session) { _ = s.Close() })
}

// directStreamLocal is the payload of a channel of that name, as OpenSSH's
// PROTOCOL, section 2.4, has it.
type directStreamLocal struct {
	SocketPath string
	Reserved0  string
	Reserved1  uint32
}

// stream opens a stream to the agent's socket.
func (l *link) stream(ctx context.Context) (net.Conn, error) {
	if l.stdio.Load() {
		return l.overStdio(ctx)
	}
	direct, err := l.overSocket(ctx)
	var refused *gossh.OpenChannelError
	if !errors.As(err, &refused) {
		return direct, err
	}
	// OpenSSH gives one answer to a socket where nobody listens and to a
	// forwarding that it forbids. The way over stdio tells them apart.
	if l.options.Program == "" {
		return nil, l.noAgent(fmt.Sprintf("no node agent answers on %s", l.options.Socket), err)
	}
	conn, err := l.overStdio(ctx)
	if err != nil {
		return nil, err
	}
	// The agent may have come up in between; then the direct way is the better.
	if direct, err := l.overSocket(ctx); err == nil {
		_ = conn.Close()
		return direct, nil
	}
	l.options.Logger.Info("sshd forbids streams to sockets; using the agent's stdio", "host", l.node().hop.String())
	l.stdio.Store(true)
	return conn, nil
}

func (l *link) noAgent(message string, cause error) error {
	return &transport.Error{
		Kind:    transport.ErrNoAgent,
		Message: fmt.Sprintf("connect to the agent of %s: %s", l.node().hop, message),
		Next:    "start it: vendetta node add installs and starts it again, vendetta node logs shows why it ended",
		Cause:   cause,
	}
}

// overSocket opens a stream by direct-streamlocal.
func (l *link) overSocket(ctx context.Context) (net.Conn, error) {
	payload := gossh.Marshal(directStreamLocal{SocketPath: l.options.Socket})
	ch, err := await(ctx, l, func() (gossh.Channel, error) {
		ch, requests, err := l.node().client.OpenChannel("direct-streamlocal@openssh.com", payload)
		if err != nil {
			return nil, err
		}
		// These end with the channel.
		l.spawn(func() { gossh.DiscardRequests(requests) })
		return ch, nil
	}, func(ch gossh.Channel) { _ = ch.Close() })
	if err != nil {
		return nil, err
	}
	return newStream(l, ch, ch, nil), nil
}

// readyLimit bounds what a login shell may print before the stream begins.
const readyLimit = 64 << 10

// overStdio opens a stream over a session that runs the agent's program.
func (l *link) overStdio(ctx context.Context) (net.Conn, error) {
	session, err := l.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent of %s: %w", l.node().hop, err)
	}
	complaint := &tail{limit: 4 << 10}
	session.Stderr = complaint
	in, err := session.StdinPipe()
	if err != nil {
		return nil, err // only when called twice
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return nil, err // only when called twice
	}
	reader := bufio.NewReaderSize(out, 32<<10)
	command := "exec " + Quote(l.options.Program, "nodeagent", "connect", "--socket", l.options.Socket)
	ended := make(chan error, 1)
	_, err = await(ctx, l, func() (struct{}, error) {
		if err := session.Start(command); err != nil {
			_ = session.Close()
			return struct{}{}, err
		}
		err := skipGreeting(reader)
		if err != nil {
			_ = session.Close()
			// Its exit says more than the end of its output.
			err = errors.Join(session.Wait(), err)
		}
		return struct{}{}, err
	}, func(struct{}) { _ = session.Close() })
	switch {
	case err == nil:
	case errors.Is(err, errLost), ctx.Err() != nil:
		_ = session.Close()
		return nil, fmt.Errorf("connect to the agent of %s: %w", l.node().hop, err)
	default:
		return nil, l.noAgent(l.stdioReason(complaint, err), err)
	}
	if !l.spawn(func() { ended <- session.Wait() }) {
		_ = session.Close()
		return nil, fmt.Errorf("connect to the agent of %s: %w", l.node().hop, errLost)
	}
	return newStream(l, &sessionChannel{Session: session, in: in}, reader, ended), nil
}

// stdioReason puts into words why the program gave no stream.
func (l *link) stdioReason(complaint *tail, err error) string {
	var exit *gossh.ExitError
	if errors.As(err, &exit) && exit.ExitStatus() == 127 {
		return fmt.Sprintf("%s is not there", l.options.Program)
	}
	message := fmt.Sprintf("no node agent answers on %s", l.options.Socket)
	if text := complaint.line(); text != "" {
		message += ": " + text
	}
	return message
}

// skipGreeting reads up to and with the line that opens the stream.
func skipGreeting(r *bufio.Reader) error {
	for read := 0; read < readyLimit; {
		line, err := r.ReadSlice('\n')
		read += len(line)
		// A greeting without an end of line may stand before it.
		if err == nil && strings.HasSuffix(string(line), transport.Ready) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	return errors.New("the stream never began")
}

// sessionChannel is a session's stdin as the writing side of a stream.
type sessionChannel struct {
	*gossh.Session
	in io.WriteCloser
}

func (s *sessionChannel) Write(p []byte) (int, error) { return s.in.Write(p) }
func (s *sessionChannel) CloseWrite() error           { return s.in.Close() }

// tail keeps the end of what a program complained about.
type tail struct {
	limit int
	data  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if over := len(t.data) - t.limit; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

// line is the last line that is not empty.
func (t *tail) line() string {
	lines := strings.FieldsFunc(string(t.data), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := len(lines) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(lines[i]); line != "" {
			return printable(line)
		}
	}
	return ""
}

// printable keeps a host's words from steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
