//go:build linux

package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cpio writes an archive in the kernel's own format; see its
// Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	w     io.Writer
	inode int
	err   error
}

func (c *cpio) entry(name string, mode uint32, device uint64, content []byte) {
	if c.err != nil {
		return
	}
	c.inode++
	if name == cpioEnd {
		c.inode = 0
	}
	_, c.err = fmt.Fprintf(c.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", c.inode, mode, 0, 0, 1, 0,
		len(content), 0, 0, unix.Major(device), unix.Minor(device), len(name)+1, 0, name)
	c.pad(110 + len(name) + 1)
	if c.err == nil {
		_, c.err = c.w.Write(content)
	}
	c.pad(len(content))
}

func (c *cpio) pad(size int) {
	if c.err == nil {
		_, c.err = c.w.Write(make([]byte, -size&3))
	}
}

const cpioEnd = "TRAILER!!!"

// guestInit is the guest's program in the initramfs.
const guestInit = "vendetta-guest"

// writeInitramfs writes the archive that a machine begins with.
func writeInitramfs(w io.Writer, guest []byte, plan []module) error {
	c := &cpio{w: w}
	for _, dir := range []string{"dev", "proc", "sys", "newroot", "volume", "modules"} {
		c.entry(dir, unix.S_IFDIR|0o755, 0, nil)
	}
	// The kernel gives the first program this for its input and output.
	c.entry("dev/console", unix.S_IFCHR|0o600, unix.Mkdev(5, 1), nil)
	c.entry(guestInit, unix.S_IFREG|0o755, 0, guest)
	var order []string
	for _, m := range plan {
		c.entry("modules/"+m.name+".ko", unix.S_IFREG|0o644, 0, m.content)
		order = append(order, m.name+".ko")
	}
	c.entry("modules/order", unix.S_IFREG|0o644, 0, []byte(strings.Join(order, "\n")+"\n"))
	c.entry(cpioEnd, 0, 0, nil)
	return c.err
}

// initramfs returns the archive for a kernel and this guest, made when there is
// none. All machines share it and nobody writes to it.
func (p *Provider) initramfs(ctx context.Context, k kernel) (string, error) {
	key := sha256.New()
	for _, path := range []string{p.opts.GuestProgram, k.path, k.modules} {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(key, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
	}
	name := fmt.Sprintf("initramfs-%x", key.Sum(nil)[:12])
	return p.cached(ctx, name, "initramfs-*", 1, func(ctx context.Context, path string) error {
		guest, err := os.ReadFile(p.opts.GuestProgram)
		if err != nil {
			return err
		}
		plan, err := k.modulePlan(ctx)
		if err != nil {
			return err
		}
		var archive bytes.Buffer
		if err := writeInitramfs(&archive, guest, plan); err != nil {
			return err
		}
		return os.WriteFile(path, archive.Bytes(), 0o644)
	})
}

// cached returns a file of the boot folder, made by make when it is not there.
// Of those that pattern finds the newest stay, keep of them; a machine that holds
// an older one has it open.
func (p *Provider) cached(ctx context.Context, name, pattern string, keep int, make func(ctx context.Context, path string) error) (_ string, err error) {
	dir := p.bootDir()
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	release, err := p.lock()
	if err != nil {
		return "", err
	}
	defer release()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	fresh := filepath.Join(dir, "new-"+name)
	defer func() {
		if rerr := os.Remove(fresh); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	if err := make(ctx, fresh); err != nil {
		return "", err
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", err
	}
	return path, errors.Join(prune(filepath.Join(dir, pattern), path, keep))
}

// prune removes the oldest files of a pattern until keep are left, never spared.
func prune(pattern, spared string, keep int) error {
	for {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) <= keep {
			return err
		}
		oldest, when := "", int64(0)
		for _, path := range found {
			info, err := os.Stat(path)
			if err == nil && path != spared && (oldest == "" || info.ModTime().UnixNano() < when) {
				oldest, when = path, info.ModTime().UnixNano()
			}
		}
		if oldest == "" {
			return nil
		}
		if err := os.Remove(oldest); err != nil {
			return err
		}
	}
}
