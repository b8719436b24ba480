//go:build linux

package guest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// reserve is room that the guest keeps for itself beside its records. A full disk
// is mended by a command that removes files, and that command needs a record: a
// part of the reserve is given up for it, and taken again once there is room.
type reserve string

const (
	reserveBytes = 256 << 10
	// reservePart is room for a folder and its record.
	reservePart = 16 << 10
)

// reserveOf is the reserve of the process folders below dir.
func reserveOf(dir string) reserve { return reserve(filepath.Clean(dir) + ".reserve") }

// keep takes what is missing of the room. Where there is none it keeps what it
// has, which is no error.
func (r reserve) keep() {
	f, err := os.OpenFile(string(r), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() >= reserveBytes {
		return
	}
	if _, err := f.Write(make([]byte, reserveBytes-info.Size())); err != nil {
		_ = f.Truncate(info.Size())
	}
}

// spend runs write, and once more with a part of the room given up when the disk
// is full.
func (r reserve) spend(write func() error) error {
	err := write()
	if !r.give(err) {
		return err
	}
	return write()
}

// give gives up a part of the room when err says that the disk is full.
func (r reserve) give(err error) bool {
	if !errors.Is(err, syscall.ENOSPC) {
		return false
	}
	info, serr := os.Lstat(string(r))
	return serr == nil && info.Size() > 0 && os.Truncate(string(r), max(0, info.Size()-reservePart)) == nil
}
