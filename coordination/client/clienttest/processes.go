package clienttest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
)

// Program is what runs as a command. Its result is the exit code.
type Program func(p *Proc) int32

// Proc is a command that runs.
type Proc struct {
	Argv    []string
	Env     map[string]string
	Dir     string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Signals chan string
	Sizes   chan *guestv1.ResizeRequest
	Done    <-chan struct{}
}

// programs are those that the tests of several packages need.
func programs() map[string]Program {
	return map[string]Program{
		"echo": func(p *Proc) int32 {
			for i, a := range p.Argv[1:] {
				if i > 0 {
					fmt.Fprint(p.Stdout, " ")
				}
				fmt.Fprint(p.Stdout, a)
			}
			fmt.Fprintln(p.Stdout)
			return 0
		},
		// sh runs nothing: it says what it was asked to.
		"sh": func(p *Proc) int32 {
			fmt.Fprintf(p.Stdout, "%q in %s with %v\n", p.Argv, p.Dir, p.Env)
			return 0
		},
		"cat": func(p *Proc) int32 {
			_, _ = io.Copy(p.Stdout, p.Stdin)
			return 0
		},
		"fail": func(p *Proc) int32 {
			fmt.Fprintln(p.Stdout, "out")
			fmt.Fprintln(p.Stderr, "err")
			return 3
		},
		// flood writes a million bytes.
		"flood": func(p *Proc) int32 {
			for i := range 10_000 {
				fmt.Fprintf(p.Stdout, "line %04d %s\n", i, bytes.Repeat([]byte("x"), 89))
			}
			return 0
		},
		// wait says "ready" and goes on until a signal comes.
		"wait": func(p *Proc) int32 {
			fmt.Fprintln(p.Stdout, "ready")
			select {
			case s := <-p.Signals:
				fmt.Fprintln(p.Stdout, "got "+s)
				return 130
			case <-p.Done:
				return 0
			}
		},
		"binary": func(p *Proc) int32 {
			_, _ = p.Stdout.Write([]byte{0, 1, 0xff, 'a', '<', '\n'})
			return 0
		},
	}
}

// Guest is the inside of a workspace.
type Guest struct {
	// Dir is where its files lie on this machine.
	Dir string

	server  *Server
	missing string

	mu       sync.Mutex
	order    []*process
	procs    map[string]*process
	imported bool
	changes  []string
	starts   int
	// sizes of terminals as they were set, in order
	resized []*guestv1.ResizeRequest
	export  []byte
}

func newGuest(s *Server, dir string) *Guest {
	return &Guest{Dir: dir, server: s, procs: map[string]*process{}}
}

// Starts is how many commands were started.
func (g *Guest) Starts() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.starts
}

// Resized tells the sizes that terminals were given.
func (g *Guest) Resized() []*guestv1.ResizeRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resized
}

// Lose makes a running command read as lost, as after a reboot.
func (g *Guest) Lose(id string) {
	g.mu.Lock()
	p := g.procs[id]
	g.mu.Unlock()
	p.end(guestv1.ProcessState_PROCESS_STATE_LOST, 0)
}

// Drop throws the first n bytes of a command's output away.
func (g *Guest) Drop(id string, n uint64) {
	g.mu.Lock()
	p := g.procs[id]
	g.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info.OutputKeptFrom = n
}

type process struct {
	mu      sync.Mutex
	info    *guestv1.Process
	output  []byte
	streams []guestv1.OutputStream
	changed chan struct{}
	proc    *Proc
	stdin   *io.PipeWriter
	input   chan *inputPart
}

type inputPart struct {
	data []byte
	end  bool
}

func (p *process) signalChange() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *process) end(state guestv1.ProcessState, code int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.info.State == guestv1.ProcessState_PROCESS_STATE_RUNNING {
		p.info.State, p.info.ExitCode, p.info.EndedAt, p.info.InputOpen = state, code, timestamppb.Now(), false
		p.signalChange()
	}
}

type outputWriter struct {
	p      *process
	stream guestv1.OutputStream
}

func (w outputWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.p.output = append(w.p.output, b...)
	for range b {
		w.p.streams = append(w.p.streams, w.stream)
	}
	w.p.info.OutputBytes = uint64(len(w.p.output))
	w.p.signalChange()
	return len(b), nil
}

