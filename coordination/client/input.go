package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// inputPart is the most that one Input call carries.
const inputPart = 64 << 10

// senders carry what goes towards a command while its output is followed.
type senders struct {
	guest *Guest
	id    string
	// fail ends the run when input cannot go on and the command would wait for ever.
	fail func(error)
}

// begin starts a sender for each of the caller's sources; all end with ctx. What
// it returns is to be called when the link works again: the terminal's size is
// then sent once more, since the last may have been lost.
func (s *senders) begin(ctx context.Context, owner *conc.WaitGroup, opts RunOptions, input uint64) (restored func()) {
	if opts.Stdin != nil {
		parts := s.reader(ctx, owner, opts.Stdin)
		owner.Go(func() { s.input(ctx, parts, input) })
	}
	if opts.Signals != nil {
		owner.Go(func() { s.signals(ctx, opts.Signals) })
	}
	if opts.Resize == nil {
		return func() {}
	}
	again := make(chan struct{}, 1)
	owner.Go(func() { s.resize(ctx, opts.Resize, again) })
	return func() {
		select {
		case again <- struct{}{}:
		default:
		}
	}
}

type inputChunk struct {
	data []byte
	end  bool
}

// reader reads stdin ahead by one part. The Read itself cannot be cancelled in
// general, so only a stdin that takes a deadline is waited for.
func (s *senders) reader(ctx context.Context, owner *conc.WaitGroup, stdin io.Reader) <-chan inputChunk {
	parts := make(chan inputChunk)
	read := func() {
		for {
			buf := make([]byte, inputPart)
			n, err := stdin.Read(buf)
			select {
			case parts <- inputChunk{data: buf[:n], end: err != nil}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}
	d, ok := stdin.(interface{ SetReadDeadline(time.Time) error })
	if !ok || d.SetReadDeadline(time.Time{}) != nil {
		go read()
		return parts
	}
	done := make(chan struct{})
	owner.Go(func() {
		defer close(done)
		read()
	})
	owner.Go(func() {
		select {
		case <-done:
		case <-ctx.Done():
			_ = d.SetReadDeadline(time.Unix(1, 0))
			<-done
			_ = d.SetReadDeadline(time.Time{})
		}
	})
	return parts
}

// input sends the parts in order, each until it was taken. The guest skips what
// it took before, so a repeat after a lost link does no harm.
func (s *senders) input(ctx context.Context, parts <-chan inputChunk, offset uint64) {
	for {
		var part inputChunk
		select {
		case part = <-parts:
		case <-ctx.Done():
			return
		}
		if len(part.data) == 0 && !part.end {
			continue
		}
		err := persist(ctx, func() error {
			_, err := s.guest.Processes.Input(ctx, &guestv1.InputRequest{
				ProcessId: s.id, Offset: offset, Data: part.data, Close: part.end,
			})
			return err
		})
		switch api.CodeOf(err) {
		case "":
		case api.FailedPrecondition, api.NotFound:
			// The command has closed its input or has ended; its output says the rest.
			return
		default:
			if ctx.Err() == nil {
				s.fail(err)
			}
			return
		}
		if part.end {
			return
		}
		offset += uint64(len(part.data))
	}
}

func (s *senders) signals(ctx context.Context, signals <-chan string) {
	for {
		select {
		case name, ok := <-signals:
			if !ok {
				return
			}
			// A signal to a process that has just ended has nobody to reach.
			_ = persist(ctx, func() error {
				_, err := s.guest.Processes.Signal(ctx, &guestv1.SignalRequest{ProcessId: s.id, Signal: name})
				return err
			})
		case <-ctx.Done():
			return
		}
	}
}

// resize sends the newest size only: an older one that was lost does not matter.
func (s *senders) resize(ctx context.Context, sizes <-chan Size, again <-chan struct{}) {
	var size Size
	for {
		select {
		case next, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			size = next
		case <-again:
		case <-ctx.Done():
			return
		}
		if size == (Size{}) {
			continue
		}
		_, _ = s.guest.Processes.Resize(ctx, &guestv1.ResizeRequest{ProcessId: s.id, Rows: size.Rows, Columns: size.Columns})
	}
}

// persist repeats call while the link is lost.
func persist(ctx context.Context, call func() error) error {
	retry := newBackoff()
	for {
		err := call()
		if err == nil || !lost(err) {
			return err
		}
		if pauseErr := retry.pause(ctx); pauseErr != nil {
			return errors.Join(pauseErr, err)
		}
	}
}
