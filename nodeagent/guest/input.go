//go:build linux

package guest

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

const (
	// inputMost bounds what was taken and not yet read by the process.
	inputMost = 1 << 20
	// inputMessageMost bounds one call.
	inputMessageMost = 4 << 20
)

// input is a process's standard input: what callers gave and the process has not
// read yet. Offsets make a repeated call harmless.
type input struct {
	mu      sync.Mutex
	changed condition
	pending []byte
	taken   uint64
	// closed: the end of the input was given.
	closed bool
	// broken: the process reads no more.
	broken bool
	// tty: the end is a character typed, not the closing of a pipe.
	tty  bool
	file *os.File
}

// newInput begins with the bytes of a start request.
func newInput(first []byte, open, tty bool) *input {
	return &input{pending: first, taken: uint64(len(first)), closed: !open, tty: tty}
}

// put takes data that begins at offset and returns how much was taken in all. It
// waits while too much is pending.
func (in *input) put(ctx context.Context, offset uint64, data []byte, end bool) (uint64, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		if offset > in.taken {
			return in.taken, api.Errorf(api.Conflict, "input: offset %d is beyond the %d bytes taken so far", offset, in.taken).
				WithNext("send the bytes from offset %d on", in.taken)
		}
		if known := in.taken - offset; known > 0 {
			n := min(known, uint64(len(data)))
			data, offset = data[n:], offset+n
		}
		if len(data) == 0 {
			break
		}
		if in.closed || in.broken {
			return in.taken, api.Errorf(api.FailedPrecondition, "input: the process takes no more input")
		}
		if n := min(inputMost-len(in.pending), len(data)); n > 0 {
			in.pending = append(in.pending, data[:n]...)
			in.taken += uint64(n)
			in.changed.notify()
			continue
		}
		if err := in.changed.wait(ctx, &in.mu); err != nil {
			return in.taken, err
		}
	}
	if end && !in.closed {
		in.closed = true
		in.changed.notify()
	}
	return in.taken, nil
}

// connect gives the process's end, before feed.
func (in *input) connect(file *os.File) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.file = file
}

// stop says that the process reads no more.
func (in *input) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.broken, in.pending = true, nil
	if in.file != nil {
		_ = in.file.SetWriteDeadline(time.Unix(1, 0)) // a child may hold a full pipe open
	}
	in.changed.notify()
}

// state is the number of bytes taken and whether more can be.
func (in *input) state() (taken uint64, open bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.taken, !in.closed && !in.broken
}

// feed writes to the process until the input ends or nobody reads it, and
// closes a pipe at the end.
func (in *input) feed(ctx context.Context) {
	defer in.stop()
	defer context.AfterFunc(ctx, in.stop)()
	file := in.file
	if !in.tty {
		defer func() { _ = file.Close() }()
	}
	line := true // the last byte ended a line
	for {
		data, end := in.next(ctx)
		if len(data) > 0 {
			if _, err := file.Write(data); err != nil {
				return
			}
			line = data[len(data)-1] == '\n'
		}
		if !end {
			continue
		}
		if in.tty && ctx.Err() == nil {
			// The terminal's end-of-file character ends a line that is not empty first.
			eof := []byte{4}
			if !line {
				eof = []byte{4, 4}
			}
			_, _ = file.Write(eof)
		}
		return
	}
}

// next waits for pending bytes or the end.
func (in *input) next(ctx context.Context) (data []byte, end bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.pending) == 0 && !in.closed && !in.broken {
		if err := in.changed.wait(ctx, &in.mu); err != nil {
			return nil, true
		}
	}
	n := min(len(in.pending), 64<<10)
	data = append(data, in.pending[:n]...)
	in.pending = in.pending[n:]
	if len(in.pending) == 0 {
		in.pending = nil
	}
	in.changed.notify()
	return data, in.broken || in.closed && len(in.pending) == 0
}
