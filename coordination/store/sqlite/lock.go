package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// errHeld: another process has the lock.
var errHeld = errors.New("lock is held")

// fileLock keeps a store to one process. The kernel drops it with the process,
// however that ends; the file stays, so that nobody can lock one that was
// removed under him.
type fileLock struct{ file *os.File }

// lockFile takes the lock and writes the process's id into it, for the message
// that the next one gets.
func lockFile(path string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock store: %w", err)
	}
	if err := lock(f); err != nil {
		defer func() { _ = f.Close() }() // nothing was written
		if !errors.Is(err, errHeld) {
			return nil, fmt.Errorf("lock store %s: %w", path, err)
		}
		return nil, &api.Error{
			Code:    api.FailedPrecondition,
			Message: fmt.Sprintf("open store %s: %s has it open", strings.TrimSuffix(path, ".lock"), holder(f)),
			Next:    "stop the other server (vendetta server stop), or use another state directory (--state-dir)",
		}
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock store %s: %w", path, err), f.Close())
	}
	return &fileLock{file: f}, nil
}

// holder names who has the lock, as far as the file tells.
func holder(f io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid, perr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || perr != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}

func (l *fileLock) release() error { return l.file.Close() }
