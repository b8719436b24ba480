package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// SocketName is the socket's name in the folder; providers.GuestSocket says the same.
const SocketName = "guest.sock"

// drainLimit bounds how many waiting dials one Connect looks at, so that a guest
// that dials in a loop cannot keep it busy.
const drainLimit = 1024

var (
	// ErrReplaced ends a Connect that a later Connect took the place of.
	ErrReplaced = errors.New("a later connect took its place")
	// ErrClosed ends a Connect on a listener that was closed.
	ErrClosed = errors.New("listener closed")
)

// Options of a Listener. The zero value is right where the instance's root is
// the agent's own user or holds CAP_DAC_OVERRIDE over its files.
type Options struct {
	// DirMode of the folder; 0 means 0755. The folder must be searchable for the
	// guest, so what keeps other users of the machine out is its parent, which
	// the caller makes 0700.
	DirMode fs.FileMode
	// SocketMode; 0 means 0600. A guest whose root is mapped to another user of
	// the machine needs 0666.
	SocketMode fs.FileMode
	// Peer decides who may be the guest, by the user id that the kernel names
	// for the dialling process, as seen from here. Nil takes everybody. Where
	// the kernel does not tell (not on Linux), it is not asked.
	Peer func(uid uint32) error
	// Logger is told of refused peers; nil means nobody is.
	Logger *slog.Logger
}

// Listener is the agent's end of one instance's meeting point.
//
// Nothing is accepted before Connect asks for it: a dialling guest waits in the
// kernel's queue, so a guest that dials in a loop costs the agent nothing.
type Listener struct {
	socket *net.UnixListener
	peer   func(uid uint32) error
	log    *slog.Logger
	closed chan struct{}
	once   sync.Once
	turn   chan struct{} // holds one token; its holder accepts

	mu      sync.Mutex
	waiting context.CancelCauseFunc // ends the present Connect
	current net.Conn                // handed out last
}

// Listen makes dir where it is missing and listens on SocketName in it. A socket
// that stands there already, of an agent that died say, is replaced at once: a
// dial meets the old one or the new one, never none. The parent's mode is the
// caller's business.
func Listen(dir string, opts Options) (*Listener, error) {
	if opts.DirMode == 0 {
		opts.DirMode = 0o755
	}
	if opts.SocketMode == 0 {
		opts.SocketMode = 0o600
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, opts.DirMode); err != nil {
		return nil, fmt.Errorf("make link folder: %w", err)
	}
	// MkdirAll's mode goes through the umask.
	if err := os.Chmod(dir, opts.DirMode); err != nil {
		return nil, fmt.Errorf("make link folder: %w", err)
	}
	socket, err := bind(dir, opts.SocketMode)
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", dir, err)
	}
	return &Listener{
		socket: socket,
		peer:   opts.Peer,
		log:    opts.Logger,
		closed: make(chan struct{}),
		turn:   make(chan struct{}, 1),
	}, nil
}

// bind listens under a temporary name, sets the mode and renames, so that the
// socket never stands under its name with a mode that is too wide.
func bind(dir string, mode fs.FileMode) (*net.UnixListener, error) {
	fresh := filepath.Join(dir, ".new.sock")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	address, release, err := socketAddress(dir, filepath.Base(fresh))
	if err != nil {
		return nil, err
	}
	defer release()
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Closing must not remove a file that a later listener put there.
	socket.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, mode)
	if err == nil {
		err = os.Rename(fresh, filepath.Join(dir, SocketName))
	}
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return socket, nil
}

// Connect returns the newest stream that a guest dialled, waiting for one until
// ctx ends. The stream handed out before is closed, which makes its guest dial
// again; a Connect that still waits ends with ErrReplaced. The stream is the
// caller's to close.
func (l *Listener) Connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopClosed := l.cancelOnClose(cancel)
	defer stopClosed()

	l.mu.Lock()
	if l.waiting != nil {
		l.waiting(ErrReplaced)
	}
	l.waiting = cancel
	l.mu.Unlock()

	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if ctx.Err() != nil { // with both at once, either is taken
		return nil, context.Cause(ctx)
	}
	l.hangUp()
	return l.accept(ctx)
}

// accept waits for a dial and returns the newest one that is still alive. The
// caller holds the turn.
func (l *Listener) accept(ctx context.Context) (net.Conn, error) {
	if err := l.socket.SetDeadline(time.Time{}); err != nil {
		return nil, ErrClosed
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		// A closed socket has ended Accept already.
		_ = l.socket.SetDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-fired
		}
	}()
	var newest net.Conn
	for range drainLimit {
		if newest != nil && !l.ready() {
			break
		}
		conn, err := l.socket.AcceptUnix()
		if err != nil {
			if newest != nil {
				_ = newest.Close()
			}
			switch {
			case errors.Is(err, net.ErrClosed):
				return nil, ErrClosed
			case ctx.Err() != nil:
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("accept guest: %w", err)
		}
		if !l.admit(conn) {
			_ = conn.Close()
			continue
		}
		if newest != nil {
			_ = newest.Close()
		}
		newest = conn
	}
	if newest == nil {
		return nil, fmt.Errorf("accept guest: %d dials and none of them was a guest's", drainLimit)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		_ = newest.Close() // Close has looked for it already
		return nil, ErrClosed
	default:
	}
	l.current = newest
	return newest, nil
}

// admit says whether conn may be the guest's and is still open.
func (l *Listener) admit(conn *net.UnixConn) bool {
	if l.peer != nil {
		if uid, known := peerUID(conn); known {
			if err := l.peer(uid); err != nil {
				l.log.Warn("refuse peer on guest link", "uid", uid, "error", err)
				return false
			}
		}
	}
	return !hungUp(conn)
}

// hangUp closes the stream that was handed out last.
func (l *Listener) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		_ = l.current.Close() // its reader is told by the close itself
		l.current = nil
	}
}

// cancelOnClose ends cancel's context when the listener is closed; the function
// it returns waits until that watch has ended.
func (l *Listener) cancelOnClose(cancel context.CancelCauseFunc) func() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-l.closed:
			cancel(ErrClosed)
		case <-done:
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// Close ends waiting Connects and the stream that was handed out last. The
// socket's file stays: by now it may be another listener's, and who removes the
// instance removes the folder. Repeating it is harmless.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		err = l.socket.Close()
		l.hangUp()
	})
	return err
}
