//go:build linux

package guest

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// tree is a part of the file system that a request may reach: the project for
// relative paths (an os.Root, which no symlink leaves) and all of the instance
// for absolute ones.
type tree interface {
	OpenFile(name string, flag int, perm os.FileMode) (*os.File, error)
	Stat(name string) (os.FileInfo, error)
	Lstat(name string) (os.FileInfo, error)
	Readlink(name string) (string, error)
	Mkdir(name string, perm os.FileMode) error
	Rename(from, to string) error
	Remove(name string) error
	Chmod(name string, mode os.FileMode) error
	Lchown(name string, uid, gid int) error
	Chtimes(name string, atime, mtime time.Time) error
	Close() error
}

// instance is the tree of all of the instance.
type instance struct{}

func (instance) OpenFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag, perm)
}
func (instance) Stat(name string) (os.FileInfo, error)     { return os.Stat(name) }
func (instance) Lstat(name string) (os.FileInfo, error)    { return os.Lstat(name) }
func (instance) Readlink(name string) (string, error)      { return os.Readlink(name) }
func (instance) Mkdir(name string, perm os.FileMode) error { return os.Mkdir(name, perm) }
func (instance) Rename(from, to string) error              { return os.Rename(from, to) }
func (instance) Remove(name string) error                  { return os.Remove(name) }
func (instance) Chmod(name string, mode os.FileMode) error { return os.Chmod(name, mode) }
func (instance) Lchown(name string, uid, gid int) error    { return os.Lchown(name, uid, gid) }
func (instance) Chtimes(name string, a, m time.Time) error { return os.Chtimes(name, a, m) }
func (instance) Close() error                              { return nil }

// place is a path of a request in its tree.
type place struct {
	tree
	name  string // in the tree
	asked string // as the caller wrote it
}

// at returns the place that the caller means. It must be closed.
func (g *Guest) at(asked string) (place, error) {
	if asked == "" {
		asked = "."
	}
	if strings.ContainsRune(asked, 0) || len(asked) > 4096 {
		return place{}, api.Errorf(api.InvalidArgument, "path %.40q: want at most 4096 bytes and no NUL", asked)
	}
	if filepath.IsAbs(asked) {
		return place{tree: instance{}, name: asked, asked: asked}, nil
	}
	root, err := os.OpenRoot(g.opts.ProjectDir)
	if err != nil {
		return place{}, fsError("open the project", g.opts.ProjectDir, err)
	}
	p := place{tree: root, name: asked, asked: asked}
	if !filepath.IsLocal(asked) {
		_ = root.Close()
		return place{}, p.escape(asked)
	}
	p.name = path.Clean(asked)
	return p, nil
}

// fail says what went wrong with the place; a path that leaves the project is
// refused naming where it leads.
func (p place) fail(operation string, err error) error {
	if err == nil {
		return nil
	}
	var at *os.PathError
	if errors.As(err, &at) && at.Err != nil && at.Err.Error() == "path escapes from parent" {
		return p.escape(p.leak())
	}
	return fsError(operation, p.asked, err)
}

func (p place) escape(target string) error {
	return api.Errorf(api.PermissionDenied, "path %s: it leads out of the project, to %s", p.asked, target).
		WithNext("use an absolute path to reach other parts of the workspace")
}

// leak finds the symlink on the way that leaves the project.
func (p place) leak() string {
	walked := ""
	for part := range strings.SplitSeq(p.name, "/") {
		walked = path.Join(walked, part)
		target, err := p.Readlink(walked)
		if err != nil {
			continue
		}
		if path.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(walked), target)) {
			return target
		}
	}
	return "a place outside"
}

// symlinksMost is how many symlinks a path may go through, as in the kernel.
const symlinksMost = 40

// final follows symlinks at the end of the path, so that a file is replaced
// where it lies and the link stays.
func (p place) final(operation string) (place, error) {
	for range symlinksMost {
		info, err := p.Lstat(p.name)
		if errors.Is(err, fs.ErrNotExist) {
			return p, nil
		}
		if err != nil {
			return p, p.fail(operation, err)
		}
		if info.Mode()&os.ModeSymlink == 0 {
			return p, nil
		}
		target, err := p.Readlink(p.name)
		if err != nil {
			return p, p.fail(operation, err)
		}
		_, everywhere := p.tree.(instance)
		switch {
		case !path.IsAbs(target):
			p.name = dirOf(p.name) + "/" + target // not cleaned: a folder on the way may be a symlink itself
		case everywhere:
			p.name = target
		default:
			return p, p.escape(target)
		}
	}
	return p, fsError(operation, p.asked, syscall.ELOOP)
}

// dirOf is path.Dir without cleaning.
func dirOf(name string) string {
	i := strings.LastIndexByte(name, '/')
	switch {
	case i < 0:
		return "."
	case i == 0:
		return "/"
	}
	return name[:i]
}

// openRegular opens a regular file for reading. A FIFO or device is refused
// without being opened, and could not block if it came in between.
func (p place) openRegular(operation string) (*os.File, os.FileInfo, error) {
	info, err := p.Stat(p.name)
	if err != nil {
		return nil, nil, p.fail(operation, err)
	}
	if err := p.mustBeRegular(operation, info); err != nil {
		return nil, nil, err
	}
	file, err := p.OpenFile(p.name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, p.fail(operation, err)
	}
	if info, err = file.Stat(); err == nil {
		err = p.mustBeRegular(operation, info)
	}
	if err != nil {
		_ = file.Close()
		return nil, nil, p.fail(operation, err)
	}
	return file, info, nil
}

func (p place) mustBeRegular(operation string, info os.FileInfo) error {
	if info.Mode().IsRegular() {
		return nil
	}
	return api.Errorf(api.FailedPrecondition, "%s %s: it is %s, not a file", operation, p.asked, kindName(info.Mode()))
}

func kindName(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&os.ModeSymlink != 0:
		return "a symlink"
	case mode&os.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&os.ModeSocket != 0:
		return "a socket"
	case mode&os.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}

// mkdirAll makes the folder name with its parents, owned by the default user
// where new.
func (p place) mkdirAll(operation, name string, owner account) error {
	info, err := p.Stat(name)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return p.fail(operation, syscall.ENOTDIR)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return p.fail(operation, err)
	}
	if parent := dirOf(name); parent != name {
		if err := p.mkdirAll(operation, parent, owner); err != nil {
			return err
		}
	}
	err = p.Mkdir(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = p.Lchown(name, int(owner.uid), int(owner.gid))
	}
	return p.fail(operation, err)
}

// owner is the user that new files belong to: the default one, or the guest's
// own when it may not give files away.
func (g *Guest) owner() (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	return g.accounts.lookup(g.opts.DefaultUser)
}
