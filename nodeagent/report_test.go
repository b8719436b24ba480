package nodeagent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

func TestHello(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b}, func(o *Options) { o.Version = "1.2.3" })
	hello, err := n.as("s1").Hello(t.Context(), &nodeagentv1.HelloRequest{ProtocolMin: 1, ProtocolMax: 9})
	if err != nil {
		t.Fatal(err)
	}
	r := hello.GetReport()
	if hello.GetProtocol() != api.Protocol || hello.GetVersion() != "1.2.3" || r.GetHostname() == "" || r.GetKernel() == "" ||
		r.GetBootId() == "" || r.GetCapacity().GetCpus() < 1 || r.GetCapacity().GetMemoryBytes() == 0 ||
		r.GetCapacity().GetMemoryFreeBytes() == 0 || r.GetCapacity().GetDiskFreeBytes() == 0 || r.GetProtocol() != api.Protocol {
		t.Fatalf("got %v", hello)
	}
	if p := r.GetProviders(); len(p) != 1 || p[0].GetName() != "box" || !p[0].GetUsable() {
		t.Fatalf("providers %v", p)
	}
	// Hello asks the providers again, whatever they said a moment ago.
	b.set(func() { b.status = providers.Status{} })
	if hello, err = n.as("s1").Hello(t.Context(), &nodeagentv1.HelloRequest{ProtocolMin: 1, ProtocolMax: 1}); err != nil {
		t.Fatal(err)
	}
	if p := hello.GetReport().GetProviders()[0]; p.GetUsable() || p.GetReason() == "" {
		t.Fatalf("got %v", p)
	}
	_, err = n.as("s1").Hello(t.Context(), &nodeagentv1.HelloRequest{ProtocolMin: 90, ProtocolMax: 91})
	if e := api.From(err); e == nil || e.Code != api.FailedPrecondition || !strings.Contains(e.Next, "vendetta node add") {
		t.Fatalf("got %v", err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := n.as("s1").Watch(ctx, &nodeagentv1.WatchRequest{IntervalSeconds: 3600})
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || len(stream.Msg().GetReport().GetProviders()) != 1 || len(stream.Msg().GetWorkspaces()) != 0 {
		t.Fatalf("first report: %v %v", stream.Msg(), stream.Err())
	}
	n.apply(request("o1", 1, running))
	other := request("o1", 1, stopped)
	other.WorkspaceId = "a1"
	n.apply(other)
	for {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		w := stream.Msg().GetWorkspaces()
		if len(w) == 2 && w[0].GetWorkspaceId() == "a1" && w[1].GetState() == isRunning && w[1].GetLinked() && w[1].GetOperationId() == "o1" {
			break
		}
	}
	// Shutdown ends the stream with a word.
	if _, err := n.as("s1").Shutdown(t.Context(), &nodeagentv1.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	if api.CodeOf(stream.Err()) != api.Unavailable {
		t.Fatal(stream.Err())
	}
	if b.state("w1") != providers.StateRunning {
		t.Fatal("the instance ended with the agent")
	}
}

func TestWatchInterval(t *testing.T) {
	t.Parallel()
	n := start(t, "", nil, func(o *Options) { o.timing.interval = time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := n.as("s1").Watch(ctx, &nodeagentv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
	}
	cancel()
	for stream.Receive() {
	}
	_ = stream.Close()
}

// slow is a provider whose probe takes as long as it may.
type slow struct {
	*box
	asked chan struct{}
}

func (s slow) Probe(ctx context.Context) providers.Status {
	s.asked <- struct{}{}
	<-ctx.Done()
	return providers.Status{}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	fast := quick
	fast.probe = 20 * time.Millisecond
	changed := make(chan struct{}, 1)
	b := newBox(t)
	s := slow{b, make(chan struct{}, 10)}
	p := newProbes([]providers.Provider{s, b}, fast, func() time.Time { return now }, func() { changed <- struct{}{} })
	spawn := func(fn func()) { go fn() }
	found := p.get(t.Context(), false, t.Context(), spawn)
	if len(found) != 2 || !strings.Contains(found[0].GetReason(), "within") || !found[1].GetUsable() {
		t.Fatalf("got %v", found)
	}
	// What is known is the answer while it is refreshed, and news wake the watchers.
	b.set(func() { b.status.Usable = false })
	now = now.Add(fast.probed)
	if found = p.get(t.Context(), false, t.Context(), spawn); !found[1].GetUsable() {
		t.Fatal("waited for the probe")
	}
	<-changed
	if found = p.get(t.Context(), false, t.Context(), spawn); found[1].GetUsable() {
		t.Fatal("old news")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found = p.get(ctx, true, t.Context(), spawn); len(found) != 2 {
		t.Fatalf("a caller without patience got %v", found)
	}
}

func TestServersAreBounded(t *testing.T) {
	t.Parallel()
	n := start(t, "", nil)
	for i := range serverLimit {
		if _, err := n.agent.server("s" + strings.Repeat("x", i%30) + string(rune('a'+i/30))); err != nil {
			t.Fatal(err)
		}
	}
	hello := &nodeagentv1.HelloRequest{ProtocolMin: 1, ProtocolMax: 1}
	if _, err := n.as("onemore").Hello(t.Context(), hello); api.CodeOf(err) != api.ResourceExhausted {
		t.Fatal(err)
	}
	if _, err := n.as("onemore").Apply(t.Context(), request("o1", 1, running)); api.CodeOf(err) != api.ResourceExhausted {
		t.Fatal(err)
	}
	stream, err := n.as("onemore").Watch(t.Context(), &nodeagentv1.WatchRequest{})
	if err != nil || stream.Receive() || api.CodeOf(stream.Err()) != api.ResourceExhausted {
		t.Fatal(err)
	}
	res, err := n.client("onemore").Get("http://vendetta/workspaces/w1/guest/x")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode < 400 {
		t.Fatal(res.Status)
	}
}

func TestMachineWithoutProc(t *testing.T) {
	t.Parallel()
	m := &machine{proc: t.TempDir(), disk: "/does/not/exist"}
	r := m.report()
	if r.GetKernel() != "" || r.GetCapacity().GetMemoryBytes() != 0 || r.GetCapacity().GetDiskBytes() != 0 || r.GetCapacity().GetCpus() < 1 {
		t.Fatalf("got %v", r)
	}
	_ = os.WriteFile(filepath.Join(m.proc, "meminfo"), []byte("MemTotal:  1000 kB\nbad\nMemAvailable: x kB\nMemAvailable:  10 kB\n"), 0o600)
	if total, free := m.memory(); total != 1000<<10 || free != 10<<10 {
		t.Fatalf("got %d %d", total, free)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{}); err == nil {
		t.Fatal("made from nothing")
	}
	file := filepath.Join(t.TempDir(), "f")
	_ = os.WriteFile(file, nil, 0o600)
	o := Options{StateDir: file, Logger: slog.New(slog.DiscardHandler), Providers: func(string) []providers.Provider { return nil }}
	if _, err := New(o); err == nil {
		t.Fatal("state in a file")
	}
	o.StateDir = t.TempDir()
	_ = os.WriteFile(filepath.Join(o.StateDir, "journal"), nil, 0o600)
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(stateDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context(), l); err == nil {
		t.Fatal("ran on a journal that is a file")
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	n := start(t, "", nil)
	path := filepath.Join(n.dir, logName)
	read := func(r *nodeagentv1.LogsRequest) string {
		t.Helper()
		stream, err := n.as("s1").Logs(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for stream.Receive() {
			got.Write(stream.Msg().GetData())
		}
		if stream.Err() != nil {
			t.Fatal(stream.Err())
		}
		return got.String()
	}
	if got := read(&nodeagentv1.LogsRequest{}); got != "" {
		t.Fatalf("without a log: %q", got)
	}
	_ = os.WriteFile(path, []byte("one\ntwo\nthree\n"), 0o600)
	for tail, want := range map[int32]string{0: "one\ntwo\nthree\n", 1: "three\n", 2: "two\nthree\n", 3: "one\ntwo\nthree\n", 9: "one\ntwo\nthree\n"} {
		if got := read(&nodeagentv1.LogsRequest{Tail: tail}); got != want {
			t.Fatalf("tail %d: %q", tail, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := n.as("s1").Logs(ctx, &nodeagentv1.LogsRequest{Tail: 1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want string) {
		t.Helper()
		if !stream.Receive() || string(stream.Msg().GetData()) != want {
			t.Fatalf("got %q %v, want %q", stream.Msg().GetData(), stream.Err(), want)
		}
	}
	next("three\n")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	_, _ = f.WriteString("four\n")
	next("four\n")
	// Rotated: emptied in place, and followed from the start.
	if err := rotateLog(path, 15); err != nil {
		t.Fatal(err)
	}
	if old, err := os.ReadFile(path + ".1"); err != nil || string(old) != "one\ntwo\nthree\nfour\n" {
		t.Fatalf("old log: %q %v", old, err)
	}
	_, _ = f.WriteString("5\n")
	next("5\n")
	cancel()
	for stream.Receive() {
	}
	_ = os.Remove(path)
	_ = os.Mkdir(path, 0o700)
	bad, err := n.as("s1").Logs(t.Context(), &nodeagentv1.LogsRequest{})
	if err != nil || bad.Receive() || bad.Err() == nil {
		t.Fatal("read a folder as a log")
	}
}

func TestLogErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, logName)
	if err := rotateLog(path, 5); err != nil {
		t.Fatalf("without a log: %v", err)
	}
	_ = os.WriteFile(path, []byte("long enough\n"), 0o600)
	if err := rotateLog(path, 50); err != nil {
		t.Fatal(err)
	}
	_ = os.Mkdir(path+".1", 0o700)
	if err := rotateLog(path, 5); err == nil {
		t.Fatal("rotated onto a folder")
	}
	boom := errors.New("boom")
	if err := readLog(t.Context(), dir, 1, false, 0, func([]byte) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if lastLine(t.Context(), dir) != "long enough" || lastLine(t.Context(), t.TempDir()) == "" {
		t.Fatal("last line")
	}
}
