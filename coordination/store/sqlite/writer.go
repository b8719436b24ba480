package sqlite

import (
	"context"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// maxBatch bounds how many transactions share one commit, and so how long the
// first of them waits for the last.
const maxBatch = 256

// request is one caller of Update. The function runs on the caller's own
// goroutine while the writer waits for it, so that a panic unwinds the caller's
// stack and cannot end the writer.
type request struct {
	// turn hands the open transaction to the caller.
	turn chan *tx
	// gone is closed by a caller that gave up before its turn.
	gone chan struct{}
	// done says whether the function succeeded. It has room for one.
	done chan bool
	// ack is what became of the transaction: nil when it is on disk, or rolled
	// back because the function failed. It has room for one.
	ack chan error
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{turn: make(chan *tx), gone: make(chan struct{}), done: make(chan bool, 1), ack: make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case t := <-r.turn:
		err := r.run(t, fn)
		// An error of fn may rest on what others wrote in the same commit, so it
		// too is an answer only once that is on disk.
		if failed := <-r.ack; failed != nil {
			return failed
		}
		return err
	case err := <-r.ack: // the transaction could not be begun
		return err
	case <-ctx.Done():
		close(r.gone)
		return ctx.Err()
	}
}

func (r *request) run(t *tx, fn func(store.Tx) error) error {
	ok := false
	defer func() {
		t.ended = true
		r.done <- ok
	}()
	err := fn(t)
	ok = err == nil
	return err
}

// write is the writer: it alone begins and commits. It ends when requests is
// closed.
func (s *Store) write() {
	for first := range s.requests {
		s.commit(first)
	}
}

// commit runs first, and whoever waits by then, in one transaction.
func (s *Store) commit(first *request) {
	if err := s.writer.exec("BEGIN IMMEDIATE"); err != nil {
		first.ack <- s.failure(err)
		return
	}
	// batch is who will be answered.
	batch := make([]*request, 0, 1)
	var wrote bool
	var failed error
	next := first
	for next != nil && failed == nil {
		var what outcome
		if what, failed = s.turn(next); what != skipped || failed != nil {
			batch = append(batch, next)
		}
		wrote = wrote || what == changed
		next = nil
		if len(batch) < maxBatch && failed == nil {
			select {
			case next = <-s.requests: // nil when closed
			default:
			}
		}
	}
	end := "ROLLBACK"
	if wrote && failed == nil {
		end = "COMMIT"
	}
	if err := s.writer.exec(end); err != nil && failed == nil {
		failed = err
		// A commit that failed may have left the transaction open. That it has
		// none any more is all that is asked for.
		_ = s.writer.exec("ROLLBACK")
	}
	failed = s.failure(failed)
	for _, r := range batch {
		r.ack <- failed
	}
}

type outcome int

const (
	// skipped: the caller was gone.
	skipped outcome = iota
	// changed: the function succeeded and what it did is to be committed.
	changed
	// undone: the function failed and what it did was rolled back.
	undone
)

// turn lets one caller run within a savepoint. Its error means that the
// transaction as a whole is lost.
func (s *Store) turn(r *request) (outcome, error) {
	if err := s.writer.exec("SAVEPOINT turn"); err != nil {
		return skipped, err
	}
	t := &tx{session: s.writer, writable: true}
	select {
	case r.turn <- t:
	case <-r.gone:
		return skipped, s.writer.exec("RELEASE turn")
	}
	ok := <-r.done
	if t.fault != nil {
		// A statement failed for want of disk or the like. Whatever the function
		// made of that, the caller is told, and the others of this commit too: how
		// much SQLite rolled back by itself depends on the failure.
		return undone, t.fault
	}
	if !ok {
		if err := s.writer.exec("ROLLBACK TO turn"); err != nil {
			return undone, err
		}
	}
	if err := s.writer.exec("RELEASE turn"); err != nil {
		return undone, err
	}
	if !ok {
		return undone, nil
	}
	return changed, nil
}