type processes struct {
	guestv1connect.UnimplementedProcessServiceHandler
	guest *Guest
}

func (h processes) find(id string) (*process, error) {
	if h.guest.missing != "" {
		return nil, noWorkspace(h.guest.missing)
	}
	h.guest.mu.Lock()
	defer h.guest.mu.Unlock()
	if p := h.guest.procs[id]; p != nil {
		return p, nil
	}
	return nil, api.ToConnect(api.Errorf(api.NotFound, "process %s: there is none", id))
}

func (h processes) Start(ctx context.Context, r *guestv1.StartRequest, s *connect.ServerStream[guestv1.ProcessEvent]) error {
	p, err := h.start(r) //nolint:contextcheck // a command outlives the call that starts it
	if err != nil {
		return err
	}
	if r.Detach {
		return s.Send(started(p))
	}
	return p.follow(ctx, &guestv1.AttachRequest{Follow: true}, s)
}

func (h processes) start(r *guestv1.StartRequest) (*process, error) {
	if h.guest.missing != "" {
		return nil, noWorkspace(h.guest.missing)
	}
	g := h.guest
	g.server.Lock()
	program := g.server.Programs[r.Argv[0]]
	g.server.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.procs[r.ProcessId] != nil {
		return nil, api.ToConnect(api.Errorf(api.AlreadyExists, "process %s: that id was used before", r.ProcessId))
	}
	g.starts++
	in, feed := io.Pipe()
	p := &process{
		info: &guestv1.Process{
			Id: r.ProcessId, Argv: r.Argv, Dir: r.Dir, User: r.User, Tty: r.Terminal != nil, State: guestv1.ProcessState_PROCESS_STATE_RUNNING,
			StartedAt: timestamppb.Now(), InputBytes: uint64(len(r.Stdin)), InputOpen: r.StdinOpen, Pid: int32(100 + g.starts),
		},
		changed: make(chan struct{}), stdin: feed, input: make(chan *inputPart, 1000),
	}
	g.procs[r.ProcessId] = p
	g.order = append([]*process{p}, g.order...)
	if program == nil {
		p.info.Message = r.Argv[0] + ": command not found"
		p.end(guestv1.ProcessState_PROCESS_STATE_EXITED, 127)
		return p, nil
	}
	p.input <- &inputPart{data: r.Stdin, end: !r.StdinOpen}
	done, cancel := context.WithCancel(g.server.ctx)
	p.proc = &Proc{
		Argv: r.Argv, Env: r.Env, Dir: r.Dir, Stdin: in, Signals: make(chan string, 10), Sizes: make(chan *guestv1.ResizeRequest, 10), Done: done.Done(),
		Stdout: outputWriter{p, guestv1.OutputStream_OUTPUT_STREAM_STDOUT}, Stderr: outputWriter{p, guestv1.OutputStream_OUTPUT_STREAM_STDERR},
	}
	context.AfterFunc(done, func() { _ = in.Close() })
	g.server.owner.Go(func() {
		for {
			select {
			case part := <-p.input:
				_, _ = feed.Write(part.data)
				if part.end {
					_ = feed.Close()
				}
			case <-done.Done():
				return
			}
		}
	})
	g.server.owner.Go(func() {
		defer cancel()
		code := program(p.proc)
		state := guestv1.ProcessState_PROCESS_STATE_EXITED
		if code > 128 {
			state = guestv1.ProcessState_PROCESS_STATE_SIGNALLED
			p.mu.Lock()
			p.info.Signal = code - 128
			p.mu.Unlock()
		}
		p.end(state, code)
	})
	return p, nil
}

func started(p *process) *guestv1.ProcessEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Started{Started: proto.CloneOf(p.info)}}
}

// next is the next event from an offset on, nil when there is none yet.
func (p *process) next(offset, limit uint64) (*guestv1.ProcessEvent, uint64) {
	if kept := p.info.OutputKeptFrom; offset < kept {
		return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Gap{Gap: &guestv1.Gap{Offset: offset, Bytes: kept - offset}}}, kept
	}
	if offset < uint64(len(p.output)) {
		end := offset
		for end < uint64(len(p.output)) && p.streams[end] == p.streams[offset] && end-offset < min(limit, 32<<10) {
			end++
		}
		out := &guestv1.Output{Offset: offset, Stream: p.streams[offset], Data: bytes.Clone(p.output[offset:end])}
		return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Output{Output: out}}, end
	}
	if p.info.State != guestv1.ProcessState_PROCESS_STATE_RUNNING {
		return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Ended{Ended: proto.CloneOf(p.info)}}, offset
	}
	return nil, offset
}

