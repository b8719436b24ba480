package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/transport"
)

// TestMain lets the test binary be the program that the daemon's parts run.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && strings.HasPrefix(os.Args[1], "as-") {
		os.Exit(child(os.Args[1], os.Args[2]))
	}
	os.Exit(m.Run())
}

func child(role, dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch role {
	case "as-supervisor":
		err = Supervise(ctx, SuperviseOptions{Program: os.Args[0], Args: []string{"as-agent", dir}, StateDir: dir, Logger: log, pause: time.Millisecond, pauseMax: 10 * time.Millisecond})
	case "as-agent":
		_ = os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600)
		var listener net.Listener
		if listener, err = Listen(dir); err != nil {
			break
		}
		var agent *Agent
		fast := quick
		if agent, err = New(Options{StateDir: dir, Logger: log, timing: &fast, Providers: func(string) []providers.Provider { return nil }}); err == nil {
			err = agent.Run(ctx, listener)
		}
	case "as-failure":
		err = errors.New("this cannot work")
	}
	if err != nil {
		log.Error("ended", "error", err)
		return 1
	}
	return 0
}

// program is this test binary.
func program(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func pidOf(t *testing.T, dir, name string) int {
	t.Helper()
	pid := 0
	eventually(t, name, func() bool {
		data, err := os.ReadFile(filepath.Join(dir, name))
		pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		return err == nil && pid > 0
	})
	return pid
}

func stopAtEnd(t *testing.T, dir string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := Stop(ctx, dir); err != nil {
			t.Error(err)
		}
	})
}

func TestDaemon(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	options := StartOptions{Program: program(t), Args: []string{"as-supervisor", dir}, StateDir: dir}
	socket, err := Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, dir)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v", info.Mode(), err)
	}
	supervisor, agent := pidOf(t, dir, lockName), pidOf(t, dir, "pid")
	// Starting again starts nothing.
	if _, err := Start(t.Context(), options); err != nil || pidOf(t, dir, lockName) != supervisor || pidOf(t, dir, "pid") != agent {
		t.Fatalf("started again: %v", err)
	}
	// A killed agent comes back.
	_ = syscall.Kill(agent, syscall.SIGKILL)
	eventually(t, "a new agent", func() bool { return pidOf(t, dir, "pid") != agent && Alive(t.Context(), socket) })
	agent = pidOf(t, dir, "pid")
	// Another program's agent is replaced.
	if err := os.WriteFile(filepath.Join(dir, programName), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), options); err != nil || pidOf(t, dir, lockName) == supervisor || pidOf(t, dir, "pid") == agent {
		t.Fatalf("not replaced: %v", err)
	}
	// A killed supervisor leaves its agent; starting replaces that.
	supervisor, agent = pidOf(t, dir, lockName), pidOf(t, dir, "pid")
	_ = syscall.Kill(supervisor, syscall.SIGKILL)
	eventually(t, "the supervisor's end", func() bool { return !supervised(dir) })
	if _, err := Start(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a supervised agent", func() bool { return supervised(dir) && pidOf(t, dir, "pid") != agent && Alive(t.Context(), socket) })
	if err := Stop(t.Context(), dir); err != nil || Alive(t.Context(), socket) || supervised(dir) {
		t.Fatalf("stop: %v", err)
	}
	if err := Stop(t.Context(), dir); err != nil {
		t.Fatalf("stop of nothing: %v", err)
	}
}

