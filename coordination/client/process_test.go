package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
)

// setup is a server with one workspace, and the client's view of its guest.
func setup(t *testing.T) (*clienttest.Server, *clienttest.Guest, *client.Guest) {
	t.Helper()
	s := clienttest.New(t)
	g := s.AddWorkspace(t, "ws")
	c := client.New(s.Dial)
	t.Cleanup(c.Close)
	return s, g, c.Guest("ws")
}

// output is a buffer that several goroutines may use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func start(id string, argv ...string) *guestv1.StartRequest {
	return &guestv1.StartRequest{ProcessId: id, Argv: argv}
}

func TestRunGivesOutputAndExitCode(t *testing.T) {
	t.Parallel()
	_, _, g := setup(t)
	var stdout, stderr output
	p, err := g.Run(t.Context(), start("p1", "fail"), client.RunOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	if p.GetExitCode() != 3 || stdout.String() != "out\n" || stderr.String() != "err\n" {
		t.Errorf("exit %d, stdout %q, stderr %q", p.GetExitCode(), stdout.String(), stderr.String())
	}
	if p, err := g.Run(t.Context(), start("p2", "nothing-such"), client.RunOptions{}); err != nil || p.GetExitCode() != 127 || p.GetMessage() == "" {
		t.Errorf("unknown command: %v, %v", p, err)
	}
	if g.Workspace() != "ws" {
		t.Errorf("workspace = %q", g.Workspace())
	}
}

func TestRunSendsInput(t *testing.T) {
	t.Parallel()
	_, _, g := setup(t)
	text := strings.Repeat("0123456789abcdef", 20_000)
	for i, c := range map[string]struct{ first, rest string }{"a": {"", text}, "b": {"first ", text}, "c": {"", ""}} {
		var stdout output
		req := start("p"+i, "cat")
		req.Stdin = []byte(c.first)
		p, err := g.Run(t.Context(), req, client.RunOptions{Stdout: &stdout, Stdin: strings.NewReader(c.rest)})
		if err != nil || p.GetExitCode() != 0 || stdout.String() != c.first+c.rest {
			t.Errorf("%s: %v, %v, %d bytes", i, p, err, len(stdout.String()))
		}
	}
}

// A command that ends while stdin still blocks must not keep Run; a stdin that
// takes a deadline is left usable.
func TestRunLeavesABlockedStdin(t *testing.T) {
	t.Parallel()
	_, _, g := setup(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	if _, err := g.Run(t.Context(), start("p1", "echo"), client.RunOptions{Stdin: r}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("later\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "later\n" {
		t.Errorf("stdin after the run: %q, %v", buf[:n], err)
	}
	blocked, feed := io.Pipe()
	defer feed.Close()
	if _, err := g.Run(t.Context(), start("p2", "echo"), client.RunOptions{Stdin: blocked}); err != nil {
		t.Fatal(err)
	}
}

func TestRunPassesSignalsAndSizes(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	signals, sizes := make(chan string, 1), make(chan client.Size, 2)
	sizes <- client.Size{}
	sizes <- client.Size{Rows: 24, Columns: 80}
	close(sizes)
	var stdout output
	var p *guestv1.Process
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		p, err = g.Run(t.Context(), start("p1", "wait"), client.RunOptions{Stdout: &stdout, Signals: signals, Resize: sizes})
	}()
	clienttest.Wait(t, func() bool { return stdout.String() == "ready\n" && len(guest.Resized()) == 1 })
	signals <- "INT"
	close(signals)
	<-done
	if err != nil || p.GetExitCode() != 130 || p.GetSignal() != 2 || stdout.String() != "ready\ngot INT\n" {
		t.Errorf("%v, %v, %q", p, err, stdout.String())
	}
	if r := guest.Resized()[0]; r.GetRows() != 24 || r.GetColumns() != 80 {
		t.Errorf("size = %v", r)
	}
}

// The heart of it: the link breaks again and again in the middle of a command.
func TestRunGoesOnAfterLostLinks(t *testing.T) {
	t.Parallel()
	s, guest, g := setup(t)
	step := make(chan struct{})
	s.Lock()
	s.Programs["steps"] = func(p *clienttest.Proc) int32 {
		for i := range 5 {
			fmt.Fprintf(p.Stdout, "step %d\n", i)
			fmt.Fprintf(p.Stderr, "warn %d\n", i)
			<-step
		}
		line, _ := io.ReadAll(p.Stdin)
		fmt.Fprintf(p.Stdout, "%s", line)
		return 7
	}
	s.Unlock()
	var stdout, stderr output
	var lost, restored atomic.Int32
	in, feed := io.Pipe()
	sizes := make(chan client.Size, 1)
	sizes <- client.Size{Rows: 1, Columns: 1}
	var p *guestv1.Process
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		p, err = g.Run(t.Context(), start("p1", "steps"), client.RunOptions{
			Stdout: &stdout, Stderr: &stderr, Stdin: in, Resize: sizes,
			OnLinkLost: func(error) { lost.Add(1) }, OnRestored: func() { restored.Add(1) },
		})
	}()
	want := ""
	for i := range 5 {
		want += fmt.Sprintf("step %d\n", i)
		clienttest.Wait(t, func() bool { return stdout.String() == want && strings.Count(stderr.String(), "\n") == i+1 })
		s.SetDown(true)
		s.Cut()
		clienttest.Wait(t, func() bool { return lost.Load() == int32(i+1) })
		step <- struct{}{}
		if i == 4 {
			go func() {
				_, _ = feed.Write([]byte("the last line\n"))
				_ = feed.Close()
			}()
		}
		s.SetDown(false)
		clienttest.Wait(t, func() bool { return restored.Load() == int32(i+1) })
	}
	<-done
	if err != nil || p.GetExitCode() != 7 || stdout.String() != want+"the last line\n" || strings.Count(stderr.String(), "warn") != 5 {
		t.Errorf("%v, %v, %q, %q", p, err, stdout.String(), stderr.String())
	}
	if guest.Starts() != 1 {
		t.Errorf("started %d times", guest.Starts())
	}
	if len(guest.Resized()) < 2 {
		t.Error("the size was not sent again after the link was restored")
	}
}

// unavailable answers as a server does whose link to the node is gone.
func unavailable(w http.ResponseWriter) { http.Error(w, "", http.StatusServiceUnavailable) }

func TestStartThatWasCutOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// refuse decides what happens to the nth Start and GetProcess
		refuse     func(s *clienttest.Server, w http.ResponseWriter, r *http.Request) bool
		starts     int
		code       api.Code
		message    string
		wantOutput bool
	}{
		"it had arrived": {
			refuse: func(s *clienttest.Server, w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, "/Start") {
					// Passed on and done, but the answer is lost.
					rec := &lostAnswer{header: http.Header{}}
					s.ServeQuietly(rec, r)
					unavailable(w)
					return true
				}
				return false
			},
			starts: 1, wantOutput: true,
		},
		"it had not arrived": {
			refuse: func(_ *clienttest.Server, w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, "/Start") {
					unavailable(w)
					return true
				}
				return false
			},
			code: api.Unavailable, message: "it was not started",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, guest, g := setup(t)
			s.Lock()
			s.Refuse = func(w http.ResponseWriter, r *http.Request) bool { return c.refuse(s, w, r) }
			s.Unlock()
			for id, detach := range map[string]bool{"p1": false, "p2": true} {
				var stdout output
				req := start(id, "echo", "hello")
				req.Detach = detach
				p, err := g.Run(t.Context(), req, client.RunOptions{Stdout: &stdout})
				if api.CodeOf(err) != c.code || err != nil && !strings.Contains(api.From(err).Message, c.message) {
					t.Errorf("error = %v", err)
				}
				if c.wantOutput && (p.GetId() != id || !detach && stdout.String() != "hello\n") {
					t.Errorf("%v, %q", p, stdout.String())
				}
			}
			if guest.Starts() != 2*c.starts {
				t.Errorf("started %d times", guest.Starts())
			}
		})
	}
}

