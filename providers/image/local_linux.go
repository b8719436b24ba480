package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openLocal opens what a reference names on this machine, and returns the place
// that it leads to, in which nothing is a symbolic link. A reference may come from
// somebody who can use this node and not read it, so that it must not lead into
// the private folders, and what it leads to must have the name of what it is.
func (s *Store) openLocal(r reference) (*os.File, error) {
	place, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		return nil, err
	}
	for _, private := range s.options.Private {
		if private, err := filepath.EvalSymlinks(private); err == nil && isBelow(place, private) {
			return nil, invalid(
				fmt.Sprintf("image %s lies in a folder of vendetta's own", r.text),
				"copy it to a folder of yours on the node",
			)
		}
	}
	if r.kind == kindDisk && !IsDisk(place) {
		return nil, refuse("it leads to %s, whose name does not end in .qcow2, .img or .raw", place)
	}
	// Somebody may put a link there meanwhile.
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, place, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: place, Err: err}
		}
		return os.NewFile(uintptr(fd), place), nil
	}
}

// openFolder is the folder of an open descriptor, as the root of what is in it.
func openFolder(f *os.File) (*os.Root, error) { return os.OpenRoot(fdPath(int(f.Fd()))) }

func isBelow(place, dir string) bool {
	return place == dir || strings.HasPrefix(place, strings.TrimSuffix(dir, "/")+"/")
}
