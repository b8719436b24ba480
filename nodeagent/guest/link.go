//go:build linux

package guest

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// Waits between attempts to reach the node agent.
const (
	redialFirst = 10 * time.Millisecond
	redialMost  = time.Second
)

// ServeLink serves handler on the guest link until ctx is done. It dials, waits
// for the node agent to open the link, serves, and dials again when the link
// was lost: an agent that was restarted makes a new socket at the same path.
func ServeLink(ctx context.Context, dial func(context.Context) (net.Conn, error), handler http.Handler, log *slog.Logger) {
	wait := redialFirst
	for ctx.Err() == nil {
		if err := serveOnce(ctx, dial, handler); err != nil {
			log.Debug("serve the guest link", "error", err)
			pause(ctx, wait/2+rand.N(wait)) //nolint:gosec // jitter needs no secret
			wait = min(2*wait, redialMost)
			continue
		}
		wait = redialFirst
		pause(ctx, rand.N(redialFirst)) //nolint:gosec // jitter needs no secret
	}
}

// serveOnce returns nil when a link was opened, however it ended.
func serveOnce(ctx context.Context, dial func(context.Context) (net.Conn, error), handler http.Handler) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := wire.AcceptLink(conn); err != nil {
		return err
	}
	wire.Serve(ctx, conn, handler)
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// DialUnix dials the socket at path.
func DialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}