type lostAnswer struct{ header http.Header }

func (l *lostAnswer) Header() http.Header         { return l.header }
func (l *lostAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (l *lostAnswer) WriteHeader(int)             {}
func (l *lostAnswer) Flush()                      {}

// When nobody can tell, the answer says so, after a bounded time.
func TestStartOfUnknownFate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, guest, g := setup(t)
		s.Lock()
		s.Refuse = func(w http.ResponseWriter, _ *http.Request) bool { unavailable(w); return true }
		s.Unlock()
		began := time.Now()
		_, err := g.Run(t.Context(), start("p1", "echo"), client.RunOptions{})
		e := api.From(err)
		if e == nil || e.Code != api.Unavailable || !strings.Contains(e.Message, "unknown whether it was started") || !strings.Contains(e.Next, "p1") {
			t.Fatalf("error = %v", e)
		}
		if took := time.Since(began); took > 11*time.Second || took < 9*time.Second {
			t.Errorf("it took %v", took)
		}
		if guest.Starts() != 0 || s.Count("Start") != 1 {
			t.Errorf("%d starts, %d asked", guest.Starts(), s.Count("Start"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Run(ctx, start("p2", "echo"), client.RunOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
		guestEnd(t, s)
	})
}

// guestEnd cuts what would keep a bubble's goroutines.
func guestEnd(t *testing.T, s *clienttest.Server) {
	t.Helper()
	s.Cut()
	synctest.Wait()
}

func TestDefiniteErrorsComeAtOnce(t *testing.T) {
	t.Parallel()
	s, guest, g := setup(t)
	if _, err := g.Run(t.Context(), start("p1", "echo"), client.RunOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Run(t.Context(), start("p1", "echo"), client.RunOptions{}); api.CodeOf(err) != api.AlreadyExists {
		t.Errorf("an id twice: %v", err)
	}
	if _, err := g.Attach(t.Context(), &guestv1.AttachRequest{ProcessId: "none", Follow: true}, client.RunOptions{}); api.CodeOf(err) != api.NotFound {
		t.Errorf("no such process: %v", err)
	}
	if _, err := g.Attach(t.Context(), &guestv1.AttachRequest{ProcessId: "none"}, client.RunOptions{Stdin: strings.NewReader("")}); api.CodeOf(err) != api.NotFound {
		t.Errorf("no such process, with input: %v", err)
	}
	other := client.New(s.Dial).Guest("no such")
	if _, err := other.Run(t.Context(), start("p1", "echo"), client.RunOptions{}); api.CodeOf(err) != api.NotFound {
		t.Errorf("no such workspace: %v", err)
	}
	if guest.Starts() != 1 {
		t.Errorf("started %d times", guest.Starts())
	}
	full := errors.New("no room")
	if _, err := g.Run(t.Context(), start("p2", "echo", "x"), client.RunOptions{Stdout: failing{full}}); !errors.Is(err, full) {
		t.Errorf("writer: %v", err)
	}
	s.Lock()
	s.Refuse = func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "", http.StatusForbidden)
		return true
	}
	s.Unlock()
	if _, err := g.Attach(t.Context(), &guestv1.AttachRequest{ProcessId: "p1", Follow: true}, client.RunOptions{}); api.CodeOf(err) != api.PermissionDenied {
		t.Errorf("forbidden: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestServerThatIsNotThere(t *testing.T) {
	t.Parallel()
	s, _, g := setup(t)
	s.SetDown(true)
	s.Cut()
	clienttest.Wait(t, func() bool {
		_, err := g.Run(t.Context(), start("p1", "echo"), client.RunOptions{})
		return api.CodeOf(err) == api.Unavailable && strings.Contains(api.From(err).Message, "connect to the server: connection refused") && api.From(err).Next != ""
	})
	own := api.Errorf(api.FailedPrecondition, "the server is too old")
	c := client.New(func(context.Context) (net.Conn, error) { return nil, own })
	if _, err := c.Guest("ws").Run(t.Context(), start("p1", "echo"), client.RunOptions{}); api.CodeOf(err) != api.FailedPrecondition || !errors.Is(err, own) {
		t.Errorf("the dialler's own error: %v", err)
	}
}

func TestEndOfContextLeavesTheCommand(t *testing.T) {
	t.Parallel()
	_, _, g := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	var stdout output
	done := make(chan error)
	go func() {
		_, err := g.Run(ctx, start("p1", "wait"), client.RunOptions{Stdout: &stdout, Signals: make(chan string), Resize: make(chan client.Size)})
		done <- err
	}()
	clienttest.Wait(t, func() bool { return stdout.String() != "" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	p, err := g.Processes.GetProcess(t.Context(), &guestv1.GetProcessRequest{ProcessId: "p1"})
	if err != nil || p.GetState() != guestv1.ProcessState_PROCESS_STATE_RUNNING {
		t.Errorf("the command: %v, %v", p, err)
	}
}

func TestAttachReadsAgain(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	req := start("p1", "echo", "0123456789")
	req.Detach = true
	if p, err := g.Run(t.Context(), req, client.RunOptions{}); err != nil || p.GetId() != "p1" {
		t.Fatal(p, err)
	}
	read := func(req *guestv1.AttachRequest) (string, *guestv1.Process, []uint64) {
		t.Helper()
		var stdout output
		var gaps []uint64
		req.ProcessId = "p1"
		p, err := g.Attach(t.Context(), req, client.RunOptions{Stdout: &stdout, OnGap: func(o, n uint64) { gaps = append(gaps, o, n) }})
		if err != nil {
			t.Fatal(err)
		}
		return stdout.String(), p, gaps
	}
	if out, p, _ := read(&guestv1.AttachRequest{Follow: true}); out != "0123456789\n" || p.GetState() != guestv1.ProcessState_PROCESS_STATE_EXITED {
		t.Errorf("all: %q, %v", out, p)
	}
	if out, _, _ := read(&guestv1.AttachRequest{Offset: 4, LimitBytes: 3}); out != "456" {
		t.Errorf("limited: %q", out)
	}
	if out, _, _ := read(&guestv1.AttachRequest{TailBytes: 3}); out != "89\n" {
		t.Errorf("tail: %q", out)
	}
	guest.Drop("p1", 6)
	if out, _, gaps := read(&guestv1.AttachRequest{}); out != "6789\n" || fmt.Sprint(gaps) != "[0 6]" {
		t.Errorf("with a gap: %q, %v", out, gaps)
	}
}

func TestAttachGoesOnWithInput(t *testing.T) {
	t.Parallel()
	_, _, g := setup(t)
	req := start("p1", "cat")
	req.Detach, req.StdinOpen, req.Stdin = true, true, []byte("one ")
	if _, err := g.Run(t.Context(), req, client.RunOptions{}); err != nil {
		t.Fatal(err)
	}
	var stdout output
	p, err := g.Attach(t.Context(), &guestv1.AttachRequest{ProcessId: "p1", Follow: true}, client.RunOptions{Stdout: &stdout, Stdin: strings.NewReader("two")})
	if err != nil || stdout.String() != "one two" || p.GetInputBytes() != 7 {
		t.Errorf("%q, %v, %v", stdout.String(), p, err)
	}
}

// Input that the guest refuses for good ends the run; the command would wait for ever.
func TestRefusedInputEndsTheRun(t *testing.T) {
	t.Parallel()
	s, _, g := setup(t)
	s.Lock()
	s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/Input") {
			return false
		}
		http.Error(w, "", http.StatusForbidden)
		return true
	}
	s.Unlock()
	if _, err := g.Run(t.Context(), start("p1", "cat"), client.RunOptions{Stdin: strings.NewReader("x")}); api.CodeOf(err) != api.PermissionDenied {
		t.Errorf("error = %v", err)
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := clienttest.New(t)
		c := client.New(s.Dial)
		defer c.Close()
		s.Lock()
		s.Hold = true
		s.Unlock()
		create := func(name string) *vendettav1.Operation {
			r, err := c.Workspaces.CreateWorkspace(t.Context(), &vendettav1.CreateWorkspaceRequest{Name: name, Spec: &vendettav1.WorkspaceSpec{}})
			if err != nil {
				t.Fatal(err)
			}
			return r.GetOperation()
		}
		op := create("a")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		if op, err := c.Wait(ctx, op); !errors.Is(err, context.DeadlineExceeded) || op.GetState() != vendettav1.OperationState_OPERATION_STATE_PENDING {
			t.Errorf("still pending: %v, %v", op, err)
		}
		if n := s.Count("WaitOperation"); n > 4 {
			t.Errorf("asked %d times in 50 seconds", n)
		}
		time.AfterFunc(30*time.Second, func() { s.SetDown(true); s.Cut() })
		time.AfterFunc(40*time.Second, func() { s.SetDown(false) })
		time.AfterFunc(70*time.Second, func() { s.Release("") })
		if op, err := c.Wait(t.Context(), op); err != nil || op.GetState() != vendettav1.OperationState_OPERATION_STATE_SUCCEEDED {
			t.Errorf("through a lost link: %v, %v", op, err)
		}
		s.Lock()
		s.Hold = true
		s.Unlock()
		op = create("b")
		s.Release("no such image")
		if _, err := c.Wait(t.Context(), op); api.CodeOf(err) != api.NotFound || err.Error() != "create b: no such image" || api.From(err).Next == "" {
			t.Errorf("failed: %v", err)
		}
		if _, err := c.Wait(t.Context(), &vendettav1.Operation{Id: "none"}); api.CodeOf(err) != api.NotFound {
			t.Errorf("no such operation: %v", err)
		}
		guestEnd(t, s)
	})
	for _, c := range []struct {
		op   *vendettav1.Operation
		want api.Code
	}{
		{&vendettav1.Operation{State: vendettav1.OperationState_OPERATION_STATE_SUPERSEDED}, api.Conflict},
		{&vendettav1.Operation{State: vendettav1.OperationState_OPERATION_STATE_FAILED}, api.Internal},
		{&vendettav1.Operation{}, ""},
	} {
		if got := api.CodeOf(client.OperationError(c.op)); got != c.want {
			t.Errorf("OperationError(%v) = %q", c.op, got)
		}
	}
}
