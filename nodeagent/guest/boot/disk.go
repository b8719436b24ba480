//go:build linux

package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// machine is where the kernel shows its things; tests have their own.
type machine struct {
	sys, dev string
}

var thisMachine = machine{sys: "/sys", dev: "/dev"}

// patience bounds the wait for a disk or a port that the kernel is still finding.
const patience = 20 * time.Second

// find waits until look finds something.
func find(ctx context.Context, what string, look func() (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		path, err := look()
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("find %s: %w", what, err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return "", fmt.Errorf("find %s: there is none: %w", what, ctx.Err())
		}
	}
}

// disk is the device of the disk with a serial number.
func (m machine) disk(serial string) (string, error) {
	return m.byAttribute(filepath.Join(m.sys, "block", "*", "serial"), serial)
}

// port is the device of the virtio-serial port with a name.
func (m machine) port(name string) (string, error) {
	return m.byAttribute(filepath.Join(m.sys, "class", "virtio-ports", "*", "name"), name)
}

// byAttribute is the device whose attribute holds a value.
func (m machine) byAttribute(pattern, value string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	for _, path := range found {
		raw, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(raw)) == value {
			device := filepath.Join(m.dev, filepath.Base(filepath.Dir(path)))
			_, err := os.Stat(device)
			return device, err
		}
	}
	return "", os.ErrNotExist
}

// size of a disk in bytes.
func (m machine) size(device string) (int64, error) {
	raw, err := os.ReadFile(filepath.Join(m.sys, "class", "block", filepath.Base(device), "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return sectors * 512, err
}

// resizeFilesystem is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
const resizeFilesystem = 0x40086610

// filesystem reads the number of blocks of an ext4, and their size in bytes; see
// the kernel's Documentation/filesystems/ext4/super.rst.
func filesystem(device string) (blocks, size uint64, err error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return 0, 0, err
	}
	if binary.LittleEndian.Uint16(super[0x38:]) != 0xef53 {
		return 0, 0, fmt.Errorf("%s holds no ext4", device)
	}
	blocks = uint64(binary.LittleEndian.Uint32(super[4:]))
	if binary.LittleEndian.Uint32(super[0x60:])&0x80 != 0 { // 64bit
		blocks |= uint64(binary.LittleEndian.Uint32(super[0x150:])) << 32
	}
	return blocks, 1024 << (binary.LittleEndian.Uint32(super[0x18:]) & 15), nil
}

// grow makes the ext4 that is mounted at dir as large as its disk.
func (m machine) grow(dir, device string) error {
	bytes, err := m.size(device)
	if err != nil {
		return err
	}
	has, block, err := filesystem(device)
	if err != nil {
		return err
	}
	blocks := uint64(bytes) / block
	if has >= blocks {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), resizeFilesystem, uintptr(unsafe.Pointer(&blocks))); errno != 0 { //nolint:gosec // the ioctl takes a pointer
		return fmt.Errorf("grow the file system at %s to %d bytes: %w", dir, bytes, errno)
	}
	return nil
}

// growAll grows the file systems of a machine that runs.
func (m machine) growAll(ctx context.Context) error {
	return errors.Join(m.growOne(ctx, serialRoot, "/"), m.growVolume(ctx))
}

func (m machine) growVolume(ctx context.Context) error {
	return m.growOne(ctx, serialVolume, ProjectDir)
}

func (m machine) growOne(ctx context.Context, serial, dir string) error {
	device, err := find(ctx, "the disk "+serial, func() (string, error) { return m.disk(serial) })
	if err != nil {
		return err
	}
	return m.grow(dir, device)
}
