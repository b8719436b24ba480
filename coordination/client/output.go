package client

import (
	"io"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// writeError is the caller's own writer failing, which no new link repairs.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// read takes one stream to its end. done says that nothing more is to come;
// progress that at least one event came.
func (r *run) read(s stream, alive func()) (done, progress bool, err error) {
	for s.receive() {
		if !progress {
			progress = true
			alive()
		}
		ended, err := r.event(s.Msg())
		if err != nil || ended {
			return ended, true, err
		}
	}
	if err := s.Err(); err != nil {
		return false, progress, err
	}
	// A stream that ends without a word ends well only where that was asked for.
	if progress && (r.detach || !r.follow) {
		return true, true, nil
	}
	return false, progress, io.ErrUnexpectedEOF
}

// event takes one event. Offsets are the guest's word: they order its own bytes
// and decide nothing else.
func (r *run) event(e *guestv1.ProcessEvent) (ended bool, err error) {
	switch e := e.GetEvent().(type) {
	case *guestv1.ProcessEvent_Started:
		if r.last == nil && r.opts.OnStarted != nil {
			r.opts.OnStarted(e.Started)
		}
		r.last = e.Started
		if !r.positioned && r.tail > 0 {
			r.next = max(e.Started.GetOutputKeptFrom(), e.Started.GetOutputBytes()-min(r.tail, e.Started.GetOutputBytes()))
		}
		r.positioned = true
	case *guestv1.ProcessEvent_Output:
		return r.output(e.Output)
	case *guestv1.ProcessEvent_Gap:
		if end := e.Gap.GetOffset() + e.Gap.GetBytes(); end > r.next {
			if r.opts.OnGap != nil {
				r.opts.OnGap(e.Gap.GetOffset(), e.Gap.GetBytes())
			}
			r.next = end
		}
	case *guestv1.ProcessEvent_Ended:
		r.last = e.Ended
		return true, nil
	}
	return false, nil
}

func (r *run) output(o *guestv1.Output) (ended bool, err error) {
	data := o.GetData()
	if o.GetOffset() < r.next {
		// Sent before the link broke.
		data = data[min(uint64(len(data)), r.next-o.GetOffset()):]
	}
	r.next = max(r.next, o.GetOffset()+uint64(len(o.GetData())))
	w := r.opts.Stdout
	if o.GetStream() == guestv1.OutputStream_OUTPUT_STREAM_STDERR {
		w = r.opts.Stderr
	}
	if w != nil && len(data) > 0 {
		if _, err := w.Write(data); err != nil {
			return false, &writeError{err}
		}
	}
	if r.limit == 0 {
		return false, nil
	}
	if uint64(len(data)) >= r.limit {
		r.limit = 0
		return true, nil
	}
	r.limit -= uint64(len(data))
	return false, nil
}
