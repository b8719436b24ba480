package image

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a folder that an image is unpacked into. Every name in an image is
// looked up by the kernel as if the folder were the root of the machine: symbolic
// links in the image lead where they would lead inside, and nowhere else.
type tree struct {
	top  int
	root string // the folder's own path, as the kernel shows it
	// flat: an ordinary user unpacks, so everything becomes that user's.
	flat   bool
	limits limits
	buffer []byte
}

func openTree(dir string, flat bool, l limits) (*tree, error) {
	top, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root, err := os.Readlink(fdPath(top))
	if err != nil {
		return nil, errors.Join(err, unix.Close(top))
	}
	return &tree{top: top, root: root, flat: flat, limits: l, buffer: make([]byte, 256<<10)}, nil
}

func (t *tree) close() error { return unix.Close(t.top) }

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// open opens a folder inside the tree by its name. plain is true when no symbolic link was
// passed on the way.
func (t *tree) open(name string) (fd int, plain bool, err error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err = unix.Openat2(t.top, name, &how)
		switch {
		case err == nil:
			return fd, how.Resolve&unix.RESOLVE_NO_SYMLINKS != 0, nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ELOOP) && how.Resolve&unix.RESOLVE_NO_SYMLINKS != 0:
			how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
			continue
		}
		return -1, false, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// folder opens the folder of that name, made where it is missing, as the layers of
// some tools do not name every parent.
func (t *tree) folder(name string) (int, error) {
	fd, plain, err := t.open(name)
	if errors.Is(err, unix.ENOENT) {
		fd, err = t.makeFolder(name, 0)
		plain = false
	}
	if err != nil {
		return -1, err
	}
	if !plain {
		// Links may have made the place deeper than its name says.
		if err := t.checkDepth(fd); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
	}
	return fd, nil
}

// maxHops bounds links that lead to links, as the kernel does.
const maxHops = 40

func (t *tree) makeFolder(name string, hops int) (int, error) {
	if hops > maxHops {
		return -1, refuse("%.200q: too many symbolic links", name)
	}
	fd, _, err := t.open(name)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if dir == "/" || base == "" {
		dir = "."
	}
	parent, err := t.makeFolder(dir, hops)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(parent) }()
	if err := t.checkDepth(parent); err != nil {
		return -1, err
	}
	err = unix.Mkdirat(parent, base, 0o755)
	if errors.Is(err, unix.EEXIST) {
		// A link to something that is not there yet: that is what is wanted.
		target, err := readlinkat(parent, base)
		if err != nil {
			return -1, &os.PathError{Op: "read link", Path: name, Err: err}
		}
		if !path.IsAbs(target) {
			target = path.Join("/", dir, target)
		}
		if target = strings.TrimPrefix(path.Clean(target), "/"); target == "" {
			target = "."
		}
		made, err := t.makeFolder(target, hops+1)
		if err != nil {
			return -1, err
		}
		if err := unix.Close(made); err != nil {
			return -1, err
		}
	} else if err != nil {
		return -1, &os.PathError{Op: "make folder", Path: name, Err: err}
	} else if err := unix.Fchmodat(parent, base, 0o755, 0); err != nil { // whatever the umask
		return -1, &os.PathError{Op: "change mode", Path: name, Err: err}
	}
	fd, _, err = t.open(name)
	return fd, err
}

// checkDepth holds a folder to the limits by its true place.
func (t *tree) checkDepth(fd int) error {
	at, err := os.Readlink(fdPath(fd))
	if err != nil {
		return err
	}
	at = strings.TrimPrefix(at, t.root)
	return t.limits.name(strings.TrimPrefix(at, "/"))
}

func readlinkat(dir int, name string) (string, error) {
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buffer)
	if err != nil {
		return "", err
	}
	return string(buffer[:n]), nil
}

// stat of a name in a folder, links not followed; nil when there is none.
func stat(dir int, base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil //nolint:nilnil // absence is an answer
	}
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: base, Err: err}
	}
	return &st, nil
}

