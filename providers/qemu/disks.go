//go:build linux

package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// leastDisk is the smallest disk: the volume's template has to fit.
const leastDisk = 128 << 20

// qemuImg makes and changes disks.
func qemuImg(ctx context.Context, args ...string) error {
	return tool(ctx, nil, "qemu-img", args...)
}

// tool runs one of the programs that make disks.
func tool(ctx context.Context, attr *syscall.SysProcAttr, name string, args ...string) error {
	path, err := lookProgram(name)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &said, &said, attr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(said.String()))
	}
	return nil
}

// lookProgram finds a program also where an ordinary user's PATH does not look.
func lookProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return path, err
}

// formatExt4 makes a file system in a new file of this size. Inode tables stay
// unwritten and the journal is small; the guest grows it to the disk's size.
func formatExt4(ctx context.Context, path string, size int64, attr *syscall.SysProcAttr, args ...string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	argv := append([]string{
		"-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=16",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard",
	}, args...)
	return tool(ctx, attr, "mkfs.ext4", append(argv, path)...)
}

// baseDisk returns the disk of a container image, made once.
func (p *Provider) baseDisk(ctx context.Context, i image.Image) (string, error) {
	return p.opts.Images.Derived(ctx, i.Digest, "ext4", func(ctx context.Context, path string) error {
		files, bytes, err := measure(i.Root)
		if err != nil {
			return err
		}
		var attr *syscall.SysProcAttr
		if i.Flat {
			// What an ordinary user unpacked is to be root's inside.
			attr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			}
		}
		size := (bytes + bytes/8 + files*256 + 96<<20) &^ (1<<20 - 1)
		return formatExt4(ctx, path, size, attr, "-N", strconv.FormatInt(files+files/4+4096, 10), "-d", i.Root)
	})
}

// measure counts the entries of a tree and the bytes in whole blocks.
func measure(root string) (files, bytes int64, err error) {
	err = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files++
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Type().IsRegular() {
			bytes += (info.Size() + 4095) &^ 4095
		} else {
			bytes += 4096
		}
		return nil
	})
	return files, bytes, err
}

// volumeTemplate returns an empty volume of a size, made once.
func (p *Provider) volumeTemplate(ctx context.Context, size int64) (string, error) {
	return p.cached(ctx, fmt.Sprintf("volume-%d.qcow2", size), "volume-*.qcow2", 8, func(ctx context.Context, path string) (err error) {
		raw := path + ".raw"
		defer func() {
			if rerr := os.Remove(raw); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}()
		if err := formatExt4(ctx, raw, leastDisk-32<<20, nil); err != nil {
			return err
		}
		if err := qemuImg(ctx, "convert", "-f", "raw", "-O", "qcow2", raw, path); err != nil {
			return err
		}
		return qemuImg(ctx, "resize", "-q", path, strconv.FormatInt(size, 10))
	})
}

// overlayTemplate returns an overlay of a size that nothing was written to. What
// is below it is said at each start; its header names no file.
func (p *Provider) overlayTemplate(ctx context.Context, format string, size int64) (string, error) {
	return p.cached(ctx, fmt.Sprintf("overlay-%s-%d.qcow2", format, size), "overlay-*.qcow2", 8, func(ctx context.Context, path string) error {
		return qemuImg(ctx, "create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", format, path, strconv.FormatInt(size, 10))
	})
}

// diskInfo is what qemu-img tells of an image.
type diskInfo struct {
	Format string `json:"format"`
	Size   int64  `json:"virtual-size"`
	// Backing is set in an image that is itself an overlay.
	Backing string `json:"backing-filename"`
}

// inspectDisk asks what a disk image is. It may come from anywhere, so the format
// is the one that the store found, never one that QEMU guesses.
func inspectDisk(ctx context.Context, path, format string) (diskInfo, error) {
	program, err := lookProgram("qemu-img")
	if err != nil {
		return diskInfo{}, err
	}
	raw, err := exec.CommandContext(ctx, program, "info", "-U", "--output=json", "-f", format, path).Output()
	var info diskInfo
	if err == nil {
		err = json.Unmarshal(raw, &info)
	}
	if err == nil && (info.Backing != "" || info.Size <= 0 || info.Size > math.MaxInt64/2) {
		err = errors.New("it refers to another file, or has no size")
	}
	if err != nil {
		return info, &providers.Error{
			Kind: providers.ErrImage, Message: fmt.Sprintf("the disk image cannot be used: %v", err),
			Next: "use a qcow2 or raw image that stands alone", Cause: err,
		}
	}
	return info, nil
}

// copyFile copies a file of the agent's own to a new one; holes stay holes, and
// where the file system can share blocks until they are written, it does.
func copyFile(ctx context.Context, from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		begin, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for begin < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := min(end-begin, 16<<20)
			_, err := io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(in, begin, part))
			if err != nil {
				return err
			}
			begin += part
		}
		at = end
	}
	return nil
}

// allocated is what files take on disk, in bytes; those that are missing nothing.
func allocated(paths ...string) int64 {
	var sum int64
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
	}
	return sum
}
