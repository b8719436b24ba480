//go:build linux

package tree

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/sourcegraph/conc"
	"golang.org/x/sys/unix"
)

// Trash is a folder in which trees wait for their removal, which goes on in the
// background. Close it.
type Trash struct {
	dir string
	log *slog.Logger

	reaping context.Context //nolint:containedctx // the reaper's life is the trash's
	end     context.CancelFunc
	reapers conc.WaitGroup
	one     sync.Mutex
}

// NewTrash makes the trash; it touches nothing. The folder dir is made when
// needed, and lies on the file system of what is thrown into it.
func NewTrash(dir string, log *slog.Logger) *Trash {
	t := &Trash{dir: dir, log: log}
	t.reaping, t.end = context.WithCancel(context.Background()) //nolint:forbidigo // ends with Close
	return t
}

// Discard takes a tree out of the way at once and has its files removed later.
// An absent one is success. On a full disk, where even a rename may not be
// possible, the files are removed before it returns.
func (t *Trash) Discard(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := os.Mkdir(t.dir, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = os.Rename(dir, filepath.Join(t.dir, rand.Text()))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return Remove(t.reaping, dir)
	}
	if err != nil {
		return err
	}
	t.reapers.Go(t.reap)
	return nil
}

// reap empties the trash, of earlier processes too.
func (t *Trash) reap() {
	t.one.Lock()
	defer t.one.Unlock()
	if err := t.Empty(t.reaping); err != nil && t.reaping.Err() == nil {
		t.log.Warn("empty trash", "error", err)
	}
}

// Empty removes what is in the trash before it returns.
func (t *Trash) Empty(ctx context.Context) error {
	top, err := unix.Open(t.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: t.dir, Err: err}
	}
	return errors.Join(empty(ctx, top), unix.Close(top))
}

// Wait returns when all that was discarded so far is gone.
func (t *Trash) Wait() { t.reapers.Wait() }

// Close ends the removal, which a later process takes up again with its first
// Discard.
func (t *Trash) Close() {
	t.end()
	t.reapers.Wait()
}
