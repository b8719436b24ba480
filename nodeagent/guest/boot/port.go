//go:build linux

package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// LinkDialer returns a dial for guest.ServeLink: the stream of the guest link, as
// soon as somebody holds its far end.
func LinkDialer() func(context.Context) (net.Conn, error) {
	port := &wire.Port{Open: func(ctx context.Context) (net.Conn, error) { return thisMachine.dial(ctx, LinkPort) }}
	return port.Dial
}

func (m machine) dial(ctx context.Context, name string) (net.Conn, error) {
	path, err := find(ctx, "port "+name, func() (string, error) { return m.port(name) })
	if err != nil {
		return nil, err
	}
	// Without O_NONBLOCK a read could not be given up.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := held(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &port{File: f, name: name}, nil
}

// heldCheck is how often a port without a holder looks at its context.
const heldCheck = 250 * time.Millisecond

// held waits until the far end of a port is held. A port that is not reads as
// ended, and the kernel wakes an edge-triggered waiter at the change.
func held(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	waiter, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(waiter) }()
	var fd int
	if err := raw.Control(func(got uintptr) { fd = int(got) }); err != nil {
		return err
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(waiter, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return err
	}
	for ctx.Err() == nil {
		state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		if _, err := unix.Poll(state, 0); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if state[0].Revents&unix.POLLHUP == 0 {
			return nil
		}
		if _, err := unix.EpollWait(waiter, make([]unix.EpollEvent, 1), int(heldCheck/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}

// port is a virtio-serial port as a stream. Its far end is a process of the node.
type port struct {
	*os.File
	name string
}

type portAddr string

func (portAddr) Network() string  { return "virtio" }
func (a portAddr) String() string { return string(a) }

func (p *port) LocalAddr() net.Addr  { return portAddr(p.name) }
func (p *port) RemoteAddr() net.Addr { return portAddr(p.name) }

var _ net.Conn = (*port)(nil)

// listen reads the provider's words from the control port until ctx ends, and
// answers each line with what heard returns.
func (m machine) listen(ctx context.Context, heard func(line string) string) error {
	for ctx.Err() == nil {
		conn, err := m.dial(ctx, ControlPort)
		if err != nil {
			return fmt.Errorf("open the control port: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		eachLine(conn, func(line string) {
			if answer := heard(line); answer != "" {
				_ = conn.SetWriteDeadline(time.Now().Add(answerWait))
				_, _ = io.WriteString(conn, answer+"\n") // whoever asked has gone
			}
		})
		stop()
		_ = conn.Close()
	}
	return ctx.Err()
}

// answerWait bounds the wait for whoever asked to take the answer.
const answerWait = time.Second
