//go:build linux

package guest

import (
	"os"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// stdio is both sides of a process's standard files.
type stdio struct {
	child   [3]int
	close   []int // child's ends, closed once it has them
	owned   []int // those that were made for the process
	input   *os.File
	outputs []outlet
	tty     *os.File
}

// closeChild closes the process's ends on our side.
func (s *stdio) closeChild() {
	for _, fd := range s.close {
		_ = syscall.Close(fd)
	}
	s.close = nil
}

// closeAll is for a process that was not started.
func (s *stdio) closeAll() {
	s.closeChild()
	if s.tty != nil {
		_ = s.tty.Close()
		return
	}
	if s.input != nil {
		_ = s.input.Close()
	}
	for _, out := range s.outputs {
		_ = out.file.Close()
	}
}

// openStdio makes the files. They belong to the process's user, who may then
// open /dev/stdout or /dev/tty by name.
func (c *command) openStdio() (*stdio, error) {
	s := &stdio{}
	open := s.openPipes
	if c.terminal != nil {
		open = s.openTerminal
	}
	if err := open(c); err != nil {
		s.closeAll()
		return nil, err
	}
	if c.cred != nil {
		for _, fd := range s.owned {
			_ = syscall.Fchown(fd, int(c.cred.Uid), -1)
		}
	}
	return s, nil
}

func (s *stdio) openPipes(c *command) error {
	if len(c.stdin) > 0 || c.open {
		theirs, ours, err := openPipe()
		if err != nil {
			return err
		}
		s.input = nonblocking(ours, "stdin")
		s.child[0] = theirs
		s.close, s.owned = append(s.close, theirs), append(s.owned, theirs)
	} else {
		null, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("open "+os.DevNull, err)
		}
		s.child[0] = null
		s.close = append(s.close, null)
	}
	for i, stream := range []guestv1.OutputStream{guestv1.OutputStream_OUTPUT_STREAM_STDOUT, guestv1.OutputStream_OUTPUT_STREAM_STDERR} {
		ours, theirs, err := openPipe()
		if err != nil {
			return err
		}
		s.child[i+1] = theirs
		s.close, s.owned = append(s.close, theirs), append(s.owned, theirs)
		s.outputs = append(s.outputs, outlet{file: nonblocking(ours, stream.String()), stream: stream})
	}
	return nil
}

func openPipe() (read, write int, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return 0, 0, os.NewSyscallError("pipe2", err)
	}
	return fds[0], fds[1], nil
}

// nonblocking makes our end one that the runtime polls; the process's end is
// another open file and stays as programs expect it.
func nonblocking(fd int, name string) *os.File {
	_ = syscall.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

const terminalMost = 10_000

func checkTerminal(t *guestv1.Terminal) error {
	if t.GetRows() > terminalMost || t.GetColumns() > terminalMost {
		return api.Errorf(api.InvalidArgument, "terminal of %d rows and %d columns: at most %d are possible", t.GetRows(), t.GetColumns(), terminalMost)
	}
	for _, r := range t.GetTerm() {
		if r <= ' ' || r > '~' {
			return api.Errorf(api.InvalidArgument, "terminal type %.40q: want printable characters", t.GetTerm())
		}
	}
	return nil
}

func (s *stdio) openTerminal(c *command) error {
	opened, slave, err := pty.Open()
	if err != nil {
		return err
	}
	// Opened as a file it blocks, and could not be left by a deadline.
	own, err := unix.FcntlInt(opened.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	_ = opened.Close()
	if err != nil {
		_ = slave.Close()
		return os.NewSyscallError("dup", err)
	}
	master := nonblocking(own, "terminal")
	s.tty, s.input = master, master
	s.outputs = []outlet{{file: master, stream: guestv1.OutputStream_OUTPUT_STREAM_STDOUT, tty: true}}
	theirs, err := unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	_ = slave.Close()
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	s.child = [3]int{theirs, theirs, theirs}
	s.close, s.owned = []int{theirs}, []int{theirs}
	rows, columns := c.terminal.GetRows(), c.terminal.GetColumns()
	if rows == 0 || columns == 0 {
		rows, columns = 24, 80
	}
	return resizeTerminal(master, rows, columns)
}

func resizeTerminal(tty *os.File, rows, columns uint32) error {
	return controlTerminal(tty, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)})
	})
}

// foreground is the process group in the foreground of a terminal.
func foreground(tty *os.File) (group int, err error) {
	err = controlTerminal(tty, func(fd int) error {
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	return group, err
}

// controlTerminal does not use Fd, which would make the file a blocking one.
func controlTerminal(tty *os.File, control func(fd int) error) error {
	conn, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = control(int(fd)) }); err != nil {
		return err
	}
	return failed
}
