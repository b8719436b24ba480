package transporttest

import (
	"bytes"
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
	if conn.LocalAddr() == nil || conn.RemoteAddr() == nil {
		t.Error("a stream needs addresses")
	}
	if n, err := conn.Read(nil); n != 0 || err != nil {
		t.Errorf("empty read = %d, %v", n, err)
	}
}

func testConcurrent(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := tr.Dial(ctx)
			if err != nil {
				t.Errorf("dial %d: %v", i, err)
				return
			}
			defer func() { _ = conn.Close() }()
			for j := range 20 {
				if err := echoed(conn, fmt.Sprintf("stream %d line %d\n", i, j)); err != nil {
					t.Errorf("stream %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
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
		if err != nil {
			_ = conn.Close()
		}
		wg.Wait()
		if err := errors.Join(failed, err); err != nil {
			return err
		}
		if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			return errors.New("what came back differs")
		}
		return nil
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
	within(t, "read to the end", func() error {
		got, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		if string(got) != "farewell" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
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
		if _, err := conn.Write(make([]byte, 1000)); err != nil {
			return err
		}
		if err := half.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		if string(got) != "1000 bytes" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}

func testIsolation(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	first, second := dial(t, tr), dial(t, tr)
	exchange(t, first, "one\n")
	exchange(t, second, "two\n")
	if err := first.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	_ = first.Close()
	exchange(t, second, "still here\n")
	if _, err := first.Write([]byte("x")); err == nil {
		t.Error("a write on a closed stream succeeded")
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("a read on a closed stream succeeded")
	}
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
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatalf("clear the deadline: %v", err)
	}
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
		if err := conn.SetDeadline(time.Unix(1, 0)); err != nil {
			return err
		}
		return <-done
	})
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
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
	within(t, "read after close", func() error {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			return errors.New("a stream outlived its transport")
		}
		return nil
	})
	if _, err := tr.Dial(t.Context()); err == nil {
		t.Error("a closed transport dialled")
	}
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
