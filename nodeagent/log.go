package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// logName is the log in the state directory. Supervisor and agent append to it.
const logName = "agent.log"

// logLimit is the size at which the log is moved aside, in bytes. One old log
// is kept, so both together stay below twice that.
const logLimit = 8 << 20

// tailLines are sent when a caller does not say how many.
const tailLines = 100

// tailLimit bounds what is looked through for the last lines, in bytes.
const tailLimit = 1 << 20

// keepLog rotates the log while the agent runs.
func (a *Agent) keepLog(ctx context.Context) {
	path := filepath.Join(a.options.StateDir, logName)
	for {
		if err := rotateLog(path, logLimit); err != nil {
			a.log.Warn("log not rotated", "error", err)
		}
		if !wait(ctx, a.timing.interval) {
			return
		}
	}
}

// rotateLog copies a log that has grown beyond limit to NAME.1 and empties it.
// It is emptied and not renamed since other processes hold it open to append.
func rotateLog(path string, limit int64) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() <= limit {
		return err
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	// Of one that grew much in between, the end counts.
	_, err = io.Copy(to, io.NewSectionReader(from, max(0, info.Size()-2*limit), 2*limit))
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Truncate(path, 0)
}

// readLog sends the last lines of the log and, when following, what is added to
// it until ctx ends.
func readLog(ctx context.Context, dir string, lines int, follow bool, pause time.Duration, send func([]byte) error) error {
	if lines <= 0 {
		lines = tailLines
	}
	f, err := os.Open(filepath.Join(dir, logName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer func() { _ = f.Close() }()
	at, err := tailStart(f, lines)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, at)
		if n > 0 {
			at += int64(n)
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("read the log: %w", err)
		case !follow || !wait(ctx, pause):
			return nil
		}
		if info, err := f.Stat(); err == nil && info.Size() < at {
			at = 0 // rotated
		}
	}
}

// tailStart is the offset at which the last lines begin.
func tailStart(f *os.File, lines int) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	start := max(0, info.Size()-tailLimit)
	buf := make([]byte, info.Size()-start)
	n, err := f.ReadAt(buf, start)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	buf = buf[:n]
	end := len(bytes.TrimSuffix(buf, []byte("\n")))
	for range lines {
		end = bytes.LastIndexByte(buf[:max(end, 0)], '\n')
		if end < 0 {
			return start, nil
		}
	}
	return start + int64(end) + 1, nil
}
