//go:build linux

package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// IDs moves owners from one range of user and group ids into another.
type IDs struct {
	// From and To are the first ids of the ranges, Count how many there are.
	From, To, Count uint32
}

// ErrOutside says that a file in the tree belongs to an id that is not of the range.
var ErrOutside = errors.New("owner outside of the range of ids")

// ErrTooDeep says that folders lie deeper in each other than a copy follows.
var ErrTooDeep = errors.New("folders are nested too deep")

// Copied says what a copy holds.
type Copied struct {
	// Entries of all kinds, the tree's own folder included.
	Entries int64
	// Bytes on disk of the original's files.
	Bytes int64
}

const (
	// awake is how many folders of each side are open at once.
	awake = 32
	// deepest bounds what is remembered of the folders that are not.
	deepest = 1 << 16
)

// Copy makes the folder to, which must not exist, a copy of the folder from:
// files with their holes, folders, symbolic links, named pipes, and the character
// devices 0:0 by which overlayfs marks what was removed; with modes, times,
// extended attributes (user.*, file capabilities, access lists, overlayfs's own)
// and, as root, owners. Sockets and other devices are left out. Names of one file
// in the tree are names of one file in the copy; between the two trees no file is
// shared, though their blocks may be where the file system can.
//
// ids, where not nil, says which owners may be in the tree and what they become;
// another one is ErrOutside. An ordinary user's copy belongs to that user, and
// ids is not looked at; so that everything can be read, permissions that its own
// files lack are given to them for the moment that it takes.
//
// Nobody may change the tree meanwhile. If somebody does, what is copied is
// undefined, but it is out of the tree. After an error, ctx's among them, a part of the
// copy is left for the caller to remove, and perhaps a folder at to+".links".
// Nothing is flushed to the disk.
func Copy(ctx context.Context, from, to string, ids *IDs) (Copied, error) {
	c := &copier{ctx: ctx, root: os.Geteuid() == 0}
	if c.root {
		c.ids = ids
	}
	return c.copy(from, to)
}

func (c *copier) copy(from, to string) (Copied, error) {
	links := to + ".links"
	if err := Remove(c.ctx, links); err != nil {
		return c.done, err
	}
	if err := c.open(from, to, links); err != nil {
		return c.done, err
	}
	err := c.run()
	err = errors.Join(err, unix.Close(c.links))
	if err == nil {
		err = Remove(c.ctx, links)
	}
	return c.done, err
}

// copier is one Copy.
type copier struct {
	ctx   context.Context //nolint:containedctx // one copy's
	ids   *IDs
	root  bool
	done  Copied
	stack []*level
	// links is a folder that holds a name for each file of several names.
	links int
	noReflink,
	noRange bool
	// buffer of data and value of an attribute, made when first needed.
	buffer, value []byte
}

// level is a folder on the way to the one that is copied now. Descriptors of
// those far above are closed, and opened again from below.
type level struct {
	from, to int
	st       unix.Stat_t
	made     unix.Stat_t // the copy's
	// lent: the original's mode was widened and has to be put back.
	lent    bool
	entries []byte
	// next is where reading goes on.
	next int64
}

const folder = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// open begins with the two top folders.
func (c *copier) open(from, to, links string) error {
	parent, err := unix.Open(filepath.Dir(from), folder&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(from), Err: err}
	}
	defer func() { _ = unix.Close(parent) }()
	source, st, err := c.look(parent, filepath.Base(from))
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = errors.Join(unix.ENOTDIR, unix.Close(source))
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: from, Err: err}
	}
	defer func() { _ = unix.Close(source) }()
	target, err := unix.Open(filepath.Dir(to), folder&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(to), Err: err}
	}
	defer func() { _ = unix.Close(target) }()
	if err := unix.Mkdirat(target, filepath.Base(links), 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: links, Err: err}
	}
	if c.links, err = unix.Openat(target, filepath.Base(links), folder, 0); err != nil {
		return &os.PathError{Op: "open", Path: links, Err: err}
	}
	if err := c.enter(source, st, target, filepath.Base(to)); err != nil {
		return errors.Join(&os.PathError{Op: "copy", Path: from, Err: err}, unix.Close(c.links))
	}
	return nil
}

// run copies folder by folder until the top is done. Whatever happens, modes of
// the original are put back.
func (c *copier) run() error {
	for len(c.stack) > 0 {
		err := c.step()
		if err != nil {
			for len(c.stack) > 0 {
				err = errors.Join(err, c.leave(false))
			}
			return err
		}
	}
	return nil
}

// step copies what is left of the lowest folder, down to the next folder in it.
func (c *copier) step() error {
	at := c.stack[len(c.stack)-1]
	for {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		name, err := at.read()
		if err != nil {
			return err
		}
		if name == "" {
			return c.leave(true)
		}
		down, err := c.entry(at, name)
		if err != nil {
			return fmt.Errorf("copy %q: %w", name, err)
		}
		if down {
			return nil
		}
	}
}

// read returns the next name of the original, "" at the end.
func (l *level) read() (string, error) {
	for {
		if len(l.entries) == 0 {
			buf := make([]byte, 8<<10)
			n, err := unix.ReadDirent(l.from, buf)
			if err != nil {
				return "", fmt.Errorf("read folder: %w", err)
			}
			if n <= 0 {
				return "", nil
			}
			l.entries = buf[:n]
		}
		// struct linux_dirent64, see getdents64(2): inode, offset of the next
		// entry, length of this one, type, and the name with a zero behind.
		e := l.entries
		const head = 19
		size := int(binary.NativeEndian.Uint16(e[16:]))
		l.next = int64(binary.NativeEndian.Uint64(e[8:]))
		name := unix.ByteSliceToString(e[head:size])
		l.entries = e[size:]
		if name != "." && name != ".." {
			return name, nil
		}
	}
}

