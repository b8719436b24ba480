package transporttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/transport"
)

// patience bounds every wait of the suite on a loaded machine.
const patience = 30 * time.Second

// Setup describes a transport to the suite.
type Setup struct {
	// New returns a transport to whatever listens on socket, closed by the suite.
	New func(t *testing.T, socket string) transport.Transport
	// Break cuts what lies below the open streams of a transport that New made,
	// and lets it be made anew; nil when nothing lies there.
	Break func(t *testing.T)
}

// Run runs the suite.
func Run(t *testing.T, s Setup) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Setup)
	}{
		{"echo", testEcho},
		{"concurrent streams", testConcurrent},
		{"back-pressure", testBackPressure},
		{"large data both ways", testLarge},
		{"end of the agent's bytes", testEnd},
		{"half-close", testHalfClose},
		{"close isolates", testIsolation},
		{"no socket", testNoSocket},
		{"nobody listens", testStaleSocket},
		{"cancelled dial", testCancelled},
		{"read deadline", testReadDeadline},
		{"write deadline", testWriteDeadline},
		{"close ends streams", testClose},
		{"agent restarts", testRestart},
		{"redial after a break", testBreak},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, s) })
	}
}

// socket returns a path short enough for a socket.
func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	check(t, "make a folder", err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

// open makes a transport to path that ends with the test.
func (s Setup) open(t *testing.T, path string) transport.Transport {
	t.Helper()
	tr := s.New(t, path)
	t.Cleanup(func() { check(t, "close", tr.Close()) })
	return tr
}

// dial opens a stream that ends with the test.
func dial(t *testing.T, tr transport.Transport) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := tr.Dial(ctx)
	check(t, "dial", err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// within runs f and fails the test when it does not return in time.
func within(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		check(t, what, err)
	case <-time.After(patience):
		t.Fatalf("%s: did not return within %v", what, patience)
	}
}

// exchange sends a line and expects it back.
func exchange(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	within(t, "exchange", func() error { return echoed(conn, line) })
}

func echoed(conn net.Conn, line string) error {
	got := make([]byte, len(line))
	_, err := io.WriteString(conn, line)
	if err == nil {
		_, err = io.ReadFull(conn, got)
	}
	return errors.Join(err, same(string(got), line))
}

// same says how got differs from want.
func same(got, want string) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("got %q, want %q", got, want)
}

// readsAll expects want and then the end.
func readsAll(conn net.Conn, want string) error {
	got, err := io.ReadAll(conn)
	return errors.Join(err, same(string(got), want))
}

// readFails expects that nothing can be read any more.
func readFails(conn net.Conn) error {
	_, err := conn.Read(make([]byte, 1))
	return fails("a read", err)
}

// fails expects an error.
func fails(what string, err error) error {
	if err == nil {
		return errors.New(what + " succeeded")
	}
	return nil
}

// check ends the test on an error.
func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