func isFolder(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// put makes one entry in the folder dir and returns its inode, 0 for none. What
// stands there gives way, but for a folder that stays a folder.
func (t *tree) put(dir int, base string, h *tar.Header, content io.Reader) (uint64, error) {
	old, err := stat(dir, base)
	if err != nil {
		return 0, err
	}
	if old != nil && (h.Typeflag != tar.TypeDir || !isFolder(old)) {
		if h.Typeflag == tar.TypeLink && t.isSame(old, h.Linkname) {
			return old.Ino, nil
		}
		if err := remove(dir, base); err != nil {
			return 0, err
		}
		old = nil
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if old == nil {
			if err := unix.Mkdirat(dir, base, 0o700); err != nil {
				return 0, &os.PathError{Op: "make folder", Path: h.Name, Err: err}
			}
		}
		return t.furnish(dir, base, h, unix.O_RDONLY|unix.O_DIRECTORY)
	case tar.TypeReg:
		return t.putFile(dir, base, h, content)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir, base); err != nil {
			return 0, &os.PathError{Op: "make link", Path: h.Name, Err: err}
		}
	case tar.TypeLink:
		if err := t.link(dir, base, h); err != nil {
			return 0, err
		}
		st, err := stat(dir, base)
		if err != nil || st == nil {
			return 0, errors.Join(err, unix.ENOENT)
		}
		return st.Ino, nil // owner and mode are those of what it names
	case tar.TypeFifo:
		if err := unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0); err != nil {
			return 0, &os.PathError{Op: "make pipe", Path: h.Name, Err: err}
		}
	default: // devices: an instance has its own
		return 0, nil
	}
	return t.furnishName(dir, base, h)
}

// isSame says whether target is the file that old describes.
func (t *tree) isSame(old *unix.Stat_t, target string) bool {
	dir, base, err := t.lookUp(target)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(dir) }()
	st, err := stat(dir, base)
	return err == nil && st != nil && st.Ino == old.Ino && st.Dev == old.Dev
}

// lookUp opens the folder of an entry that a hard link names.
func (t *tree) lookUp(target string) (dir int, base string, err error) {
	clean, err := t.limits.clean(target)
	if err != nil {
		return -1, "", err
	}
	parent, base := path.Split(clean)
	if base == "" || base == "." {
		return -1, "", refuse("hard link to the folder %.200q", target)
	}
	dir, _, err = t.open(path.Clean(parent))
	return dir, base, err
}

func (t *tree) link(dir int, base string, h *tar.Header) error {
	from, name, err := t.lookUp(h.Linkname)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(from) }()
	st, err := stat(from, name)
	switch {
	case err != nil:
		return err
	case st == nil:
		return refuse("%.200q is a hard link to %.200q, which the image does not have", h.Name, h.Linkname)
	case isFolder(st):
		return refuse("%.200q is a hard link to the folder %.200q", h.Name, h.Linkname)
	}
	if err := unix.Linkat(from, name, dir, base, 0); err != nil {
		return &os.PathError{Op: "make hard link", Path: h.Name, Err: err}
	}
	return nil
}

func (t *tree) putFile(dir int, base string, h *tar.Header, content io.Reader) (uint64, error) {
	fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, &os.PathError{Op: "make file", Path: h.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), h.Name)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, content, t.buffer)
	var ino uint64
	if err == nil {
		ino, err = t.furnishOpen(fd, h)
	}
	return ino, errors.Join(err, f.Close())
}

// furnish opens what was made and gives it owner, mode, attributes and time.
func (t *tree) furnish(dir int, base string, h *tar.Header, flags int) (uint64, error) {
	fd, err := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: h.Name, Err: err}
	}
	ino, err := t.furnishOpen(fd, h)
	return ino, errors.Join(err, unix.Close(fd))
}

