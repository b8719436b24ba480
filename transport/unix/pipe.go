package unix

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/transport"
)

// Pipe connects to socket and joins it to in and out: the program that a
// transport runs on a node to cross an sshd that forbids forwarding. Once
// connected it writes transport.Ready, then the socket's bytes and nothing else.
// The end of in closes the socket's sending side. Pipe returns when the agent
// has ended the stream or ctx is done. A read of in that takes no deadline (a
// blocking stdin) is then left behind: the program is about to exit. Without an
// agent Pipe writes nothing and returns ErrNoAgent.
func Pipe(ctx context.Context, socket string, in io.Reader, out io.Writer) error {
	conn, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := io.WriteString(out, transport.Ready); err != nil {
		_ = conn.Close()
		return fmt.Errorf("announce the connection: %w", err)
	}
	var inward conc.WaitGroup
	inward.Go(func() { feed(conn, in) })
	_, err = io.Copy(out, conn)
	_ = conn.Close()
	if d, ok := in.(interface{ SetReadDeadline(time.Time) error }); ok && d.SetReadDeadline(time.Unix(1, 0)) == nil {
		inward.Wait()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("copy from %s: %w", socket, err)
	}
	return nil
}

func feed(conn *net.UnixConn, in io.Reader) {
	if _, err := io.Copy(conn, in); err != nil {
		_ = conn.Close()
		return
	}
	_ = conn.CloseWrite()
}