func TestStartFailures(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	_, err := Start(t.Context(), StartOptions{Program: program(t), Args: []string{"as-failure", dir}, StateDir: dir})
	if e := api.From(err); e == nil || e.Code != api.Unavailable || !strings.Contains(e.Message, "this cannot work") || e.Next == "" {
		t.Fatalf("got %#v", err)
	}
	if _, err := Start(t.Context(), StartOptions{Program: filepath.Join(dir, "none"), StateDir: dir}); err == nil {
		t.Fatal("started nothing")
	}
	if _, err := Start(t.Context(), StartOptions{Program: filepath.Join(dir, logName), StateDir: dir}); err == nil {
		t.Fatal("started a log")
	}
	if _, err := Start(t.Context(), StartOptions{Program: program(t), StateDir: filepath.Join(dir, logName)}); err == nil {
		t.Fatal("state in a file")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitAlive(ctx, dir, nil); api.CodeOf(err) != api.DeadlineExceeded {
		t.Fatalf("got %v", err)
	}
	held, err := takeLock(filepath.Join(dir, "start.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	if _, err := Start(ctx, StartOptions{Program: program(t), StateDir: dir}); err == nil {
		t.Fatal("two starts at a time")
	}
}

func TestSupervise(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	log := slog.New(slog.DiscardHandler)
	options := SuperviseOptions{Program: program(t), Args: []string{"as-agent", dir}, StateDir: dir, Logger: log, pause: time.Millisecond, pauseMax: 5 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Supervise(ctx, options) }()
	eventually(t, "the agent", func() bool { return Alive(t.Context(), SocketPath(dir)) })
	if err := Supervise(t.Context(), options); !errors.Is(err, ErrSupervised) {
		t.Fatalf("a second supervisor: %v", err)
	}
	agent := pidOf(t, dir, "pid")
	_ = syscall.Kill(agent, syscall.SIGKILL)
	eventually(t, "a new agent", func() bool { return pidOf(t, dir, "pid") != agent && Alive(t.Context(), SocketPath(dir)) })
	cancel()
	if err := <-ended; err != nil || Alive(t.Context(), SocketPath(dir)) {
		t.Fatalf("at the end: %v", err)
	}
	// One that always fails is tried until the supervisor is told to end.
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	options.Args = []string{"as-failure", dir}
	if err := Supervise(ctx, options); err != nil {
		t.Fatal(err)
	}
	options.Program = filepath.Join(dir, "none")
	if err := Supervise(t.Context(), options); err == nil {
		t.Fatal("supervised nothing")
	}
	options.StateDir = filepath.Join(dir, "pid")
	if err := Supervise(t.Context(), options); err == nil {
		t.Fatal("state in a file")
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	// A stale socket, as a killed agent leaves it.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(dir); err == nil {
		t.Fatal("two listen")
	}
	_ = l.Close()
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120))); err == nil {
		t.Fatal("a path beyond the limit of sockets")
	}
	_ = os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	if _, err := Listen(filepath.Join(dir, "file")); err == nil {
		t.Fatal("in a file")
	}
	_ = os.MkdirAll(filepath.Join(SocketPath(filepath.Join(dir, "d")), "x"), 0o700)
	if _, err := Listen(filepath.Join(dir, "d")); err == nil {
		t.Fatal("a folder in the socket's place")
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	n := start(t, "", []providers.Provider{newBox(t)})
	in, inW := io.Pipe()
	outR, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Connect(t.Context(), n.socket, in, out) }()
	ready := make([]byte, len(transport.Ready))
	if _, err := io.ReadFull(outR, ready); err != nil || string(ready) != transport.Ready {
		t.Fatalf("the stream begins with %q, %v", ready, err)
	}
	near := &stdio{Reader: outR, Writer: inW}
	conn, err := wire.NewConn(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	agent := nodeagentv1connect.NewNodeAgentServiceClient(&http.Client{Transport: from{conn, "s1"}}, wire.BaseURL)
	if _, err := agent.Hello(t.Context(), &nodeagentv1.HelloRequest{ProtocolMin: 1, ProtocolMax: 1}); err != nil {
		t.Fatal(err)
	}
	_ = inW.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	err = Connect(t.Context(), filepath.Join(n.dir, "none"), bytes.NewReader(nil), io.Discard)
	if e := api.From(err); e.Code != api.Unavailable || e.Next == "" {
		t.Fatalf("got %#v", e)
	}
	if err := Connect(t.Context(), "/"+strings.Repeat("x", 200), bytes.NewReader(nil), io.Discard); err == nil {
		t.Fatal("connected to nothing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	silent, silentW := io.Pipe()
	defer func() { _ = silentW.Close() }()
	go func() { ended <- Connect(ctx, n.socket, silent, io.Discard) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

type stdio struct {
	io.Reader
	io.Writer
}

func (s *stdio) Close() error                     { return nil }
func (s *stdio) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *stdio) SetDeadline(time.Time) error      { return nil }
func (s *stdio) SetReadDeadline(time.Time) error  { return nil }
func (s *stdio) SetWriteDeadline(time.Time) error { return nil }
