package unix

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/transport"
)

// serve listens on a socket until the test ends.
func serve(t *testing.T, handle func(*net.UnixConn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var wg conc.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return path
}

func TestPipe(t *testing.T) {
	t.Parallel()
	path := serve(t, func(c *net.UnixConn) {
		got, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.ToUpper(got))
	})
	var out bytes.Buffer
	if err := Pipe(t.Context(), path, strings.NewReader("hello"), &out); err != nil || out.String() != transport.Ready+"HELLO" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// The agent ends first, with the reader of stdin still waiting: whether that can
// be woken or not, Pipe returns.
func TestPipeEnd(t *testing.T) {
	t.Parallel()
	path := serve(t, func(c *net.UnixConn) { _, _ = io.WriteString(c, "bye") })
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	blocked, w := io.Pipe()
	defer func() { _ = w.Close() }()
	for _, in := range []io.Reader{near, blocked} {
		var out bytes.Buffer
		if err := Pipe(t.Context(), path, in, &out); err != nil || out.String() != transport.Ready+"bye" {
			t.Errorf("got %q, %v", out.String(), err)
		}
	}
}

func TestPipeCancelled(t *testing.T) {
	t.Parallel()
	path := serve(t, func(c *net.UnixConn) { _, _ = io.Copy(io.Discard, c) })
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Pipe(ctx, path, near, w) }()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != transport.Ready {
		t.Fatalf("got %q, %v", line, err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// broken fails at once, or after the first write.
type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after--; b.after < 0 {
		return 0, errors.New("broken")
	}
	return len(p), nil
}

func (b *broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestPipeErrors(t *testing.T) {
	t.Parallel()
	path := serve(t, func(c *net.UnixConn) { _, _ = io.WriteString(c, "data"); _, _ = io.Copy(io.Discard, c) })
	for after := range 2 {
		if err := Pipe(t.Context(), path, strings.NewReader(""), &broken{after: after}); err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("after %d writes: %v", after, err)
		}
	}
	if err := Pipe(t.Context(), path, &broken{}, io.Discard); err == nil {
		t.Error("a broken stdin went unnoticed")
	}
	if err := Pipe(t.Context(), filepath.Join(t.TempDir(), "absent"), nil, nil); !errors.Is(err, transport.ErrNoAgent) {
		t.Errorf("no agent: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	for path, kind := range map[string]error{
		"/" + strings.Repeat("x", 200): transport.ErrNoAgent,
		"/etc/passwd/socket":           transport.ErrUnreachable,
	} {
		if _, err := New(path).Dial(t.Context()); !errors.Is(err, kind) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := reason(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	path := serve(t, func(*net.UnixConn) {})
	tr := New(path)
	_ = tr.Close()
	if _, err := tr.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
