package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// accept runs AcceptLink on its own goroutine and gives what it returned.
func accept(conn net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() { done <- AcceptLink(conn) }()
	return done
}

// socketPair is a link with buffers, as sockets and serial ports have them.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "link")
		if conns[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}

// checkStream says that what follows the opening arrives whole in both directions.
func checkStream(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		sent := []byte("first bytes after the opening")
		go func() { _, _ = pair[0].Write(sent) }()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(pair[1], got); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("after the opening got %q, %v", got, err)
		}
	}
}

func TestLinkOpens(t *testing.T) {
	agent, guest := net.Pipe()
	done := accept(guest)
	if err := OpenLink(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	checkStream(t, agent, guest)
}

func TestLinkSkipsStaleBytes(t *testing.T) {
	old := token{kindOpen, newNonce()}
	cases := map[string][]byte{
		"noise":                   bytes.Repeat([]byte{0x00, 0xfe, 0x81, 0xfe, 'x'}, 5000),
		"a magic cut short":       magic[:7],
		"a token cut short":       old.bytes()[:20],
		"a token of before":       old.bytes(),
		"a token and its confirm": append(append([]byte("h2"), token{kindConfirm, old.nonce}.bytes()...), old.bytes()...),
		"an echo":                 token{kindEcho, old.nonce}.bytes(),
	}
	for name, stale := range cases {
		t.Run(name, func(t *testing.T) {
			a, guest := socketPair(t)
			agentSide := &staleConn{Conn: a, stale: bytes.NewReader(stale)}
			guestSide := &staleConn{Conn: guest, stale: bytes.NewReader(stale)}
			done := accept(guestSide)
			if err := OpenLink(t.Context(), agentSide); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			checkStream(t, agentSide, guestSide)
		})
	}
}

// staleConn gives bytes of an earlier connection before those of this one.
type staleConn struct {
	net.Conn
	stale *bytes.Reader
}

func (c *staleConn) Read(p []byte) (int, error) {
	if c.stale.Len() > 0 {
		return c.stale.Read(p)
	}
	return c.Conn.Read(p)
}

// A request that the guest never saw is repeated with another nonce, and the
// late answer to the first is not taken for the answer to the second.
func TestLinkAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent, guest := net.Pipe()
		opened := make(chan error, 1)
		go func() { opened <- OpenLink(t.Context(), agent) }()
		lost := make([]byte, tokenSize)
		if _, err := io.ReadFull(guest, lost); err != nil {
			t.Fatal(err)
		}
		second := make([]byte, tokenSize)
		if _, err := io.ReadFull(guest, second); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(lost, second) {
			t.Fatal("the second request has the nonce of the first")
		}
		for _, answer := range [][]byte{lost, second} {
			answer[magicSize-1] = kindEcho
			if _, err := guest.Write(answer); err != nil {
				t.Fatal(err)
			}
		}
		confirm := make([]byte, tokenSize)
		if _, err := io.ReadFull(guest, confirm); err != nil {
			t.Fatal(err)
		}
		if confirm[magicSize-1] != kindConfirm || !bytes.Equal(confirm[magicSize:], second[magicSize:]) {
			t.Fatalf("confirmed %x after %x", confirm, second)
		}
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
		checkStream(t, agent, guest)
	})
}

func TestOpenLinkEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent, guest := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, guest) }()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := OpenLink(ctx, agent); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		if err := OpenLink(ctx, agent); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("with an ended context: got %v", err)
		}
		// The connection has no deadline left over.
		go func() { _, _ = guest.Write([]byte("x")) }()
		if _, err := agent.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = agent.Close()
		_ = guest.Close()
	})
}

func TestLinkClosed(t *testing.T) {
	agent, guest := net.Pipe()
	_ = guest.Close()
	if err := OpenLink(t.Context(), agent); err == nil {
		t.Error("open on a closed link succeeded")
	}
	if err := AcceptLink(guest); err == nil {
		t.Error("accept on a closed link succeeded")
	}
	agent, guest = net.Pipe()
	go func() {
		_, _ = agent.Write(token{kindOpen, newNonce()}.bytes())
		_ = agent.Close()
	}()
	if err := AcceptLink(guest); err == nil {
		t.Error("accept went on after the agent had gone")
	}
	agent, guest = net.Pipe()
	go func() {
		_, _ = io.ReadFull(guest, make([]byte, tokenSize))
		_ = guest.Close()
	}()
	if err := OpenLink(t.Context(), agent); err == nil {
		t.Error("open went on after the guest had gone")
	}
}

func TestAcceptLinkHonoursDeadline(t *testing.T) {
	_, guest := net.Pipe()
	if err := guest.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := AcceptLink(guest); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

// FuzzLink puts arbitrary bytes before the opening on both sides: it still
// opens, and not one byte of what follows is lost.
func FuzzLink(f *testing.F) {
	t1 := token{kindOpen, newNonce()}
	f.Add([]byte(nil), []byte(nil), uint64(1))
	f.Add(t1.bytes(), t1.bytes()[:17], uint64(2))
	f.Add(append(magic[:], kindEcho, 1, 2, 3), bytes.Repeat([]byte{0xfe}, 100), uint64(3))
	f.Fuzz(func(t *testing.T, toAgent, toGuest []byte, seed uint64) {
		a, g := socketPair(t)
		cut := rand.New(rand.NewPCG(seed, 0))
		agentSide := &staleConn{Conn: &slicedConn{a, cut.IntN(40) + 1}, stale: bytes.NewReader(toAgent)}
		guestSide := &staleConn{Conn: &slicedConn{g, cut.IntN(40) + 1}, stale: bytes.NewReader(toGuest)}
		done := accept(guestSide)
		if err := OpenLink(t.Context(), agentSide); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		checkStream(t, agentSide, guestSide)
	})
}

// slicedConn reads at most n bytes at once.
type slicedConn struct {
	net.Conn
	n int
}

func (c *slicedConn) Read(p []byte) (int, error) { return c.Conn.Read(p[:min(len(p), c.n)]) }
