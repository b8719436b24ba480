//go:build linux

package tree

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the descriptors that removal holds. Deeper folders are moved to
// the top of the tree first.
const maxDepth = 64

// sweep removes trees that a workspace made, from a folder of our own. It follows
// nothing and passes no permissions that are missing, since the agent may be an
// ordinary user.
type sweep struct {
	ctx   context.Context //nolint:containedctx // one sweep's
	top   int
	moved int
}

// Remove removes a tree, of folders without any permission too. An absent one is
// success. When ctx ends, a part of the tree is left, and a repeat goes on.
func Remove(ctx context.Context, dir string) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(dir), Err: err}
	}
	defer func() { _ = unix.Close(parent) }()
	name := filepath.Base(dir)
	if done, err := unlink(parent, name); done || err != nil {
		return err
	}
	top, err := openFolder(parent, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := errors.Join(empty(ctx, top), unix.Close(top)); err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

// empty removes everything in the folder top.
func empty(ctx context.Context, top int) error {
	s := &sweep{ctx: ctx, top: top}
	for {
		before := s.moved
		if err := s.clear(top, 0); err != nil || s.moved == before {
			return err
		}
	}
}

// clear removes everything in the folder dir.
func (s *sweep) clear(dir, depth int) error {
	for {
		names, err := list(dir)
		if err != nil || len(names) == 0 {
			return err
		}
		var errs []error
		for _, name := range names {
			if err := s.ctx.Err(); err != nil {
				return err
			}
			if err := s.remove(dir, name, depth); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			return errors.Join(errs...)
		}
	}
}

// unlink removes what is no folder, or an empty one; false when it is a full one.
func unlink(dir int, name string) (bool, error) {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return false, &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil, nil
}

func (s *sweep) remove(dir int, name string, depth int) error {
	if done, err := unlink(dir, name); done || err != nil {
		return err
	}
	fd, err := openFolder(dir, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	if depth >= maxDepth {
		s.moved++
		return errors.Join(unix.Renameat(dir, name, s.top, rand.Text()), unix.Close(fd))
	}
	err = s.clear(fd, depth+1)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// openFolder opens a folder for removal, giving the owner the permissions it
// lacks: overlayfs leaves folders of mode 000, and so may a workspace.
func openFolder(dir int, name string) (int, error) {
	at, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(at) }()
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, err
	}
	if st.Mode&0o700 != 0o700 {
		if err := unix.Chmod(self(at), 0o700); err != nil {
			return -1, err
		}
	}
	return unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// self is a descriptor's own path: no name of the workspace's is looked up again.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// list reads some names of a folder, in bounded memory.
func list(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "trash")
	names, err := f.Readdirnames(1024)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, errors.Join(err, f.Close())
}
