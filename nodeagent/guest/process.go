//go:build linux

package guest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

const (
	// outputGrace is how long a process that has ended is waited for to close its
	// output, which a child in the background may have inherited. What the child
	// writes after it is read and thrown away, so that it does not die of it.
	// A terminal is hung up instead.
	outputGrace = 2 * time.Second
	// drainMost is read from a pipe at the end of that time: the largest pipe
	// that an ordinary user can have.
	drainMost = 1 << 20
	// pumpBuffer is the most that is read from a process at once.
	pumpBuffer = 128 << 10
)

var pumpBuffers = sync.Pool{New: func() any { b := make([]byte, pumpBuffer); return &b }}

// process is one command, running or ended.
type process struct {
	id    string
	dir   string
	spool *spool
	input *input

	mu     sync.Mutex
	info   *guestv1.Process
	lost   bool // the instance ends under it
	reaped bool
	tty    *os.File

	// exited gets the status once. done is closed when the process has ended,
	// its output is complete and its record is written.
	exited chan syscall.WaitStatus
	done   chan struct{}
}

func newProcess(dir string, info *guestv1.Process, spool *spool, in *input) *process {
	return &process{
		id: info.GetId(), dir: dir, spool: spool, input: in, info: info,
		exited: make(chan syscall.WaitStatus, 1), done: make(chan struct{}),
	}
}

// loadProcess makes a process of a folder that an earlier guest left.
func loadProcess(dir, id string) (*process, error) {
	spool, err := loadSpool(dir)
	if err != nil {
		return nil, err
	}
	info := loadRecord(dir, id)
	in := newInput(nil, false, false)
	in.taken = info.GetInputBytes()
	p := newProcess(dir, info, spool, in)
	p.reaped = true
	if spool.end < info.GetOutputBytes() {
		spool.end = info.GetOutputBytes()
	}
	close(p.done)
	return p, nil
}

// snapshot is the process as it is now.
func (p *process) snapshot() *guestv1.Process {
	p.mu.Lock()
	info := proto.Clone(p.info).(*guestv1.Process)
	p.mu.Unlock()
	info.OutputKeptFrom, info.OutputBytes = p.spool.bounds()
	info.InputBytes, info.InputOpen = p.input.state()
	return info
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// onExit is called by the reaper.
func (p *process) onExit(status syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	p.exited <- status
}

// lose says that the instance is about to end under the process.
func (p *process) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = true
}

func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.reaped
}

// tend sees a started process through to its end. outputs are our ends of its
// pipes, or the one of its terminal.
func (p *process) tend(ctx, hold context.Context, outputs []outlet, run func(func()), log *slog.Logger) {
	drained := make(chan struct{}, len(outputs))
	for _, out := range outputs {
		run(func() { p.pump(ctx, hold, out, func() { drained <- struct{}{} }) })
	}
	status := <-p.exited
	p.input.stop()
	for _, out := range outputs {
		_ = out.file.SetReadDeadline(time.Now().Add(outputGrace))
	}
	for range outputs {
		<-drained
	}
	p.mu.Lock()
	tty := p.tty
	p.tty = nil
	if status.Signaled() {
		p.info.State = guestv1.ProcessState_PROCESS_STATE_SIGNALLED
		if p.lost {
			p.info.State = guestv1.ProcessState_PROCESS_STATE_LOST
			p.info.Message = "its instance was stopped while it ran"
		}
		p.info.Signal = int32(status.Signal())
		p.info.ExitCode = 128 + p.info.Signal
	} else {
		p.info.State = guestv1.ProcessState_PROCESS_STATE_EXITED
		p.info.ExitCode = int32(status.ExitStatus())
	}
	p.mu.Unlock()
	if tty != nil {
		_ = tty.Close()
	}
	p.finish(log)
}

// finish records the end. The state was set before.
func (p *process) finish(log *slog.Logger) {
	p.mu.Lock()
	p.info.EndedAt = timestamppb.Now()
	p.mu.Unlock()
	p.input.stop()
	record := func() error { return writeRecord(p.dir, endedFile, p.snapshot()) }
	if err := reserveOf(filepath.Dir(p.dir)).spend(record); err != nil {
		log.Error("record the end of a process", "process", p.id, "error", err)
	}
	p.spool.finish()
	close(p.done)
}

// outlet is where output of a process comes out.
type outlet struct {
	file   *os.File
	stream guestv1.OutputStream
	tty    bool
}

// pump moves output into the spool until its end. drained is called when the
// process's own output is complete: at the end of the stream, or when the
// deadline that tend sets has passed and nothing is left in the pipe.
func (p *process) pump(ctx, hold context.Context, out outlet, drained func()) {
	if !out.tty {
		defer func() { _ = out.file.Close() }()
	}
	conn, err := out.file.SyscallConn()
	if err != nil {
		drained()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = out.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	late := false
	for {
		buf, err := readSome(conn)
		if buf != nil {
			err = p.spool.write(hold, out.stream, *buf)
			*buf = (*buf)[:pumpBuffer]
			pumpBuffers.Put(buf)
			if err == nil || late {
				continue
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || late {
			break
		}
		p.drain(hold, conn, out.stream)
		if out.tty {
			break
		}
		drained()
		late = true
		if ctx.Err() != nil || out.file.SetReadDeadline(time.Time{}) != nil || ctx.Err() != nil {
			return
		}
	}
	if !late {
		drained()
	}
}

// readSome waits for output and returns it in a buffer of the pool. No buffer is
// held while a process is silent.
func readSome(conn syscall.RawConn) (*[]byte, error) {
	var got *[]byte
	var failed error
	err := conn.Read(func(fd uintptr) bool {
		got, failed = readNow(int(fd))
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err != nil {
		return nil, err
	}
	return got, failed
}

func readNow(fd int) (*[]byte, error) {
	buf := pumpBuffers.Get().(*[]byte)
	for {
		n, err := unix.Read(fd, *buf)
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			*buf = (*buf)[:n]
			return buf, nil
		}
		pumpBuffers.Put(buf)
		if err == nil || err == unix.EIO { // EIO: all ends of the terminal are closed
			err = io.EOF
		}
		return nil, err
	}
}

// drain takes what still stands in a pipe without waiting for more.
func (p *process) drain(hold context.Context, conn syscall.RawConn, stream guestv1.OutputStream) {
	for total := 0; total < drainMost; {
		var got *[]byte
		err := conn.Control(func(fd uintptr) { got, _ = readNow(int(fd)) })
		if err != nil || got == nil {
			return
		}
		total += len(*got)
		_ = p.spool.write(hold, stream, *got)
		*got = (*got)[:pumpBuffer]
		pumpBuffers.Put(got)
	}
}
