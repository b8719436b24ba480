//go:build linux

package lxc

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// mountPoints are the folders that the container needs in its root.
var mountPoints = []string{
	"proc", "sys", "dev", "etc",
	strings.TrimPrefix(providers.Project, "/"),
	strings.TrimPrefix(providers.GuestState, "/"),
	strings.TrimPrefix(providers.GuestLink, "/"),
	strings.TrimPrefix(path.Dir(providers.GuestProgram), "/"),
}

// root is an instance's root file system, opened while nothing runs in it. What a
// workspace left there is never followed: every step opens one folder below the
// last one, and what is no folder makes way.
type root struct {
	fd int
	v  volume
}

const folderFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// furnish makes the mount points and the files that tell the container of its
// place.
func (r root) furnish(files map[string]string) error {
	for _, p := range mountPoints {
		fd, err := r.folder(p)
		if err != nil {
			return fmt.Errorf("make /%s in the instance: %w", p, err)
		}
		if "/"+p == path.Dir(providers.GuestProgram) {
			err = r.place(fd, path.Base(providers.GuestProgram))
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
	}
	etc, err := r.folder("etc")
	if err != nil {
		return fmt.Errorf("make /etc in the instance: %w", err)
	}
	for name, text := range files {
		if err := r.write(etc, name, text); err != nil {
			return errors.Join(fmt.Errorf("write /etc/%s in the instance: %w", name, err), unix.Close(etc))
		}
	}
	return unix.Close(etc)
}

// folder opens a folder, made where it is missing.
func (r root) folder(p string) (int, error) {
	at, err := unix.Openat(r.fd, ".", folderFlags, 0)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(p, "/") {
		next, err := r.enter(at, name)
		_ = unix.Close(at) // nothing was written to it
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

func (r root) enter(at int, name string) (int, error) {
	fd, err := unix.Openat(at, name, folderFlags, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		if err := unix.Unlinkat(at, name, 0); err != nil {
			return -1, err
		}
		err = unix.ENOENT
	}
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(at, name, 0o755); err != nil {
		return -1, err
	}
	if fd, err = unix.Openat(at, name, folderFlags, 0); err != nil {
		return -1, err
	}
	err = errors.Join(unix.Fchmod(fd, 0o755), unix.Fchown(fd, int(r.v.IDBase), int(r.v.IDBase)))
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// place makes sure that there is a file to mount on.
func (r root) place(at int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil
	}
	return r.write(at, name, "")
}

// write puts a file where there may be anything but a folder with something in it.
func (r root) write(at int, name, text string) error {
	err := unix.Unlinkat(at, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(text)
	return errors.Join(err, f.Chmod(0o644), f.Chown(int(r.v.IDBase), int(r.v.IDBase)), f.Close())
}
