package wire

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// A guest link opens with three tokens, each a magic of 16 bytes and a nonce of
// 16: the agent sends open, the guest answers echo with the same nonce, the
// agent sends confirm, and from the next byte on each side speaks HTTP/2.
//
// The link may be a serial port, which has no notion of a connection: either
// side can find bytes that were meant for an earlier one, whole tokens among
// them. All bytes of a magic have the high bit set and those of a nonce have it
// clear, so a token that was cut short is told from the next one at once, and
// no side ever reads beyond the last byte of the token it waits for.
const (
	magicSize = 16
	nonceSize = 16
	tokenSize = magicSize + nonceSize
)

// The last byte of the magic tells the kinds apart; a link that sends an agent
// its own bytes back is not taken for a guest.
const (
	kindOpen    byte = 0xf1
	kindEcho    byte = 0xf2
	kindConfirm byte = 0xf3
)

// magic is the common start of all tokens. Its first byte stands nowhere else in it.
var magic = [magicSize - 1]byte{0xfe, 0x81, 0x9b, 0xe3, 0x90, 0xc7, 0xd2, 0xa5, 0xf8, 0xb4, 0x8d, 0xec, 0xaf, 0xd9, 0xc2}

// resendAfter is how long an agent waits for the echo before it asks again, with
// a new nonce. A request is lost when the guest was not there yet, or when it
// was still answering stale requests of an earlier connection.
const resendAfter = time.Second

type token struct {
	kind  byte
	nonce [nonceSize]byte
}

func (t token) bytes() []byte {
	b := make([]byte, 0, tokenSize)
	b = append(b, magic[:]...)
	b = append(b, t.kind)
	return append(b, t.nonce[:]...)
}

// OpenLink opens a guest link from the node agent's side: it sends a reset token
// with a fresh nonce and returns when the guest has echoed the nonce. What the
// stream still held from before is thrown away by both sides.
//
// It returns ctx's error when ctx ends first; conn is then in the middle of an
// opening and good for nothing but another OpenLink. Deadlines set on conn are
// removed.
func OpenLink(ctx context.Context, conn net.Conn) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("open guest link: %w", err)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	err := openLink(ctx, conn)
	if !stop() {
		<-interrupted
	}
	_ = conn.SetDeadline(time.Time{})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("open guest link: %w", err)
}

func openLink(ctx context.Context, conn net.Conn) error {
	scan := &scanner{conn: conn}
	for {
		nonce := newNonce()
		if err := limitAttempt(ctx, conn); err != nil {
			return err
		}
		_, err := conn.Write(token{kindOpen, nonce}.bytes())
		if err == nil {
			err = awaitEcho(scan, nonce)
		}
		if err == nil {
			_, err = conn.Write(token{kindConfirm, nonce}.bytes())
			return err
		}
		if ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// limitAttempt gives one request, its confirmation and the wait between them
// resendAfter.
func limitAttempt(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(resendAfter)); err != nil {
		return err
	}
	// The interruption may have come just before that deadline replaced its own.
	return ctx.Err()
}

// awaitEcho waits for the echo of nonce.
func awaitEcho(scan *scanner, nonce [nonceSize]byte) error {
	for {
		t, err := scan.next()
		if err != nil {
			return err
		}
		if t.kind == kindEcho && t.nonce == nonce {
			return nil
		}
	}
}

// AcceptLink waits on the guest's side for a reset token, skipping stale bytes
// before it, echoes its nonce and returns when the agent has confirmed. What
// follows on conn is HTTP/2. It is ended by a deadline or a close of conn.
func AcceptLink(conn net.Conn) error {
	scan := &scanner{conn: conn}
	var echoed *token
	for {
		t, err := scan.next()
		if err != nil {
			return fmt.Errorf("accept guest link: %w", err)
		}
		switch {
		case t.kind == kindOpen:
			t.kind = kindEcho
			if _, err := conn.Write(t.bytes()); err != nil {
				return fmt.Errorf("accept guest link: %w", err)
			}
			echoed = &t
		case t.kind == kindConfirm && echoed != nil && t.nonce == echoed.nonce:
			return nil
		}
	}
}

// scanner finds tokens in a stream. It holds at most one token and never reads
// past the end of the one it is in.
type scanner struct {
	conn    net.Conn
	buf     [tokenSize]byte
	matched int
}

func (s *scanner) next() (token, error) {
	var read [tokenSize]byte
	for {
		n, err := s.conn.Read(read[:tokenSize-s.matched])
		for _, b := range read[:n] {
			s.feed(b)
		}
		if s.matched == tokenSize {
			s.matched = 0
			t := token{kind: s.buf[magicSize-1]}
			copy(t.nonce[:], s.buf[magicSize:])
			return t, nil
		}
		if err != nil {
			return token{}, err
		}
	}
}

// feed takes one byte. Since the first byte of the magic stands nowhere else in
// a token, a mismatch can only begin a token with that very byte.
func (s *scanner) feed(b byte) {
	var fits bool
	switch {
	case s.matched < len(magic):
		fits = b == magic[s.matched]
	case s.matched < magicSize:
		fits = b == kindOpen || b == kindEcho || b == kindConfirm
	default:
		fits = b < 0x80
	}
	if !fits {
		s.matched = 0
		if b != magic[0] {
			return
		}
	}
	s.buf[s.matched] = b
	s.matched++
}

func newNonce() (nonce [nonceSize]byte) {
	_, _ = rand.Read(nonce[:]) // never fails, by its contract
	for i := range nonce {
		nonce[i] &= 0x7f
	}
	return nonce
}
