//go:build linux

package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// describe gives the copy, a name in one of our own folders, all that the original
// has beside its content. The order counts: a new owner takes set-user-id bits
// and capabilities away, and the mode perhaps our own access.
func (c *copier) describe(fd int, st *unix.Stat_t, dir int, name string) error {
	if c.root {
		uid, err := c.move(st.Uid)
		if err != nil {
			return err
		}
		gid, err := c.move(st.Gid)
		if err != nil {
			return err
		}
		if err := unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set the owner: %w", err)
		}
	}
	if err := c.attributes(self(fd), self(dir)+"/"+name); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the times: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	return nil
}

// move is what an owner becomes in the copy.
func (c *copier) move(id uint32) (uint32, error) {
	if c.ids == nil {
		return id, nil
	}
	if id < c.ids.From || id-c.ids.From >= c.ids.Count {
		return 0, fmt.Errorf("%w: %d", ErrOutside, id)
	}
	return id - c.ids.From + c.ids.To, nil
}

// Attributes that hold ids.
const (
	capability = "security.capability"
	accessList = "system.posix_acl_access"
	newFiles   = "system.posix_acl_default"
)

// wanted tells the extended attributes that a copy keeps. Others are the
// machine's business, as security labels are, or out of an ordinary user's reach.
func (c *copier) wanted(name string) bool {
	switch name {
	case accessList, newFiles:
		return true
	case capability:
		return c.root
	}
	return strings.HasPrefix(name, "user.") || c.root && strings.HasPrefix(name, "trusted.overlay.")
}

// maxAttributes is what the kernel gives at most, XATTR_LIST_MAX and
// XATTR_SIZE_MAX of linux/limits.h.
const maxAttributes = 64 << 10

func (c *copier) attributes(from, to string) error {
	n, err := unix.Listxattr(from, nil)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return nil
	}
	if c.value == nil {
		c.value = make([]byte, maxAttributes)
	}
	value := c.value
	if err == nil {
		n, err = unix.Listxattr(from, value)
	}
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for name := range strings.SplitSeq(string(value[:n]), "\x00") {
		if name == "" || !c.wanted(name) {
			continue
		}
		size, err := unix.Getxattr(from, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = c.moveAttribute(name, value[:size])
		}
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:size], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %q: %w", name, err)
		}
	}
	return nil
}

// moveAttribute moves the ids in an attribute's value.
func (c *copier) moveAttribute(name string, value []byte) error {
	if c.ids == nil {
		return nil
	}
	move := func(at []byte) error {
		id, err := c.move(binary.LittleEndian.Uint32(at))
		binary.LittleEndian.PutUint32(at, id)
		return err
	}
	switch name {
	case capability:
		// struct vfs_ns_cap_data of linux/capability.h: revision 3 ends with the
		// root of the user namespace that the capabilities count in.
		const revision, length = 0x03000000, 24
		if len(value) == length && binary.LittleEndian.Uint32(value)&0xff000000 == revision {
			return move(value[20:])
		}
	case accessList, newFiles:
		// linux/posix_acl_xattr.h: a version, then entries of tag, permissions, id.
		const head, size, user, group = 4, 8, 0x02, 0x08
		for at := head; at+size <= len(value); at += size {
			if tag := binary.LittleEndian.Uint16(value[at:]); tag == user || tag == group {
				if err := move(value[at+4:]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
