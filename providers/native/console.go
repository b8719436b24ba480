//go:build linux

package native

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

var _ providers.Consoler = (*Provider)(nil)

const (
	// consoleFile is the guest's output, in the instance's folder.
	consoleFile = "guest.log"
	// consoleTold is the most that Console tells.
	consoleTold = 4 << 10
	// consoleKept of the output stays on disk, and some more until the next look.
	consoleKept = 256 << 10
)

// Console is the end of what the guest wrote to its output, in whole lines.
func (p *Provider) Console(_ context.Context, ws string) string {
	if checkID("console", ws) != nil {
		return ""
	}
	if _, err := p.load(ws); err != nil {
		return ""
	}
	f, err := os.Open(filepath.Join(p.instanceDir(ws), consoleFile))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(0, end-consoleTold)
	said := make([]byte, end-from)
	n, err := f.ReadAt(said, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	said = said[:n]
	if from > 0 {
		if _, rest, found := bytes.Cut(said, []byte{'\n'}); found {
			said = rest
		}
	}
	return string(bytes.Trim(bytes.ToValidUTF8(said, []byte("?")), "\x00\n"))
}

// trim gives the disk back what the guest's output takes beyond what is kept. The
// guest goes on writing at the file's end, which does not move.
func trim(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Blocks*512 <= 2*consoleKept {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size-consoleKept)
	if err != nil { // not on this file system
		err = f.Truncate(0)
	}
	return err
}
