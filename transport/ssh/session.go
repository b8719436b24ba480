package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"

	gossh "golang.org/x/crypto/ssh"
)

// maxOutput bounds what Run keeps of a command's output.
const maxOutput = 1 << 20

// ExitError says that a command on a host ended with a status other than 0.
type ExitError struct {
	Host string
	// Status is the exit status, 128+n for one ended by signal n, -1 unknown.
	Status int
	// Stderr is the end of what it wrote there.
	Stderr string
}

func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("command on %s exited with %d", e.Host, e.Status)
	}
	return fmt.Sprintf("command on %s exited with %d: %s", e.Host, e.Status, e.Stderr)
}

// Run runs cmd by the login user's shell on the node, feeds it stdin (nil for
// none) and returns its stdout, of which at most 1 MiB is taken. A status other
// than 0 is an *ExitError. When ctx ends the session is closed, which most
// commands do not survive, but some may; stdin may then be read for a moment
// longer. A command is never run twice.
func (t *Transport) Run(ctx context.Context, cmd string, stdin io.Reader) ([]byte, error) {
	l, err := t.live(ctx)
	if err != nil {
		return nil, err
	}
	return l.run(ctx, l.node(), cmd, stdin)
}

// Run runs cmd on the jump host, as Transport.Run does on the node.
func (j *Jump) Run(ctx context.Context, cmd string, stdin io.Reader) ([]byte, error) {
	l, err := j.transport.live(ctx)
	if err != nil {
		return nil, err
	}
	if j.index >= len(l.parts)-1 {
		return nil, fmt.Errorf("run on %s: the way to the node has changed", j.Host)
	}
	return l.run(ctx, l.parts[j.index], cmd, stdin)
}

func (l *link) run(ctx context.Context, p *part, cmd string, stdin io.Reader) ([]byte, error) {
	session, err := await(ctx, l, p.client.NewSession, func(s *gossh.Session) { _ = s.Close() })
	if err != nil {
		return nil, fmt.Errorf("open a session on %s: %w", p.hop, err)
	}
	out := &head{limit: maxOutput}
	complaint := &tail{limit: 4 << 10}
	session.Stdout, session.Stderr, session.Stdin = out, complaint, stdin
	_, err = await(ctx, l, func() (struct{}, error) {
		defer func() { _ = session.Close() }()
		return struct{}{}, session.Run(cmd)
	}, func(struct{}) {})
	if ctx.Err() != nil {
		_ = session.Close()
		return nil, fmt.Errorf("run a command on %s: %w", p.hop, ctx.Err())
	}
	var exit *gossh.ExitError
	switch {
	case err == nil && out.over:
		return nil, fmt.Errorf("run a command on %s: more than %d bytes of output", p.hop, maxOutput)
	case err == nil:
		return out.data, nil
	case errors.As(err, &exit):
		return out.data, &ExitError{Host: p.hop.String(), Status: exit.ExitStatus(), Stderr: complaint.line()}
	}
	return nil, fmt.Errorf("run a command on %s: %w", p.hop, err)
}

// head keeps the beginning of what is written to it.
type head struct {
	limit int
	data  []byte
	over  bool
}

func (h *head) Write(p []byte) (int, error) {
	take := min(len(p), h.limit-len(h.data))
	h.data = append(h.data, p[:take]...)
	h.over = h.over || take < len(p)
	return len(p), nil
}
