package transporttest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/transport"
)

func testEcho(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	conn := dial(t, s.open(t, path))
	for _, line := range []string{"hello\n", "\x00\xff binary", "again\n"} {
		exchange(t, conn, line)
	}
	for _, a := range []net.Addr{conn.LocalAddr(), conn.RemoteAddr()} {
		check(t, "network of an address", same(a.Network(), "unix"))
		_ = a.String()
	}
	_, err := conn.Read(nil)
	check(t, "empty read", err)
}

func testConcurrent(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	var wg sync.WaitGroup
	var errs [16]error
	for i := range errs {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := tr.Dial(ctx)
			if err == nil {
				for j := range 20 {
					err = errors.Join(err, echoed(conn, fmt.Sprintf("stream %d line %d\n", i, j)))
				}
				_ = conn.Close()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	check(t, "streams", errors.Join(errs[:]...))
}

// large is more than any window or socket buffer in the way.
const large = 12 << 20

func testLarge(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	conn := dial(t, s.open(t, path))
	within(t, "large data", func() error {
		sent, got := sha256.New(), sha256.New()
		var failed error
		var wg sync.WaitGroup
		wg.Go(func() {
			source := rand.NewChaCha8([32]byte{1})
			_, failed = io.CopyN(io.MultiWriter(conn, sent), source, large)
		})
		_, err := io.CopyN(got, conn, large)
		wg.Wait()
		return errors.Join(failed, err, same(string(got.Sum(nil)), string(sent.Sum(nil))))
	})
}

// A reader that does not read stalls the writer instead of filling memory.
func testBackPressure(t *testing.T, s Setup) {
	path := socket(t)
	var written atomic.Int64
	listen(t, path, func(conn *net.UnixConn) {
		chunk := make([]byte, 64<<10)
		for {
			n, err := conn.Write(chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	conn := dial(t, s.open(t, path))
	first := make([]byte, 1)
	within(t, "first byte", func() error { _, err := conn.Read(first); return err })
	stalled := settle(t, &written)
	if stalled > 16<<20 {
		t.Errorf("%d bytes were taken from the agent with nobody reading", stalled)
	}
	within(t, "read on", func() error { _, err := io.CopyN(io.Discard, conn, stalled+4<<20); return err })
}

// settle waits until n has stopped growing and returns it.
func settle(t *testing.T, n *atomic.Int64) int64 {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	last, same := int64(-1), 0
	for same < 4 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the writer never stalled")
		}
		if now := n.Load(); now == last {
			same++
		} else {
			last, same = now, 0
		}
	}
	return last
}

func testEnd(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, func(conn *net.UnixConn) { _, _ = io.WriteString(conn, "farewell") })
	conn := dial(t, s.open(t, path))
	within(t, "read to the end", func() error { return readsAll(conn, "farewell") })
}

// A transport that offers CloseWrite keeps the other direction open after it.
func testHalfClose(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, func(conn *net.UnixConn) {
		got, _ := io.ReadAll(conn)
		_, _ = fmt.Fprintf(conn, "%d bytes", len(got))
	})
	conn := dial(t, s.open(t, path))
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return
	}
	within(t, "half-close", func() error {
		_, err := conn.Write(make([]byte, 1000))
		return errors.Join(err, half.CloseWrite(), readsAll(conn, "1000 bytes"))
	})
}

func testIsolation(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	first, second := dial(t, tr), dial(t, tr)
	exchange(t, first, "one\n")
	exchange(t, second, "two\n")
	check(t, "close", first.Close())
	_ = first.Close()
	exchange(t, second, "still here\n")
	_, err := first.Write([]byte("x"))
	check(t, "closed stream", errors.Join(
		fails("a write", err), readFails(first),
		fails("a deadline", first.SetReadDeadline(time.Now())), fails("a deadline", first.SetWriteDeadline(time.Now())),
	))
	exchange(t, dial(t, tr), "and a new one\n")
}

// A deadline is honoured or answered with an error, never ignored.
func testReadDeadline(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	conn := dial(t, s.open(t, path))
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
		return
	}
	within(t, "read with a deadline", func() error { return wantTimeout(conn.Read(make([]byte, 1))) })
	within(t, "read after a deadline", func() error { return wantTimeout(conn.Read(make([]byte, 1))) })
	check(t, "clear the deadline", conn.SetReadDeadline(time.Time{}))
	exchange(t, conn, "after the deadline\n")

	// A deadline that is set during a read ends it.
	reading := make(chan struct{})
	within(t, "interrupt a read", func() error {
		done := make(chan error, 1)
		go func() {
			close(reading)
			done <- wantTimeout(conn.Read(make([]byte, 1)))
		}()
		<-reading
		return errors.Join(conn.SetDeadline(time.Unix(1, 0)), <-done)
	})
	check(t, "clear the deadlines", conn.SetDeadline(time.Time{}))
	exchange(t, conn, "and after the interruption\n")
}

func testWriteDeadline(t *testing.T, s Setup) {
	path := socket(t)
	blocked := make(chan struct{})
	listen(t, path, func(*net.UnixConn) { <-blocked })
	defer close(blocked)
	conn := dial(t, s.open(t, path))
	if err := conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return
	}
	within(t, "write with a deadline", func() error {
		chunk := make([]byte, 256<<10)
		for {
			if n, err := conn.Write(chunk); err != nil {
				return wantTimeout(n, err)
			}
		}
	})
}

func wantTimeout(n int, err error) error {
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		return fmt.Errorf("want a timeout, got %d bytes and error: %w", n, orNone(err))
	}
	return nil
}

// orNone makes an absent error fit for wrapping.
func orNone(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

func testClose(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	conn := dial(t, tr)
	exchange(t, conn, "before\n")
	within(t, "close", tr.Close)
	within(t, "read after close", func() error { return readFails(conn) })
	_, err := tr.Dial(t.Context())
	check(t, "closed transport", fails("a dial", err))
}

func testNoSocket(t *testing.T, s Setup) {
	wantNoAgent(t, s.open(t, socket(t)))
}

func testStaleSocket(t *testing.T, s Setup) {
	path := socket(t)
	a := listen(t, path, echo)
	a.listener.SetUnlinkOnClose(false)
	a.stop()
	wantNoAgent(t, s.open(t, path))
}

func wantNoAgent(t *testing.T, tr transport.Transport) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := tr.Dial(ctx)
	var te *transport.Error
	if !errors.Is(err, transport.ErrNoAgent) || !errors.As(err, &te) || te.Message == "" || te.Next == "" {
		t.Errorf("got %v (%#v), want ErrNoAgent with a message and a next step", err, err)
	}
}
