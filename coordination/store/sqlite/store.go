package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/sourcegraph/conc"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// busyTimeout is how long, in milliseconds, a statement waits for someone who
// looks into the file with another program.
const busyTimeout = 5000

// Store is a store.Store in one SQLite file.
type Store struct {
	path    string
	lock    *fileLock
	writers *sql.DB
	writer  *session
	readers *readerPool

	requests chan *request
	loop     conc.WaitGroup

	// life is held for reading by every call and for writing by Close, which so
	// waits for what runs.
	life   sync.RWMutex
	closed bool
}

var _ store.Store = (*Store)(nil)

// Open opens the store at path and makes it when there is none, with folders
// that only their owner can enter. An older schema is brought forward; a newer
// one, a file that is not a store, and one that another process has open are
// refused with an *api.Error that names the next step.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{path: path, requests: make(chan *request)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	if s.lock, err = lockFile(path + ".lock"); err != nil {
		return nil, err
	}
	if err := private(path); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// The store outlives the call that opened it.
	ctx = context.WithoutCancel(ctx)
	if s.writers, err = sql.Open("sqlite", dsn(path, "rw")); err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if s.writer, err = newSession(ctx, s.writers); err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if err := prepare(s.writer, path); err != nil {
		return nil, err
	}
	readers, err := sql.Open("sqlite", dsn(path, "ro"))
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	s.readers = newReaderPool(ctx, readers)
	s.loop.Go(s.write)
	return s, nil
}

// private makes the file, or narrows it, so that only its owner can read it. The
// files that SQLite puts beside it take the same mode.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

// dsn names the file as a URI, in which nothing of the path is special.
func dsn(path, mode string) string {
	slashed := filepath.ToSlash(path)
	if filepath.VolumeName(path) != "" {
		slashed = "/" + slashed
	}
	query := url.Values{"mode": {mode}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout)}}
	return "file://" + (&url.URL{Path: slashed}).EscapedPath() + "?" + query.Encode()
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	reader, err := s.readers.take()
	if err != nil {
		return s.failure(err)
	}
	defer s.readers.give(reader)
	if err := reader.exec("BEGIN"); err != nil {
		reader.broken = true
		return s.failure(err)
	}
	t := &tx{session: reader}
	// Runs also when fn panics; a reader that cannot end its transaction is not
	// given to anybody else.
	defer func() {
		t.ended = true
		if err := reader.exec("ROLLBACK"); err != nil {
			reader.broken = true
		}
	}()
	if err := fn(t); err != nil {
		return err
	}
	return s.failure(t.fault)
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.requests)
	s.loop.Wait()
	return s.release()
}

// release gives back whatever Open got hold of. The writer goes last: the last
// connection folds the WAL into the file.
func (s *Store) release() error {
	var errs []error
	if s.readers != nil {
		errs = append(errs, s.readers.close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	if s.writers != nil {
		errs = append(errs, s.writers.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.release())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close store %s: %w", s.path, err)
	}
	return nil
}
