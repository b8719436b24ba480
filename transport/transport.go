package transport

import (
	"context"
	"net"
)

// Transport makes streams to one node agent.
//
// A Transport keeps whatever lies below its streams (for SSH one connection,
// with keepalive) and makes it anew when it was lost: a caller that sees a
// stream fail calls Dial again, and nothing else. All methods may be called at
// the same time.
type Transport interface {
	// Dial returns a new stream to the node agent. It returns within ctx; an
	// error says whether the host could not be reached, refused the login, has
	// another host key, or has no agent listening (ErrNoAgent). Each stream is
	// independent: closing one leaves the others open. Deadlines set on the
	// stream are honoured or answered with an error, never ignored.
	Dial(ctx context.Context) (net.Conn, error)

	// Close ends the connection and with it every stream.
	Close() error
}
