package sqlite

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// tx is a store.Tx on a session whose transaction is open.
type tx struct {
	session  *session
	writable bool
	ended    bool
	// fault is the first failure that was the store's and not the caller's.
	fault error
}

var _ store.Tx = (*tx)(nil)

// insert adds a record; a constraint that it breaks means ErrExists.
func (t *tx) insert(what, query string, args ...any) error {
	_, err := t.change(query, args...)
	return named(what, err)
}

// update changes one record, which must be there.
func (t *tx) update(what, query string, args ...any) error {
	n, err := t.change(query, args...)
	if err == nil && n == 0 {
		err = store.ErrNotFound
	}
	return named(what, err)
}

func (t *tx) change(query string, args ...any) (int64, error) {
	switch {
	case t.ended:
		return 0, store.ErrTxEnded
	case !t.writable:
		return 0, store.ErrReadOnly
	}
	n, err := t.session.change(query, args...)
	return n, t.classify(err)
}

// one reads the one record that the arguments name.
func (t *tx) one(what, query string, scan func(scanner) error, args ...any) error {
	if t.ended {
		return named(what, store.ErrTxEnded)
	}
	return named(what, t.classify(t.session.one(query, scan, args...)))
}

func (t *tx) each(what, query string, scan func(scanner) error, args ...any) error {
	if t.ended {
		return named(what, store.ErrTxEnded)
	}
	return named(what, t.classify(t.session.each(query, scan, args...)))
}

// classify tells the caller's errors from the store's and remembers the latter.
func (t *tx) classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return store.ErrNotFound
	case isTaken(err):
		return store.ErrExists
	case t.fault == nil && isFault(err):
		t.fault = err
	}
	return err
}

// named says which record an error is about.
func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Meta implements store.Tx.
func (t *tx) Meta(key string) (string, error) {
	var value string
	err := t.one("meta "+key, `SELECT value FROM meta WHERE key = ?`,
		func(row scanner) error { return row.Scan(&value) }, key)
	return value, err
}

// SetMeta implements store.Tx.
func (t *tx) SetMeta(key, value string) error {
	return t.insert("meta "+key,
		`INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
}