func (p *process) follow(ctx context.Context, r *guestv1.AttachRequest, s *connect.ServerStream[guestv1.ProcessEvent]) error {
	if err := s.Send(started(p)); err != nil {
		return err
	}
	offset, limit := r.Offset, r.LimitBytes
	if limit == 0 {
		limit = 1 << 62
	}
	if r.TailBytes > 0 {
		p.mu.Lock()
		offset = uint64(len(p.output)) - min(uint64(len(p.output)), r.TailBytes)
		p.mu.Unlock()
	}
	for limit > 0 {
		p.mu.Lock()
		event, next := p.next(offset, limit)
		changed := p.changed
		p.mu.Unlock()
		if event == nil {
			if !r.Follow {
				return nil
			}
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := s.Send(event); err != nil {
			return err
		}
		if event.GetEnded() != nil {
			return nil
		}
		if event.GetOutput() != nil {
			limit -= next - offset
		}
		offset = next
	}
	return nil
}

func (h processes) Attach(ctx context.Context, r *guestv1.AttachRequest, s *connect.ServerStream[guestv1.ProcessEvent]) error {
	p, err := h.find(r.ProcessId)
	if err != nil {
		return err
	}
	return p.follow(ctx, r, s)
}

func (h processes) Input(_ context.Context, r *guestv1.InputRequest) (*guestv1.InputResponse, error) {
	p, err := h.find(r.ProcessId)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.info.InputOpen:
		return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "process %s: its input is closed", r.ProcessId))
	case r.Offset > p.info.InputBytes:
		return nil, api.ToConnect(api.Errorf(api.Conflict, "process %s: input continues at %d", r.ProcessId, p.info.InputBytes))
	}
	data := r.Data[min(uint64(len(r.Data)), p.info.InputBytes-r.Offset):]
	p.info.InputBytes += uint64(len(data))
	p.info.InputOpen = !r.Close
	p.input <- &inputPart{data: data, end: r.Close}
	return &guestv1.InputResponse{InputBytes: p.info.InputBytes}, nil
}

func (h processes) Resize(_ context.Context, r *guestv1.ResizeRequest) (*guestv1.ResizeResponse, error) {
	if _, err := h.find(r.ProcessId); err != nil {
		return nil, err
	}
	h.guest.mu.Lock()
	defer h.guest.mu.Unlock()
	h.guest.resized = append(h.guest.resized, r)
	return &guestv1.ResizeResponse{}, nil
}

func (h processes) Signal(_ context.Context, r *guestv1.SignalRequest) (*guestv1.SignalResponse, error) {
	p, err := h.find(r.ProcessId)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.info.State != guestv1.ProcessState_PROCESS_STATE_RUNNING {
		return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "process %s: it has ended", r.ProcessId))
	}
	p.proc.Signals <- r.Signal
	return &guestv1.SignalResponse{Process: proto.CloneOf(p.info)}, nil
}

func (h processes) GetProcess(_ context.Context, r *guestv1.GetProcessRequest) (*guestv1.Process, error) {
	p, err := h.find(r.ProcessId)
	if err != nil {
		return nil, err
	}
	return started(p).GetStarted(), nil
}

func (h processes) ListProcesses(_ context.Context, r *guestv1.ListProcessesRequest) (*guestv1.ListProcessesResponse, error) {
	if h.guest.missing != "" {
		return nil, noWorkspace(h.guest.missing)
	}
	h.guest.mu.Lock()
	defer h.guest.mu.Unlock()
	out := &guestv1.ListProcessesResponse{}
	for _, p := range h.guest.order {
		info := started(p).GetStarted()
		if !r.Running || info.State == guestv1.ProcessState_PROCESS_STATE_RUNNING {
			out.Processes = append(out.Processes, info)
		}
	}
	return out, nil
}

// Wait blocks until cond holds, or fails after ten seconds.
func Wait(t interface {
	Helper()
	Fatal(args ...any)
}, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	over := time.NewTimer(10 * time.Second)
	defer over.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-over.C:
			t.Fatal("it did not happen within ten seconds")
		}
	}
}