func (t *tree) furnishOpen(fd int, h *tar.Header) (uint64, error) {
	mode := uint32(h.Mode) & 0o7777
	if t.flat {
		// Readable for the one user that there is, and nothing of set-uid, which
		// would be that user.
		mode = mode&0o1777 | 0o600
		if h.Typeflag == tar.TypeDir {
			mode |= 0o700
		}
	} else if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return 0, &os.PathError{Op: "change owner", Path: h.Name, Err: err}
	}
	if err := unix.Fchmod(fd, mode); err != nil { // after the owner, which takes set-uid away
		return 0, &os.PathError{Op: "change mode", Path: h.Name, Err: err}
	}
	for name, value := range attributes(h) {
		if name == capability && t.flat {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) || (t.flat && errors.Is(err, unix.EPERM)) {
			continue // the file system has none
		}
		if err != nil {
			return 0, &os.PathError{Op: "set attribute", Path: h.Name, Err: err}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	// The descriptor's own name: "" with AT_EMPTY_PATH needs a newer kernel.
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(fd), times(h.ModTime), 0); err != nil {
		return 0, &os.PathError{Op: "set time", Path: h.Name, Err: err}
	}
	return st.Ino, nil
}

// furnishName is furnish for what cannot be opened.
func (t *tree) furnishName(dir int, base string, h *tar.Header) (uint64, error) {
	if !t.flat {
		if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return 0, &os.PathError{Op: "change owner", Path: h.Name, Err: err}
		}
	}
	if h.Typeflag == tar.TypeFifo {
		// Nobody else writes here: base is the pipe that was just made.
		if err := unix.Fchmodat(dir, base, uint32(h.Mode)&0o777, 0); err != nil {
			return 0, &os.PathError{Op: "change mode", Path: h.Name, Err: err}
		}
	}
	if err := unix.UtimesNanoAt(dir, base, times(h.ModTime), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, &os.PathError{Op: "set time", Path: h.Name, Err: err}
	}
	st, err := stat(dir, base)
	if err != nil || st == nil {
		return 0, errors.Join(err, unix.ENOENT)
	}
	return st.Ino, nil
}

// touch sets the time of a folder, which making things in it has changed.
func (t *tree) touch(name string, at time.Time) error {
	fd, _, err := t.open(name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // it gave way to something else
	}
	if err != nil {
		return err
	}
	err = unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(fd), times(at), 0)
	return errors.Join(err, unix.Close(fd))
}

// times for the kernel; what it cannot hold becomes the epoch.
func times(at time.Time) []unix.Timespec {
	if at.Before(time.Unix(0, 0)) || at.Year() > 2400 {
		at = time.Unix(0, 0)
	}
	ts := unix.NsecToTimespec(at.UnixNano())
	return []unix.Timespec{ts, ts}
}

// remove takes a name away with all that is below it.
func remove(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "remove", Path: base, Err: err}
	}
	if err := empty(dir, base, nil); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: base, Err: err}
	}
	return nil
}

// empty removes all in a folder but what keep names by inode, of which only the
// contents that are not kept go. The depth of the tree is bounded as it is made.
func empty(dir int, base string, keep map[uint64]struct{}) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: base, Err: err}
	}
	f := os.NewFile(uintptr(fd), base)
	defer func() { _ = f.Close() }()
	for {
		names, err := f.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := hide(fd, name, keep); err != nil {
				return err
			}
		}
	}
}

// hide removes what a whiteout names, but for what keep names and the folders that
// lead there.
func hide(dir int, base string, keep map[uint64]struct{}) error {
	st, err := stat(dir, base)
	if err != nil || st == nil {
		return err
	}
	_, kept := keep[st.Ino]
	switch {
	case isFolder(st):
		if err := empty(dir, base, keep); err != nil || kept {
			return err
		}
		err := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return &os.PathError{Op: "remove", Path: base, Err: err}
		}
		return nil
	case kept:
		return nil
	}
	return remove(dir, base)
}
