package wire

import (
	"context"
	"net"
)

// OpenLink opens a guest link from the node agent's side: it sends a reset token
// with a fresh nonce and returns when the guest has echoed the nonce. What the
// stream still held from before is thrown away by both sides.
func OpenLink(ctx context.Context, conn net.Conn) error {
	panic("to be written")
}

// AcceptLink waits on the guest's side for a reset token, skipping stale bytes
// before it, echoes its nonce and returns. What follows on conn is HTTP/2.
func AcceptLink(conn net.Conn) error {
	panic("to be written")
}
