package client

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// startGrace is how long Run asks after a command whose start was cut off before
// it answers that nobody knows.
const startGrace = 10 * time.Second

// Size is a terminal's.
type Size struct{ Rows, Columns uint32 }

// RunOptions says where a command's streams go. All fields may be left empty.
type RunOptions struct {
	// Stdout and Stderr get the output as it comes; while a Write blocks nothing
	// more is taken from the guest. A failed Write ends the call, not the command.
	Stdout, Stderr io.Writer
	// Stdin is sent until it ends; its end closes the command's input. A Read
	// that blocks when the command ends is interrupted where Stdin has
	// SetReadDeadline, and is otherwise left to return into nothing.
	Stdin io.Reader
	// Resize and Signals pass on what arrives until they are closed. A signal
	// is sent again when the link broke under it, so it can arrive twice.
	Resize  <-chan Size
	Signals <-chan string
	// OnStarted is called once, when the guest has the command.
	OnStarted func(*guestv1.Process)
	// OnLinkLost is called once when the stream broke, OnRestored once when it
	// goes on. OnGap says that the guest had dropped bytes of output.
	OnLinkLost func(error)
	OnRestored func()
	OnGap      func(offset, bytes uint64)
}

// Run starts a command and stays with it until it has ended, however often the
// link is lost. It returns the process as the guest last described it.
//
// The command is started at most once. When the link breaks before the guest has
// answered, Run asks for the process by its id: it goes on if the process is
// there, says that it was not started if it is not, and says that its fate is
// unknown if nobody can tell for ten seconds. When ctx ends, Run returns and the
// command goes on.
func (g *Guest) Run(ctx context.Context, req *guestv1.StartRequest, opts RunOptions) (*guestv1.Process, error) {
	if opts.Stdin != nil {
		req.StdinOpen = true
	}
	r := &run{guest: g, id: req.GetProcessId(), opts: opts, detach: req.GetDetach(), follow: true}
	return r.do(ctx, uint64(len(req.GetStdin())), func(ctx context.Context) (stream, error) { return g.start(ctx, req) })
}

// Attach follows a process that runs already, or reads what is kept of one that
// has ended, under the same promises as Run. Input goes on from where it stands.
func (g *Guest) Attach(ctx context.Context, req *guestv1.AttachRequest, opts RunOptions) (*guestv1.Process, error) {
	r := &run{
		guest: g, id: req.GetProcessId(), opts: opts,
		follow: req.GetFollow(), next: req.GetOffset(), tail: req.GetTailBytes(), limit: req.GetLimitBytes(),
	}
	var input uint64
	if opts.Stdin != nil {
		p, err := g.Processes.GetProcess(ctx, &guestv1.GetProcessRequest{ProcessId: r.id})
		if err != nil {
			return nil, err
		}
		input = p.GetInputBytes()
	}
	return r.do(ctx, input, nil)
}

// start begins a command. Its error is nil with an open stream, or final.
func (g *Guest) start(ctx context.Context, req *guestv1.StartRequest) (stream, error) {
	s, err := g.Processes.Start(ctx, req)
	if err == nil {
		if s.Receive() {
			return stream{s, true}, nil
		}
		if err = s.Err(); err == nil {
			err = io.ErrUnexpectedEOF
		}
		_ = s.Close()
	}
	if !lost(err) || errors.Is(err, errNotDialled) {
		return stream{}, err
	}
	return stream{}, g.askAfter(ctx, req.GetProcessId(), err)
}

// errStarted says that the process exists and its stream has to be attached to.
var errStarted = errors.New("started, but the stream was lost")

// askAfter finds out what became of a start that was cut off.
func (g *Guest) askAfter(ctx context.Context, id string, cause error) error {
	patience, cancel := context.WithTimeout(ctx, startGrace)
	defer cancel()
	retry := newBackoff()
	for {
		_, err := g.Processes.GetProcess(patience, &guestv1.GetProcessRequest{ProcessId: id})
		switch {
		case err == nil:
			return errStarted
		case api.CodeOf(err) == api.NotFound:
			return (&api.Error{
				Code:    api.Unavailable,
				Message: "start a command in " + g.workspace + ": the link was lost before the command reached the workspace, so it was not started",
				Cause:   cause,
			}).WithNext("run it again")
		}
		if patience.Err() != nil || retry.pause(patience) != nil {
			return g.unknown(id, cause, ctx.Err())
		}
	}
}

