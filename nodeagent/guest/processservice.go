//go:build linux

package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

const (
	sigHup  = syscall.SIGHUP
	sigTerm = syscall.SIGTERM
	sigKill = syscall.SIGKILL
	sigCont = syscall.SIGCONT
)

// chunkMost is the most output in one message.
const chunkMost = 256 << 10

var chunkBuffers = sync.Pool{New: func() any { b := make([]byte, chunkMost); return &b }}

type processService struct{ g *Guest }

type eventStream = connect.ServerStream[guestv1.ProcessEvent]

func (s processService) Start(ctx context.Context, req *guestv1.StartRequest, stream *eventStream) error {
	p, err := s.g.start(req)
	if err != nil {
		return err
	}
	if req.GetDetach() {
		return sendStarted(p, stream)
	}
	return s.g.follow(ctx, p, &guestv1.AttachRequest{Follow: true}, stream)
}

// start runs a command. After an error it is certain that nothing was started.
func (g *Guest) start(req *guestv1.StartRequest) (*process, error) {
	c, err := g.command(req)
	if err != nil {
		return nil, err
	}
	p, err := g.processes.reserve(c)
	if err != nil {
		return nil, err
	}
	if err := g.run(c, p); err != nil {
		g.processes.forget(p)
		return nil, err
	}
	return p, nil
}

// run starts the program and its tending. A command that cannot be run has
// ended at once, as in a shell.
func (g *Guest) run(c *command, p *process) error {
	path, why := c.find()
	if why != nil {
		g.ended(p, why)
		return nil
	}
	files, err := c.openStdio()
	if err != nil {
		return api.Errorf(api.ResourceExhausted, "start %s: open its standard files: %w", c.id, err)
	}
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env,
		Files: []uintptr{uintptr(files.child[0]), uintptr(files.child[1]), uintptr(files.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: files.tty != nil, Credential: c.cred},
	}
	p.setTerminal(files.tty)
	pid, err := g.reaper.start(path, c.argv, attr, p.onExit)
	if err != nil {
		p.setTerminal(nil)
		files.closeAll()
		why, err := c.failed(err)
		if err != nil {
			return err
		}
		g.ended(p, why)
		return nil
	}
	files.closeChild()
	p.mu.Lock()
	p.info.Pid = int32(pid)
	p.mu.Unlock()
	if files.input != nil {
		p.input.connect(files.input)
		g.work.Go(func() { p.input.feed(g.ctx) })
	}
	g.work.Go(func() {
		p.tend(g.ctx, g.hold, files.outputs, g.work.Go, g.log)
		g.processes.ended()
	})
	return nil
}

// ended records a command that was not run.
func (g *Guest) ended(p *process, why *notRun) {
	p.mu.Lock()
	p.reaped = true
	p.info.State = guestv1.ProcessState_PROCESS_STATE_EXITED
	p.info.ExitCode, p.info.Message = why.code, why.message
	p.mu.Unlock()
	p.finish(g.log)
	g.processes.ended()
}

func sendStarted(p *process, stream *eventStream) error {
	return stream.Send(&guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Started{Started: p.snapshot()}})
}

func (s processService) Attach(ctx context.Context, req *guestv1.AttachRequest, stream *eventStream) error {
	p, err := s.g.processes.get(req.GetProcessId())
	if err != nil {
		return err
	}
	return s.g.follow(ctx, p, req, stream)
}

// follow sends a process's output from the asked offset on.
func (g *Guest) follow(ctx context.Context, p *process, req *guestv1.AttachRequest, stream *eventStream) error {
	offset := req.GetOffset()
	if tail := req.GetTailBytes(); tail > 0 {
		_, end := p.spool.bounds()
		offset = end - min(tail, end)
	}
	r := p.spool.attach(offset, req.GetFollow())
	defer r.close()
	if err := sendStarted(p, stream); err != nil {
		return err
	}
	err := sendOutput(ctx, r, req.GetLimitBytes(), stream)
	if !errors.Is(err, io.EOF) {
		return err
	}
	if !r.atEnd() {
		return nil
	}
	<-p.done // it is being recorded
	return stream.Send(&guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Ended{Ended: p.snapshot()}})
}

// sendOutput sends what the reader finds, at most limit bytes unless that is 0.
// It returns io.EOF at the end or the limit.
func sendOutput(ctx context.Context, r *reader, limit uint64, stream *eventStream) error {
	left := limit
	for {
		if limit > 0 && left == 0 {
			return io.EOF
		}
		if err := r.ready(ctx); err != nil {
			return err
		}
		sent, err := sendChunk(r, left, stream)
		if err != nil {
			return err
		}
		left -= min(left, sent)
	}
}

