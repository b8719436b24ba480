package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/transport"
)

// Connect joins stdin and stdout to the agent's socket, for a host whose sshd
// forbids forwarding to it. It returns when the agent has ended the stream, as
// it does soon after stdin has ended, or when ctx has.
func Connect(ctx context.Context, socket string, stdin io.Reader, stdout io.Writer) error {
	conn, err := dialer(socket)(ctx)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return &api.Error{
			Code:    api.Unavailable,
			Message: fmt.Sprintf("connect to the node agent: nothing listens on %s", socket),
			Next:    "vendetta nodeagent start",
			Cause:   err,
		}
	case err != nil:
		return fmt.Errorf("connect to the node agent: %w", err)
	}
	defer func() { _ = conn.Close() }()
	// What a login shell printed before this line is not part of the stream.
	if _, err := io.WriteString(stdout, transport.Ready); err != nil {
		return fmt.Errorf("connect to the node agent: %w", err)
	}
	end := func() { _ = conn.Close() }
	defer context.AfterFunc(ctx, end)()
	// Nothing ends a pending read of a process's standard input, so this is the
	// one goroutine that is not waited for: the process ends with Connect.
	go func() {
		_, _ = io.Copy(conn, stdin)
		// The server may close its side and still wait for the last answers.
		if half, ok := conn.(*net.UnixConn); ok {
			_ = half.CloseWrite()
		}
	}()
	if _, err = io.Copy(stdout, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("connect to the node agent: %w", err)
	}
	return ctx.Err()
}
