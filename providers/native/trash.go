//go:build linux

package native

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// discard takes a folder out of the way at once and has its files removed later.
// An absent one is success. On a full disk, where even a rename may not be
// possible, the files are removed before it returns.
func (p *Provider) discard(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	trash := filepath.Join(p.dir, "trash")
	err := os.Mkdir(trash, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = os.Rename(dir, filepath.Join(trash, rand.Text()))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return removeAll(p.reaping, dir)
	}
	if err != nil {
		return err
	}
	p.reapers.Go(p.reap)
	return nil
}

// reap empties the trash, of earlier processes too.
func (p *Provider) reap() {
	p.reapOne.Lock()
	defer p.reapOne.Unlock()
	if err := emptyTrash(p.reaping, filepath.Join(p.dir, "trash")); err != nil && p.reaping.Err() == nil {
		p.log.Warn("empty trash", "error", err)
	}
}

// maxDepth bounds the descriptors that removal holds. Deeper folders are moved to
// the top of the trash first.
const maxDepth = 64

// sweep removes trees that a workspace made, from a folder of our own. It follows
// nothing and passes no permissions that are missing, since the agent may be an
// ordinary user.
type sweep struct {
	ctx   context.Context //nolint:containedctx // one sweep's
	top   int
	moved int
}

// removeAll removes one tree of which the parent is ours.
func removeAll(ctx context.Context, dir string) error {
	top, err := unix.Open(filepath.Dir(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s := &sweep{ctx: ctx, top: top}
	return errors.Join(s.remove(top, filepath.Base(dir), 0), unix.Close(top))
}

func emptyTrash(ctx context.Context, trash string) error {
	top, err := unix.Open(trash, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s := &sweep{ctx: ctx, top: top}
	for {
		before := s.moved
		err = s.clear(top, 0)
		if err != nil || s.moved == before {
			break
		}
	}
	return errors.Join(err, unix.Close(top))
}

// clear removes everything in the folder dir.
func (s *sweep) clear(dir, depth int) error {
	for {
		names, err := list(dir)
		if err != nil || len(names) == 0 {
			return err
		}
		progress := false
		var errs []error
		for _, name := range names {
			if err := s.ctx.Err(); err != nil {
				return err
			}
			if err := s.remove(dir, name, depth); err != nil {
				errs = append(errs, err)
			} else {
				progress = true
			}
		}
		if !progress || len(errs) > 0 {
			return errors.Join(errs...)
		}
	}
}

func (s *sweep) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err == nil {
		return nil
	}
	if depth >= maxDepth {
		s.moved++
		return unix.Renameat(dir, name, s.top, rand.Text())
	}
	fd, err := openFolder(dir, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
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
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
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
		// The descriptor's own path: no name of the workspace's is looked up again.
		if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(at), 0o700); err != nil {
			return -1, err
		}
	}
	return unix.Openat(at, ".", flags, 0)
}

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
