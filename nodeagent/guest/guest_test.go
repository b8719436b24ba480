//go:build linux

package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// rig is a guest behind a real link, as a node agent sees it.
type rig struct {
	t       testing.TB
	opts    Options
	guest   *Guest
	client  *http.Client
	process guestv1connect.ProcessServiceClient
	file    guestv1connect.FileServiceClient
	project guestv1connect.ProjectServiceClient
	hello   guestv1connect.GuestServiceClient
	stop    func()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newRig starts a guest with fresh folders.
func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	base := t.TempDir()
	opts := Options{StateDir: filepath.Join(base, "state"), ProjectDir: filepath.Join(base, "project"), Env: []string{"PATH=" + os.Getenv("PATH"), "INSTANCE=yes"}, Logger: quiet()}
	if err := os.Mkdir(opts.ProjectDir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Ordinary users reach the project through the folders above.
	for dir := base; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	for _, f := range change {
		f(&opts)
	}
	r := &rig{t: t, opts: opts}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

// start runs a guest on the rig's folders and opens the link.
func (r *rig) start() {
	r.t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "guest.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.guest, err = New(context.Background(), r.opts); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		ServeLink(ctx, DialUnix(socket), r.guest, quiet())
	}()
	transport := wire.NewTransport(func(ctx context.Context) (net.Conn, error) {
		conn, err := listener.Accept()
		if err != nil {
			return nil, err
		}
		return conn, wire.OpenLink(ctx, conn)
	})
	r.client = &http.Client{Transport: transport}
	r.process = guestv1connect.NewProcessServiceClient(r.client, wire.BaseURL)
	r.file = guestv1connect.NewFileServiceClient(r.client, wire.BaseURL)
	r.project = guestv1connect.NewProjectServiceClient(r.client, wire.BaseURL)
	r.hello = guestv1connect.NewGuestServiceClient(r.client, wire.BaseURL)
	var once atomic.Bool
	r.stop = func() {
		if once.Swap(true) {
			return
		}
		r.guest.Close(10 * time.Second)
		cancel()
		<-served
		transport.CloseIdleConnections()
		_ = listener.Close()
	}
}

// result is what an attached reader saw.
type result struct {
	started, ended *guestv1.Process
	out, err       []byte
	gaps           []*guestv1.Gap
	next           uint64
}

type eventReader interface {
	Receive() bool
	Msg() *guestv1.ProcessEvent
	Err() error
	Close() error
}

// collect reads a stream to its end and checks that offsets have no holes.
func collect(t testing.TB, stream eventReader, from uint64) result {
	t.Helper()
	defer func() { _ = stream.Close() }()
	got := result{next: from}
	for stream.Receive() {
		got.take(t, stream.Msg())
	}
	if err := stream.Err(); err != nil {
		t.Fatalf("stream: %v", err)
	}
	return got
}

func (r *result) take(t testing.TB, event *guestv1.ProcessEvent) {
	t.Helper()
	if r.ended != nil {
		t.Error("an event came after ended")
	}
	switch e := event.GetEvent().(type) {
	case *guestv1.ProcessEvent_Started:
		r.started = e.Started
	case *guestv1.ProcessEvent_Output:
		if e.Output.GetOffset() != r.next {
			t.Errorf("output at %d, want %d", e.Output.GetOffset(), r.next)
		}
		r.next += uint64(len(e.Output.GetData()))
		if e.Output.GetStream() == guestv1.OutputStream_OUTPUT_STREAM_STDERR {
			r.err = append(r.err, e.Output.GetData()...)
		} else {
			r.out = append(r.out, e.Output.GetData()...)
		}
	case *guestv1.ProcessEvent_Gap:
		if e.Gap.GetOffset() != r.next {
			t.Errorf("gap at %d, want %d", e.Gap.GetOffset(), r.next)
		}
		r.next += e.Gap.GetBytes()
		r.gaps = append(r.gaps, e.Gap)
	case *guestv1.ProcessEvent_Ended:
		r.ended = e.Ended
	}
}

var lastID atomic.Int64

func newID() string { return "p" + strconv.FormatInt(lastID.Add(1), 10) }

// exec runs a command to its end.
func (r *rig) exec(req *guestv1.StartRequest) result {
	r.t.Helper()
	if req.GetProcessId() == "" {
		req.ProcessId = newID()
	}
	stream, err := r.process.Start(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return collect(r.t, stream, 0)
}

// sh runs a script to its end.
func (r *rig) sh(script string) result {
	r.t.Helper()
	return r.exec(&guestv1.StartRequest{Argv: []string{"sh", "-c", script}})
}

// refused runs a command that must be refused and returns the error.
func (r *rig) refused(req *guestv1.StartRequest) *api.Error {
	r.t.Helper()
	stream, err := r.process.Start(r.t.Context(), req)
	if err != nil {
		return api.From(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		r.t.Errorf("event of a refused start: %v", stream.Msg())
	}
	if stream.Err() == nil {
		r.t.Fatal("start was not refused")
	}
	return api.From(stream.Err())
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func wantCode(t testing.TB, err error, code api.Code) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Errorf("got %v (%s), want %s", err, api.CodeOf(err), code)
	}
}

func TestHello(t *testing.T) {
	r := newRig(t)
	resp, err := r.hello.Hello(t.Context(), &guestv1.HelloRequest{ProtocolMin: 1, ProtocolMax: 7})
	if err != nil || resp.GetProtocol() != api.Protocol || resp.GetDefaultUser() == "" {
		t.Fatalf("got %v, %v", resp, err)
	}
	_, err = r.hello.Hello(t.Context(), &guestv1.HelloRequest{ProtocolMin: 99, ProtocolMax: 99})
	wantCode(t, err, api.FailedPrecondition)
	if api.From(err).Next == "" {
		t.Error("no next step")
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(t.Context(), Options{StateDir: "state", ProjectDir: "/p", Logger: quiet()}); err == nil {
		t.Error("a relative state folder was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Options{StateDir: filepath.Join(file, "x"), ProjectDir: "/p", Logger: quiet()}); err == nil {
		t.Error("a state folder below a file was taken")
	}
}

func TestExec(t *testing.T) {
	r := newRig(t)
	got := r.exec(&guestv1.StartRequest{
		Argv:  []string{"sh", "-c", `printf '%s|%s|%s' "$1" "$EXTRA" "$INSTANCE"; cat; echo oops >&2; pwd >&2; exit 7`, "sh", "-n"},
		Env:   map[string]string{"EXTRA": "e"},
		Stdin: []byte("\x00\xff binary\n"),
	})
	if want := []byte("-n|e|yes\x00\xff binary\n"); !bytes.Equal(got.out, want) {
		t.Errorf("out %q, want %q", got.out, want)
	}
	if want := "oops\n" + r.opts.ProjectDir + "\n"; string(got.err) != want {
		t.Errorf("err %q, want %q", got.err, want)
	}
	e := got.ended
	if e.GetExitCode() != 7 || e.GetState() != guestv1.ProcessState_PROCESS_STATE_EXITED || e.GetOutputBytes() != got.next || e.GetInputBytes() != 10 || e.GetInputOpen() {
		t.Errorf("ended %v", e)
	}
	if got.started.GetPid() == 0 || got.started.GetStartedAt() == nil {
		t.Errorf("started %v", got.started)
	}
}

// A link that is lost is made again, and a second one serves as the first.
func TestServeLinkRedials(t *testing.T) {
	r := newRig(t)
	r.sh("true")
	r.client.CloseIdleConnections()
	if got := r.sh("echo again"); string(got.out) != "again\n" {
		t.Errorf("got %q", got.out)
	}
}

func TestServeLinkRetries(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	ServeLink(ctx, func(context.Context) (net.Conn, error) {
		calls++
		switch calls {
		case 1:
			return nil, errors.New("nobody there")
		case 2:
			a, b := net.Pipe()
			_ = b.Close()
			return a, nil
		}
		cancel()
		return nil, io.EOF
	}, http.NotFoundHandler(), quiet())
	if calls != 3 {
		t.Errorf("dialled %d times", calls)
	}
}

func BenchmarkExec(b *testing.B) {
	r := newRig(b)
	for b.Loop() {
		if got := r.exec(&guestv1.StartRequest{Argv: []string{"true"}}); got.ended.GetExitCode() != 0 {
			b.Fatal(got.ended)
		}
	}
}
