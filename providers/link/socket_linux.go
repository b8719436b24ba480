package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// addressLimit is the size of sun_path less its final zero, see unix(7).
const addressLimit = 107

// socketAddress is the address to bind name in dir. A path beyond the limit goes
// through the folder's descriptor; release lets that go.
func socketAddress(dir, name string) (address string, release func(), err error) {
	address = filepath.Join(dir, name)
	if len(address) <= addressLimit {
		return address, func() {}, nil
	}
	folder, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	// Nothing was written through it, so its closing cannot lose anything.
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), name), func() { _ = folder.Close() }, nil
}

// ready says whether another dial waits in the queue.
func (l *Listener) ready() bool {
	raw, err := l.socket.SyscallConn()
	if err != nil {
		return false
	}
	waiting := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, perr := unix.Poll(fds, 0)
		waiting = perr == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
	})
	return err == nil && waiting
}

// peerUID is the user of the process that dialled.
func peerUID(conn *net.UnixConn) (uid uint32, known bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) {
		cred, cerr := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if cerr == nil {
			uid, known = cred.Uid, true
		}
	})
	return uid, known && err == nil
}

// hungUp says whether the dialler has closed its end already.
func hungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, rerr := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case rerr == nil:
			gone = n == 0
		case errors.Is(rerr, unix.EAGAIN), errors.Is(rerr, unix.EINTR):
		default:
			gone = true
		}
	})
	return gone || err != nil
}
