package ssh_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
)

// quick is a keepalive that finds a dead link soon, on a loaded machine too.
var quick = ssh.Keepalive{Interval: 200 * time.Millisecond, Limit: 3 * time.Second}

// wall is a dialer whose connections can be frozen: bytes stop in both
// directions and neither end is told, as when a link is cut.
type wall struct {
	frozen atomic.Bool
	dials  atomic.Int64
}

func newWall() *wall { return &wall{} }

func (w *wall) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.dials.Add(1)
	// A lost SYN is sent again.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for w.frozen.Load() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &walled{Conn: c, wall: w, closed: make(chan struct{})}, nil
}

type walled struct {
	net.Conn
	wall   *wall
	once   sync.Once
	closed chan struct{}
}

// stop blocks for ever on a frozen connection, until it is closed.
func (c *walled) stop() error {
	if !c.wall.frozen.Load() {
		return nil
	}
	<-c.closed
	return net.ErrClosed
}

func (c *walled) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if stop := c.stop(); stop != nil {
		return 0, stop
	}
	return n, err
}

func (c *walled) Write(p []byte) (int, error) {
	if stop := c.stop(); stop != nil {
		return 0, stop
	}
	return c.Conn.Write(p)
}

func (c *walled) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// echoAgent serves an echo on a socket.
func echoAgent(t *testing.T) string {
	t.Helper()
	return serveUnix(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

func mustEcho(t *testing.T, c net.Conn) {
	t.Helper()
	got := make([]byte, 5)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("echo = %q, %v", got, err)
	}
}

func mustDial(t *testing.T, tr transport.Transport) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := tr.Dial(ctx)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, cause(err))
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A link that falls silent is closed, its streams fail, and a new one is made
// as soon as that is possible.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	w := newWall()
	o := n.options()
	o.Socket, o.Keepalive, o.Dial = echoAgent(t), quick, w.dial
	tr := connect(t, o)
	c := mustDial(t, tr)
	mustEcho(t, c)

	// An idle link stays.
	idle := time.NewTimer(quick.Limit + quick.Limit/4)
	<-idle.C
	mustEcho(t, c)
	if w.dials.Load() != 1 {
		t.Fatalf("%d connections were made", w.dials.Load())
	}

	w.frozen.Store(true)
	start := time.Now()
	written := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				written <- err
				return
			}
		}
	}()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read on a dead link: %v, want an error that is not the agent's end", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("the dead link was noticed after %v", took)
	}
	if err := <-written; err == nil {
		t.Error("a write on a dead link succeeded")
	}

	// While it lasts, a dial ends with its context and says what is wrong.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := tr.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial over a cut link: %v", err)
	}
	repaired := make(chan time.Time, 1)
	go func() {
		time.AfterFunc(time.Second, func() {
			w.frozen.Store(false)
			repaired <- time.Now()
		})
	}()
	mustEcho(t, mustDial(t, tr))
	if took := time.Since(<-repaired); took > 5*time.Second {
		t.Errorf("the repaired link was used after %v", took)
	}
}

// A dial that hangs on a link nobody knows to be dead yet comes through.
func TestDialOverDyingLink(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	w := newWall()
	o := n.options()
	o.Socket, o.Keepalive, o.Dial = echoAgent(t), quick, w.dial
	tr := connect(t, o)
	mustEcho(t, mustDial(t, tr))
	w.frozen.Store(true)
	// A caller may give up on it, and closes what comes late.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tr.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial = %v", err)
	}
	if _, err := tr.Run(ctx, "true", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run = %v", err)
	}
	time.AfterFunc(300*time.Millisecond, func() { w.frozen.Store(false) })
	mustEcho(t, mustDial(t, tr))
}

