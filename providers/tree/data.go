//go:build linux

package tree

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// span is how much is copied between two looks at the context.
const span = 64 << 20

// file copies a regular file.
func (c *copier) file(at int, st *unix.Stat_t, dir int, name string) (err error) {
	lent := false
	if err := c.lend(at, st, 0o400, &lent); err != nil {
		return err
	}
	from, err := unix.Open(self(at), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if lent {
		err = errors.Join(err, unix.Chmod(self(at), st.Mode&0o7777))
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(from)) }()
	to, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = c.content(from, to, st)
	if err = errors.Join(err, unix.Close(to)); err != nil {
		return err
	}
	return c.describe(at, st, dir, name)
}

// content fills the file to, sharing blocks where the file system can.
func (c *copier) content(from, to int, st *unix.Stat_t) error {
	if st.Size == 0 {
		return nil
	}
	if !c.noReflink {
		if unix.IoctlFileClone(to, from) == nil {
			return nil
		}
		// For whatever reason: what follows works everywhere, and tells the rest.
		c.noReflink = true
	}
	sparse := st.Blocks*512 < st.Size
	for at := int64(0); at < st.Size; {
		end := st.Size
		if sparse {
			data, err := unix.Seek(from, at, unix.SEEK_DATA)
			switch {
			case errors.Is(err, unix.ENXIO): // a hole up to the end
				at = st.Size
				continue
			case errors.Is(err, unix.EINVAL): // a file system that knows no holes
				sparse = false
			case err != nil:
				return err
			default:
				at = data
				if end, err = unix.Seek(from, at, unix.SEEK_HOLE); err != nil {
					return err
				}
			}
		}
		n, err := c.stretch(from, to, at, min(end-at, span))
		if err != nil {
			return err
		}
		if n == 0 { // it became shorter
			break
		}
		at += n
		if err := c.ctx.Err(); err != nil {
			return err
		}
	}
	return unix.Ftruncate(to, st.Size)
}

// stretch copies some of the length bytes at an offset; 0 at the end of the file.
func (c *copier) stretch(from, to int, at, length int64) (int64, error) {
	if !c.noRange {
		in, out := at, at
		n, err := unix.CopyFileRange(from, &in, to, &out, int(length), 0)
		switch {
		case err == nil && n > 0:
			return int64(n), nil
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO), errors.Is(err, unix.EFBIG):
			return 0, err
		case err != nil:
			// Between two file systems, or unknown to this one.
			c.noRange = true
		}
		// Some file systems copy nothing and say that this is well.
	}
	if c.buffer == nil {
		c.buffer = make([]byte, 256<<10)
	}
	n, err := unix.Pread(from, c.buffer[:min(length, int64(len(c.buffer)))], at)
	if err != nil || n == 0 {
		return 0, err
	}
	for done := 0; done < n; {
		w, err := unix.Pwrite(to, c.buffer[done:n], at+int64(done))
		if err == nil && w == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return 0, err
		}
		done += w
	}
	return int64(n), nil
}
