//go:build linux

package tree

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Flush has the file system of a folder write down what it holds, so that a loss
// of power does not leave half of what is there by its name.
func Flush(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "flush", Path: dir, Err: err}
	}
	return errors.Join(unix.Syncfs(fd), unix.Close(fd))
}

// Replace puts the tree at fresh in the place of the one at old, which may be
// missing and is discarded. Where the file system can, there is one of them at
// every moment; what a call leaves at fresh that dies is for the caller to discard.
func (t *Trash) Replace(fresh, old string) error {
	if _, err := os.Lstat(fresh); err != nil {
		return err // and old stays
	}
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, old, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		return t.Discard(fresh)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		if err := t.Discard(old); err != nil {
			return err
		}
		return os.Rename(fresh, old)
	}
	return &os.LinkError{Op: "exchange", Old: fresh, New: old, Err: err}
}