func TestCloseWhileConnecting(t *testing.T) {
	t.Parallel()
	w := newWall()
	w.frozen.Store(true)
	tr, err := ssh.New(ssh.Options{Host: "192.0.2.1", User: "x", Socket: "/s", Dial: w.dial})
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := tr.Dial(t.Context())
			results <- err
		}()
	}
	eventually(t, "a connection is attempted", func() bool { return w.dials.Load() > 0 })
	_ = tr.Close()
	for range 3 {
		if err := <-results; !errors.Is(err, net.ErrClosed) {
			t.Errorf("dial on a closed transport: %v", err)
		}
	}
	_ = tr.Close()
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "not ssh\r\n\r\n")
			_ = c.Close()
		}
	})
	port := l.Addr().(*net.TCPAddr).Port
	frozen := newWall()
	frozen.frozen.Store(true)
	for _, c := range []struct {
		name  string
		o     ssh.Options
		words []string
	}{
		{"refused", ssh.Options{Host: "127.0.0.1", Port: 1}, []string{"127.0.0.1:1", "connection refused", "sshd runs"}},
		{"no such name", ssh.Options{Host: "host.invalid"}, []string{"x@host.invalid:"}},
		{"not ssh", ssh.Options{Host: "127.0.0.1", Port: port}, []string{"handshake ended early"}},
		{"no answer", ssh.Options{Host: "192.0.2.1", Dial: frozen.dial}, []string{"no answer within 4s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.o.User, c.o.Socket = "x", "/agent.sock"
			tr := connect(t, c.o)
			_, err := tr.Dial(t.Context())
			wantError(t, err, transport.ErrUnreachable, c.words...)
			// With no time left, the last failure is the answer.
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			<-ctx.Done()
			_, err = tr.Dial(ctx)
			wantError(t, err, transport.ErrUnreachable, c.words...)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v is not the context's", err)
			}
		})
	}
	t.Run("config", func(t *testing.T) {
		t.Parallel()
		tr := connect(t, ssh.Options{Host: "x", User: "x", Socket: "/s", ConfigFiles: []string{t.TempDir()}})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		for range 2 {
			if _, err := tr.Dial(ctx); err == nil || !strings.Contains(err.Error(), "is not a file") {
				t.Errorf("got %v", err)
			}
			<-ctx.Done()
		}
	})
	t.Run("no socket", func(t *testing.T) {
		t.Parallel()
		if _, err := connect(t, ssh.Options{Host: "x"}).Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "socket is not known") {
			t.Errorf("got %v", err)
		}
	})
}