func sendChunk(r *reader, most uint64, stream *eventStream) (uint64, error) {
	buf := chunkBuffers.Get().(*[]byte)
	defer chunkBuffers.Put(buf)
	room := *buf
	if most > 0 && most < uint64(len(room)) {
		room = room[:most]
	}
	c, err := r.read(room)
	if err != nil {
		return 0, err
	}
	event := &guestv1.ProcessEvent{}
	if c.gap > 0 {
		event.Event = &guestv1.ProcessEvent_Gap{Gap: &guestv1.Gap{Offset: c.offset, Bytes: c.gap}}
	} else {
		event.Event = &guestv1.ProcessEvent_Output{Output: &guestv1.Output{Offset: c.offset, Stream: c.stream, Data: c.data}}
	}
	if err := stream.Send(event); err != nil {
		return 0, err
	}
	n := uint64(len(c.data))
	r.advance(c.offset + n + c.gap)
	return n, nil
}

func (s processService) Input(ctx context.Context, req *guestv1.InputRequest) (*guestv1.InputResponse, error) {
	p, err := s.g.processes.get(req.GetProcessId())
	if err != nil {
		return nil, err
	}
	if len(req.GetData()) > inputMessageMost {
		return nil, api.Errorf(api.InvalidArgument, "input of %d bytes: at most %d are possible in one call", len(req.GetData()), inputMessageMost)
	}
	taken, err := p.input.put(ctx, req.GetOffset(), req.GetData(), req.GetClose())
	if err != nil {
		return nil, err
	}
	return &guestv1.InputResponse{InputBytes: taken}, nil
}

func (s processService) Resize(_ context.Context, req *guestv1.ResizeRequest) (*guestv1.ResizeResponse, error) {
	p, err := s.g.processes.get(req.GetProcessId())
	if err != nil {
		return nil, err
	}
	if req.GetRows() == 0 || req.GetColumns() == 0 {
		return nil, api.Errorf(api.InvalidArgument, "resize: rows and columns must be at least 1")
	}
	if err := checkTerminal(&guestv1.Terminal{Rows: req.GetRows(), Columns: req.GetColumns()}); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.info.GetTty() {
		return nil, api.Errorf(api.FailedPrecondition, "resize: process %s has no terminal", p.id)
	}
	if p.tty == nil {
		return nil, errHasEnded("resize", p.id)
	}
	if err := resizeTerminal(p.tty, req.GetRows(), req.GetColumns()); err != nil {
		return nil, api.Errorf(api.Internal, "resize the terminal of process %s: %w", p.id, err)
	}
	return &guestv1.ResizeResponse{}, nil
}

func errHasEnded(operation, id string) error {
	return api.Errorf(api.FailedPrecondition, "%s: process %s has ended", operation, id)
}

func (s processService) Signal(_ context.Context, req *guestv1.SignalRequest) (*guestv1.SignalResponse, error) {
	p, err := s.g.processes.get(req.GetProcessId())
	if err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(strings.ToUpper(req.GetSignal()), "SIG")
	number := unix.SignalNum("SIG" + name)
	if number == 0 {
		return nil, api.Errorf(api.InvalidArgument, "signal %.40q: there is no such signal", req.GetSignal()).
			WithNext("use a name such as INT, TERM or KILL")
	}
	err = s.g.reaper.signal(p.target(), number, p.alive)
	switch {
	case errors.Is(err, os.ErrProcessDone), errors.Is(err, syscall.ESRCH):
		return nil, errHasEnded("signal", p.id)
	case err != nil:
		return nil, api.Errorf(api.Internal, "signal process %s: %w", p.id, err)
	}
	return &guestv1.SignalResponse{Process: p.snapshot()}, nil
}

func (p *process) setTerminal(tty *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tty = tty
}

// group is the process group that the process leads.
func (p *process) group() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.info.GetPid())
}

// target is the group that signals go to: the one in the foreground of its
// terminal, else its own.
func (p *process) target() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tty != nil {
		if group, err := foreground(p.tty); err == nil && group > 1 {
			return group
		}
	}
	return int(p.info.GetPid())
}

func (s processService) GetProcess(_ context.Context, req *guestv1.GetProcessRequest) (*guestv1.Process, error) {
	p, err := s.g.processes.get(req.GetProcessId())
	if err != nil {
		return nil, err
	}
	return p.snapshot(), nil
}

func (s processService) ListProcesses(_ context.Context, req *guestv1.ListProcessesRequest) (*guestv1.ListProcessesResponse, error) {
	resp := &guestv1.ListProcessesResponse{}
	for _, p := range s.g.processes.list() {
		if !req.GetRunning() || p.running() {
			resp.Processes = append(resp.Processes, p.snapshot())
		}
	}
	return resp, nil
}
