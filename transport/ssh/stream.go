package ssh

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// sides of a stream's channel that the stream writes and closes.
type channel interface {
	io.Writer
	io.Closer
	CloseWrite() error
}

// Sizes of what a stream reads at once. An idle one holds the small buffer only;
// a node's connections should cost little memory when nothing flows.
const (
	smallRead = 2 << 10
	largeRead = 32 << 10
)

var largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeRead); return &b }}

// stream is a net.Conn over an SSH channel. x/crypto's channels know no
// deadlines. Reads honour them because a goroutine of the stream's own reads
// ahead by at most one buffer. Writes under a deadline that passes spoil the
// stream, as with TLS: what was sent is not known. A write deadline that is set
// while a write without one is under way is refused with an error.
type stream struct {
	link  *link
	ch    channel
	src   io.Reader
	ended <-chan error

	local, remote net.Addr

	chunks chan []byte   // from the reading goroutine
	drawn  chan struct{} // the last chunk was used up
	closed chan struct{}
	once   sync.Once

	readMu  sync.Mutex // one reader at a time
	pending []byte
	readEnd error // written before chunks is closed
	reads   *deadline

	writeMu sync.Mutex // one writer at a time
	writes  *deadline
	stateMu sync.Mutex
	blind   bool  // a write without a deadline is under way
	spoiled error // all further writes fail with it
}

// socketAddr is the agent's socket as a net.Addr.
type socketAddr string

func (socketAddr) Network() string  { return "unix" }
func (a socketAddr) String() string { return string(a) }

// newStream makes a stream that writes to ch and reads from src. ended, when not
// nil, tells how the program behind the channel ended.
func newStream(l *link, ch channel, src io.Reader, ended <-chan error) net.Conn {
	s := &stream{
		link: l, ch: ch, src: src, ended: ended,
		local: socketAddr("vendetta"), remote: socketAddr(l.options.Socket),
		chunks: make(chan []byte), drawn: make(chan struct{}), closed: make(chan struct{}),
		reads: newDeadline(), writes: newDeadline(),
	}
	if !l.spawn(s.pump) {
		s.readEnd = errLost
		close(s.chunks)
	}
	return s
}

// pump reads from the channel and hands over, one buffer at a time.
func (s *stream) pump() {
	defer close(s.chunks)
	small := make([]byte, smallRead)
	buf, large := small, (*[]byte)(nil)
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	for {
		n, err := s.src.Read(buf)
		if n > 0 && !s.hand(buf[:n]) {
			// A late Read may still copy from the buffer, so it is not used again.
			large = nil
			s.readEnd = net.ErrClosed
			_, _ = io.Copy(io.Discard, s.src)
			return
		}
		if err != nil {
			s.readEnd = s.explain(err)
			return
		}
		switch {
		case n == len(buf) && large == nil:
			large = largeBuffers.Get().(*[]byte)
			buf = *large
		case n < smallRead && large != nil:
			largeBuffers.Put(large)
			buf, large = small, nil
		}
	}
}

// hand gives a chunk to the reader and waits until it was used up.
func (s *stream) hand(chunk []byte) bool {
	select {
	case s.chunks <- chunk:
	case <-s.closed:
		return false
	}
	select {
	case <-s.drawn:
		return true
	case <-s.closed:
		return false
	}
}