// A refusal is not tried again at once: that looks like an attack.
func TestRefusalIsKept(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	w := newWall()
	o := n.options()
	o.HostKeys, o.Dial = nil, w.dial
	tr := connect(t, o)
	for range 5 {
		_, err := tr.Run(t.Context(), "true", nil)
		wantError(t, err, transport.ErrHostKey, "not known")
	}
	if w.dials.Load() != 1 {
		t.Errorf("%d connections were made", w.dials.Load())
	}
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	w := newWall()
	o := n.options()
	// The connection freezes once it is made.
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := w.dial(ctx, network, address)
		w.frozen.Store(true)
		return c, err
	}
	tr := connect(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := tr.Run(ctx, "true", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run = %v", err)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	tr := connect(t, n.options())
	out, err := tr.Run(t.Context(), "cat; echo done >&2", strings.NewReader("input"))
	if err != nil || string(out) != "input" {
		t.Errorf("run = %q, %v", out, err)
	}
	out, err = tr.Run(t.Context(), "echo out; echo one >&2; printf 'two\\033[1m\\n\\n' >&2; exit 7", nil)
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.Status != 7 || exit.Stderr != "two?[1m" || string(out) != "out\n" || !strings.Contains(err.Error(), "exited with 7: two") {
		t.Errorf("run = %q, %v", out, err)
	}
	if _, err = tr.Run(t.Context(), "kill -9 $$", nil); !errors.As(err, &exit) || exit.Status != 137 || !strings.Contains(err.Error(), "exited with 137") {
		t.Errorf("run = %v", err)
	}
	if _, err = tr.Run(t.Context(), "head -c 2000000 /dev/zero", nil); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("run = %v", err)
	}
	if _, err := tr.Run(t.Context(), "head -c 100000 /dev/zero >&2; exit 1", nil); !errors.As(err, &exit) || len(exit.Stderr) > 5000 {
		t.Errorf("run = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := tr.Run(ctx, "sleep 100", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("run = %v", err)
	}
	// The connection is lost under a command: it is not run again.
	marks := filepath.Join(t.TempDir(), "marks")
	started := make(chan error, 1)
	go func() {
		_, err := tr.Run(t.Context(), "echo x >>"+ssh.Quote(marks)+"; exec sleep 100", nil)
		started <- err
	}()
	eventually(t, "the command runs", func() bool { mark, _ := os.ReadFile(marks); return string(mark) == "x\n" })
	n.Disconnect()
	if err := <-started; err == nil || errors.As(err, &exit) && exit.Status == 0 {
		t.Errorf("run over a lost connection = %v", err)
	}
	if got := read(t, marks); got != "x\n" {
		t.Errorf("the command ran %d times", strings.Count(got, "x"))
	}
	if out, err := tr.Run(t.Context(), "echo again", nil); err != nil || string(out) != "again\n" {
		t.Errorf("run = %q, %v", out, err)
	}
	_ = tr.Close()
	if _, err := tr.Run(t.Context(), "true", nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("run = %v", err)
	}
}

// Whatever shell a user has, a quoted word arrives as it is.
func TestQuote(t *testing.T) {
	t.Parallel()
	words := []string{"", "plain", "two words", "it's", `back\slash`, `a'\''b`, "$HOME `x` !x", "*", "~", "-n", "#", "=x", "é\x01\xff", "a\nb", `"`, ";&|<>(){}[]?"}
	for _, shell := range []string{"sh", "bash", "dash", "busybox"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		argv := []string{path}
		if shell == "busybox" {
			argv = append(argv, "sh")
		}
		out, err := exec.CommandContext(t.Context(), argv[0], append(argv[1:], "-c", ssh.Quote(append([]string{"printf", `%s\0`}, words...)...))...).Output()
		if want := strings.Join(words, "\x00") + "\x00"; err != nil || string(out) != want {
			t.Errorf("%s: got %q, %v, want %q", shell, out, err, want)
		}
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("it's", `a\b!`)
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsRune(a+b, 0) {
			return // no argument can hold it
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", ssh.Quote("printf", `%s\0%s`, a, b)).Output()
		if err != nil || string(out) != a+"\x00"+b {
			t.Errorf("%q, %q came back as %q, %v", a, b, out, err)
		}
	})
}

// Greetings of a login shell do not reach a stream over stdio, and a program
// that is missing or gives no stream is a missing agent.
func TestStdio(t *testing.T) {
	t.Parallel()
	n := startNode(t, "AllowStreamLocalForwarding no")
	script := func(body string) string {
		file := write(t, "#!/bin/sh", body)
		if err := os.Chmod(file, 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	o := n.options()
	o.Socket = echoAgent(t)
	o.Program = script("printf 'Welcome!\\nLast login: '; exec " + ssh.Quote(program(t)) + ` "$@"`)
	mustEcho(t, mustDial(t, connect(t, o)))

	for _, c := range []struct{ program, want string }{
		{"/does/not/exist", "/does/not/exist is not there"},
		{script("echo 'no luck' >&2; exit 3"), "no luck"},
		{script("exec head -c 1000000 /dev/zero"), "no node agent answers"},
		{script("exec yes"), "no node agent answers"},
		{"", "no node agent answers"},
	} {
		o.Program = c.program
		_, err := connect(t, o).Dial(t.Context())
		wantError(t, err, transport.ErrNoAgent, c.want, "vendetta node")
	}

	// A program that is killed has not ended the stream.
	pid := filepath.Join(t.TempDir(), "pid")
	o.Program = script("echo $$ >" + ssh.Quote(pid) + "; exec " + ssh.Quote(program(t)) + ` "$@"`)
	c := mustDial(t, connect(t, o))
	mustEcho(t, c)
	command(t, "kill", "-9", strings.TrimSpace(read(t, pid)))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read = %v, want an error", err)
	}

	// One that never begins ends with the context.
	o.Program = script("exec sleep 100")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := connect(t, o).Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial = %v", err)
	}
}

// A login that runs nothing still carries streams.
func TestNoSession(t *testing.T) {
	t.Parallel()
	n := startNode(t, "MaxSessions 0")
	o := n.options()
	o.Socket, o.Program = echoAgent(t), "/bin/true"
	tr := connect(t, o)
	mustEcho(t, mustDial(t, tr))
	if _, err := tr.Run(t.Context(), "true", nil); err == nil || !strings.Contains(err.Error(), "open a session") {
		t.Errorf("run = %v", err)
	}
}
