//go:build linux

package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// passwdLimit bounds what is read of an image's passwd and group files.
const passwdLimit = 1 << 20

// lastID is the last user id that an instance has.
const lastID = 1<<16 - 1

// Owner is the image's User in numbers.
func (i Image) Owner() (uid, gid uint32, err error) {
	if i.User == "" {
		return 0, 0, nil
	}
	return resolve(i.Root, i.User)
}

// resolve turns an image's USER into numbers by the image's own passwd and group
// files, as container engines do.
func resolve(root, user string) (uid, gid uint32, err error) {
	name, group, _ := strings.Cut(user, ":")
	uid, uidErr := number(name)
	gid, gidErr := number(group)
	if uidErr != nil || group == "" {
		entry, err := lookUp(root, "etc/passwd", name)
		switch {
		case err != nil:
			return 0, 0, err
		case len(entry) >= 4:
			uid, uidErr = number(entry[2])
			if group == "" {
				gid, gidErr = number(entry[3])
			}
		case uidErr == nil && group == "":
			gidErr = nil // a number that has no entry: group root
		}
		if uidErr != nil || group == "" && gidErr != nil {
			return 0, 0, badUser(user, errors.New("its /etc/passwd has no such user"))
		}
	}
	if group != "" && gidErr != nil {
		entry, err := lookUp(root, "etc/group", group)
		if err != nil {
			return 0, 0, err
		}
		if len(entry) < 3 {
			return 0, 0, badUser(user, errors.New("its /etc/group has no such group"))
		}
		if gid, err = number(entry[2]); err != nil {
			return 0, 0, badUser(user, err)
		}
	}
	return uid, gid, nil
}

// number is an id that an instance can have.
func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n > lastID {
		err = fmt.Errorf("%d is beyond the last user id, %d", n, lastID)
	}
	return uint32(n), err
}

func badUser(user string, err error) error {
	return &providers.Error{
		Kind:    providers.ErrImage,
		Message: fmt.Sprintf("the image's user %q cannot be resolved: %v", user, err),
		Next:    "set a USER in the image that exists there",
		Cause:   err,
	}
}

// lookUp returns the fields of the line in a file of the image whose name or
// number is key, nil when there is none or the file is not a plain one. Links in
// the image lead to files of the image.
func lookUp(root, file, key string) ([]string, error) {
	top, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = top.Close() }()
	fd, err := unix.Openat2(int(top.Fd()), file, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(root, file), Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	lines := bufio.NewScanner(io.LimitReader(f, passwdLimit))
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= 3 && (fields[0] == key || fields[2] == key) {
			return fields, nil
		}
	}
	return nil, nil
}