// explain tells the agent's end of the stream from the loss of the connection,
// which x/crypto both calls EOF.
func (s *stream) explain(err error) error {
	switch {
	case s.link.broken():
		return &net.OpError{Op: "read", Net: "ssh", Addr: s.remote, Err: errLost}
	case !errors.Is(err, io.EOF):
	case s.ended == nil:
		return io.EOF
	default:
		// A program that was killed has not ended the stream as the agent would.
		if err = <-s.ended; err == nil {
			return io.EOF
		}
	}
	return &net.OpError{Op: "read", Net: "ssh", Addr: s.remote, Err: err}
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.readMu.Lock()
	defer s.readMu.Unlock()
	for len(s.pending) == 0 {
		expired := s.reads.wait()
		select {
		case <-s.closed:
			return 0, net.ErrClosed
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		default:
		}
		select {
		case chunk, ok := <-s.chunks:
			if !ok {
				return 0, s.readEnd
			}
			s.pending = chunk
		case <-s.closed:
			return 0, net.ErrClosed
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		}
	}
	n := copy(p, s.pending)
	s.pending = s.pending[n:]
	if len(s.pending) == 0 {
		s.pending = nil
		select {
		case s.drawn <- struct{}{}:
		case <-s.closed:
		}
	}
	return n, nil
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	expired, err := s.beginWrite()
	if err != nil {
		return 0, err
	}
	if expired == nil {
		n, err := s.ch.Write(p)
		s.stateMu.Lock()
		s.blind = false
		s.stateMu.Unlock()
		return n, s.writeError(err)
	}
	return s.writeUntil(p, expired)
}

// beginWrite returns the channel that closes when the deadline passes, nil when
// there is none.
func (s *stream) beginWrite() (<-chan struct{}, error) {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	default:
	}
	if s.spoiled != nil {
		return nil, s.spoiled
	}
	if !s.writes.armed() {
		s.blind = true
		return nil, nil
	}
	return s.writes.wait(), nil
}

// writeUntil writes a copy of p, since p belongs to the caller again once the
// deadline has passed.
func (s *stream) writeUntil(p []byte, expired <-chan struct{}) (int, error) {
	select {
	case <-expired:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	data := append([]byte(nil), p...)
	if !s.link.spawn(func() {
		n, err := s.ch.Write(data)
		done <- result{n, err}
	}) {
		return 0, s.writeError(errLost)
	}
	select {
	case r := <-done:
		return r.n, s.writeError(r.err)
	case <-s.closed:
		return 0, net.ErrClosed
	case <-s.link.done:
		return 0, s.writeError(errLost)
	case <-expired:
		s.stateMu.Lock()
		s.spoiled = os.ErrDeadlineExceeded
		s.stateMu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
}

func (s *stream) writeError(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-s.closed:
		return net.ErrClosed
	default:
	}
	if s.link.broken() {
		err = errLost
	} else if errors.Is(err, io.EOF) {
		// x/crypto's word for a channel that the other side has closed.
		err = io.ErrClosedPipe
	}
	return &net.OpError{Op: "write", Net: "ssh", Addr: s.remote, Err: err}
}

// CloseWrite ends the sending side, once a write that is under way has ended.
func (s *stream) CloseWrite() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.stateMu.Lock()
	spoiled := s.spoiled
	s.stateMu.Unlock()
	if spoiled != nil {
		return spoiled
	}
	return s.writeError(s.ch.CloseWrite())
}

// Close implements net.Conn. It does not wait for the other side.
func (s *stream) Close() error {
	again := true
	s.once.Do(func() {
		again = false
		close(s.closed)
	})
	if again {
		return net.ErrClosed
	}
	s.reads.stop()
	s.writes.stop()
	// On a connection that is stuck this blocks until keepalive ends it; on one
	// that has ended there is nothing left to close.
	s.link.spawn(func() {
		_ = s.ch.Close()
	})
	return nil
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.local }

// RemoteAddr implements net.Conn: the agent's socket.
func (s *stream) RemoteAddr() net.Addr { return s.remote }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error {
	select {
	case <-s.closed:
		return net.ErrClosed
	default:
	}
	s.reads.set(t)
	return nil
}

// errBlindWrite answers a deadline that comes too late to be honoured.
var errBlindWrite = errors.New("set write deadline: a write without one is under way")

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	select {
	case <-s.closed:
		return net.ErrClosed
	default:
	}
	if s.blind && !t.IsZero() {
		return errBlindWrite
	}
	s.writes.set(t)
	return nil
}