func (g *Guest) unknown(id string, cause, ended error) error {
	return (&api.Error{
		Code: api.Unavailable,
		Message: "start a command in " + g.workspace + ": unknown whether it was started: the link was lost and the workspace does not answer: " +
			api.From(cause).Message,
		Cause: errors.Join(cause, ended),
	}).WithNext("when the workspace is reachable again, look for process %s before running it again: vendetta workspace ps %s", id, g.workspace)
}

// stream is an open answer; primed means that its first message was received.
type stream struct {
	*connect.ServerStreamForClient[guestv1.ProcessEvent]
	primed bool
}

func (s *stream) receive() bool {
	if s.primed {
		s.primed = false
		return true
	}
	return s.Receive()
}

// run is one command being followed.
type run struct {
	guest  *Guest
	id     string
	opts   RunOptions
	detach bool
	follow bool
	// next is the offset of the next byte of output, known once positioned.
	next       uint64
	tail       uint64
	limit      uint64
	positioned bool
	last       *guestv1.Process
	restored   func()
}

func (r *run) do(ctx context.Context, input uint64, first func(context.Context) (stream, error)) (*guestv1.Process, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var side conc.WaitGroup
	defer side.Wait()
	defer cancel(context.Canceled)

	var started stream
	if first != nil {
		var err error
		started, err = first(ctx)
		switch {
		case errors.Is(err, errStarted) && r.detach:
			return r.guest.Processes.GetProcess(ctx, &guestv1.GetProcessRequest{ProcessId: r.id})
		case err != nil && !errors.Is(err, errStarted):
			return nil, err
		}
	}
	s := &senders{guest: r.guest, id: r.id, fail: func(err error) { cancel(&senderError{err}) }}
	r.restored = s.begin(ctx, &side, r.opts, input)
	p, err := r.follows(ctx, started)
	var failed *senderError
	if errors.As(context.Cause(ctx), &failed) {
		err = failed.err
	}
	return p, err
}

type senderError struct{ err error }

func (e *senderError) Error() string { return e.err.Error() }

// follows reads the output to its end, attaching anew whenever the link is lost.
func (r *run) follows(ctx context.Context, s stream) (*guestv1.Process, error) {
	retry := newBackoff()
	broken := false
	for {
		var done bool
		var err error
		if s.ServerStreamForClient != nil {
			var progress bool
			done, progress, err = r.read(s, func() { r.announce(&broken, nil) })
			if progress {
				retry.reset()
			}
			_ = s.Close()
			s = stream{}
			var stop *writeError
			switch {
			case done:
				return r.last, nil
			case errors.As(err, &stop):
				return r.last, stop.err
			}
		} else if s.ServerStreamForClient, err = r.attach(ctx); err == nil {
			continue
		}
		switch {
		case ctx.Err() != nil:
			return r.last, ctx.Err()
		case !lost(err):
			return r.last, err
		}
		r.announce(&broken, err)
		if err := retry.pause(ctx); err != nil {
			return r.last, err
		}
	}
}

// announce tells the caller that the link broke (err is set) or that it works
// again, once each.
func (r *run) announce(broken *bool, err error) {
	switch {
	case err != nil && !*broken:
		*broken = true
		if r.opts.OnLinkLost != nil {
			r.opts.OnLinkLost(err)
		}
	case err == nil && *broken:
		*broken = false
		r.restored()
		if r.opts.OnRestored != nil {
			r.opts.OnRestored()
		}
	}
}

func (r *run) attach(ctx context.Context) (*connect.ServerStreamForClient[guestv1.ProcessEvent], error) {
	req := &guestv1.AttachRequest{ProcessId: r.id, Offset: r.next, Follow: r.follow, LimitBytes: r.limit}
	if !r.positioned {
		req.TailBytes = r.tail
	}
	return r.guest.Processes.Attach(ctx, req)
}