// look opens an entry without any access to what it holds, and tells what it is.
// What is mounted over it is not part of the tree.
func (c *copier) look(dir int, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, st, errors.Join(err, unix.Close(fd))
	}
	return fd, st, nil
}

// entry copies one name; true when it is a folder, which is then the lowest.
func (c *copier) entry(at *level, name string) (down bool, err error) {
	fd, st, err := c.look(at.from, name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true, c.enter(fd, st, at.to, name)
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO:
	case unix.S_IFCHR:
		if st.Rdev != 0 {
			return false, nil
		}
	default:
		return false, nil
	}
	c.done.Entries++
	if st.Nlink == 1 {
		c.done.Bytes += st.Blocks * 512
		return false, c.leaf(fd, &st, at.to, name)
	}
	kept := strconv.FormatUint(st.Dev, 16) + "-" + strconv.FormatUint(st.Ino, 16)
	err = unix.Linkat(c.links, kept, at.to, name, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		c.done.Bytes += st.Blocks * 512
		if err := c.leaf(fd, &st, at.to, name); err != nil {
			return false, err
		}
		return false, unix.Linkat(at.to, name, c.links, kept, 0)
	case errors.Is(err, unix.EMLINK):
		// The original has as many names as a file can, and this is the last.
		return false, unix.Renameat(c.links, kept, at.to, name)
	}
	return false, err
}

// leaf copies what is no folder.
func (c *copier) leaf(fd int, st *unix.Stat_t, dir int, name string) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(fd, st, dir, name)
	case unix.S_IFLNK:
		to, err := readlink(fd)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(to, dir, name); err != nil {
			return err
		}
	case unix.S_IFIFO:
		if err := unix.Mkfifoat(dir, name, 0o600); err != nil {
			return err
		}
	case unix.S_IFCHR:
		if err := unix.Mknodat(dir, name, unix.S_IFCHR, 0); err != nil {
			return err
		}
	}
	return c.describe(fd, st, dir, name)
}

func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// enter makes the copy of a folder and goes into both.
func (c *copier) enter(fd int, st unix.Stat_t, dir int, name string) (err error) {
	if len(c.stack) >= deepest {
		return ErrTooDeep
	}
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return err
	}
	c.done.Entries++
	c.done.Bytes += st.Blocks * 512
	l := &level{from: -1, to: -1, st: st}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.restore(), l.close())
		}
	}()
	if l.to, err = unix.Openat(dir, name, folder, 0); err != nil {
		return err
	}
	if err := unix.Fstat(l.to, &l.made); err != nil {
		return err
	}
	if err := c.lend(fd, &st, 0o500, &l.lent); err != nil {
		return err
	}
	if l.from, err = unix.Openat(fd, ".", folder|unix.O_NOATIME, 0); err != nil {
		if l.lent { // what restore needs is not open
			err = errors.Join(err, unix.Chmod(self(fd), st.Mode&0o7777))
			l.lent = false
		}
		return err
	}
	c.stack = append(c.stack, l)
	if above := len(c.stack) - 1 - awake; above >= 0 {
		return c.stack[above].sleep()
	}
	return nil
}

// lend gives the owner of a file the permissions that it lacks, where this process
// needs them, and says so in lent.
func (c *copier) lend(fd int, st *unix.Stat_t, mode uint32, lent *bool) error {
	if c.root || st.Mode&mode == mode {
		return nil
	}
	*lent = true
	return unix.Chmod(self(fd), st.Mode&0o7777|mode)
}

func (l *level) restore() error {
	if !l.lent || l.from < 0 {
		return nil
	}
	l.lent = false
	return unix.Fchmod(l.from, l.st.Mode&0o7777)
}

func (l *level) close() error {
	var errs []error
	for _, fd := range []int{l.from, l.to} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	l.from, l.to = -1, -1
	return errors.Join(errs...)
}

// sleep closes a level that is far above.
func (l *level) sleep() error {
	l.entries = nil
	return l.close()
}

// wake opens a level from the one below it, and only what it was: a folder that
// was moved meanwhile has another one above it.
func (l *level) wake(below *level) (err error) {
	up := func(fd int, want *unix.Stat_t) (int, error) {
		above, err := unix.Openat(fd, "..", folder|unix.O_NOATIME, 0)
		if err != nil {
			return -1, fmt.Errorf("go up: %w", err)
		}
		var st unix.Stat_t
		err = unix.Fstat(above, &st)
		if err == nil && (st.Dev != want.Dev || st.Ino != want.Ino) {
			err = errors.New("go up: a folder was moved meanwhile")
		}
		if err != nil {
			return -1, errors.Join(err, unix.Close(above))
		}
		return above, nil
	}
	if l.from, err = up(below.from, &l.st); err != nil {
		return err
	}
	if l.to, err = up(below.to, &l.made); err != nil {
		return err
	}
	_, err = unix.Seek(l.from, l.next, unix.SEEK_SET)
	return err
}

// leave ends with the lowest folder: done, when it is whole.
func (c *copier) leave(done bool) error {
	l := c.stack[len(c.stack)-1]
	c.stack = c.stack[:len(c.stack)-1]
	var err error
	if done {
		err = c.describe(l.from, &l.st, l.to, ".")
	}
	err = errors.Join(err, l.restore())
	if len(c.stack) > 0 {
		above := c.stack[len(c.stack)-1]
		if above.from < 0 && l.from >= 0 {
			err = errors.Join(err, above.wake(l))
		}
	}
	return errors.Join(err, l.close())
}
