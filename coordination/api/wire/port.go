package wire

import (
	"bytes"
	"context"
	"io"
	"net"
)

// Port makes links of a serial port, on the guest's side. A port stays what it is
// when the agent at its far end goes and another comes, perhaps before anybody
// noticed: then the next link's reset token comes in the middle of what the last
// one carried. A link that Dial returned ends there, and the next one begins with
// that token.
type Port struct {
	// Open opens the port; it is closed before it is opened again.
	Open func(context.Context) (net.Conn, error)

	ahead []byte
}

// Dial returns the stream of the next link; it is for AcceptLink, and for one
// caller at a time.
func (p *Port) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := p.Open(ctx)
	if err != nil {
		return nil, err
	}
	ahead := p.ahead
	p.ahead = nil
	return &portConn{Conn: conn, port: p, ahead: ahead}, nil
}

// portConn is one link's stream. Reads are its one reader's.
type portConn struct {
	net.Conn
	port  *Port
	ahead []byte
	scan  scanner
	// serving since the agent's confirmation; reset since the next opening.
	serving, reset bool
}

// suspicious is how much of a token's magic is taken for the beginning of one. So
// much is held back until the rest is there: the reader would take it for a
// frame, and stop reading.
const suspicious = 8

func (c *portConn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	if c.reset {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b)
	over := c.watch(b[:n])
	for !over && err == nil && c.serving && c.scan.matched >= suspicious {
		more := make([]byte, tokenSize-c.scan.matched)
		var m int
		m, err = c.Conn.Read(more)
		over = c.watch(more[:m])
		c.ahead = append(c.ahead, more[:m]...)
	}
	if over {
		c.ahead = nil
		return 0, io.EOF
	}
	if n > 0 {
		return n, nil // an error comes again
	}
	return n, err
}

// watch looks for tokens and says whether this link is over.
func (c *portConn) watch(b []byte) bool {
	for len(b) > 0 {
		if c.scan.matched == 0 {
			at := bytes.IndexByte(b, magic[0])
			if at < 0 {
				return false
			}
			b = b[at:]
		}
		c.scan.feed(b[0])
		b = b[1:]
		if c.scan.matched < tokenSize {
			continue
		}
		c.scan.matched = 0
		switch c.scan.buf[magicSize-1] {
		case kindConfirm:
			c.serving = true
		case kindOpen:
			if c.serving {
				c.reset = true
				c.port.ahead = append(bytes.Clone(c.scan.buf[:]), b...)
				return true
			}
		}
	}
	return false
}
