package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// session is one connection with its prepared statements. One goroutine uses it
// at a time.
type session struct {
	// ctx has no end: a statement that has begun is not interrupted, and the
	// driver needs no goroutine to watch for it.
	ctx    context.Context //nolint:containedctx // the methods of a store.Tx take none
	conn   *sql.Conn
	stmts  map[string]*sql.Stmt
	broken bool
}

func newSession(ctx context.Context, db *sql.DB) (*session, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &session{ctx: ctx, conn: conn, stmts: map[string]*sql.Stmt{}}, nil
}

// stmt prepares each query once. Queries are constants, so they are few.
func (s *session) stmt(query string) (*sql.Stmt, error) {
	if stmt, ok := s.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(s.ctx, query)
	if err != nil {
		return nil, err
	}
	s.stmts[query] = stmt
	return stmt, nil
}

func (s *session) exec(query string) error {
	_, err := s.change(query)
	return err
}

// change runs a statement and returns how many rows it touched.
func (s *session) change(query string, args ...any) (int64, error) {
	stmt, err := s.stmt(query)
	if err != nil {
		return 0, err
	}
	result, err := stmt.ExecContext(s.ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// scanner is a row of sql.Row or sql.Rows.
type scanner interface{ Scan(dest ...any) error }

func (s *session) one(query string, scan func(scanner) error, args ...any) error {
	stmt, err := s.stmt(query)
	if err != nil {
		return err
	}
	return scan(stmt.QueryRowContext(s.ctx, args...))
}

func (s *session) each(query string, scan func(scanner) error, args ...any) (err error) {
	stmt, err := s.stmt(query)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(s.ctx, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// close ends the connection. Its statements go first: database/sql does not track
// those of a sql.Conn, and SQLite keeps a connection that has some left open, with
// its files, and says nothing.
func (s *session) close() error {
	var errs []error
	// Of a connection that is gone the driver cannot finish statements any more.
	if s.conn.Raw(func(any) error { return nil }) == nil {
		for _, stmt := range s.stmts {
			errs = append(errs, stmt.Close())
		}
	}
	return errors.Join(append(errs, s.conn.Close())...)
}

// idleReaders is how many connections are kept for reading; more are opened when
// more read at once, so that no View ever waits for another. To open one costs many
// times what a View does, and every command reads, so a burst of them should find
// its readers; an idle one costs two descriptors and some 100 KB.
const idleReaders = 16

type readerPool struct {
	db   *sql.DB
	open func() (*session, error)

	mu   sync.Mutex
	idle []*session
}

func newReaderPool(ctx context.Context, db *sql.DB) *readerPool {
	db.SetMaxIdleConns(0) // idle ones are kept here, with their statements
	return &readerPool{db: db, open: func() (*session, error) { return newSession(ctx, db) }}
}

func (p *readerPool) take() (*session, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		s := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	return p.open()
}

func (p *readerPool) give(s *session) {
	p.mu.Lock()
	keep := !s.broken && len(p.idle) < idleReaders
	if keep {
		p.idle = append(p.idle, s)
	}
	p.mu.Unlock()
	if !keep {
		_ = s.close() // nothing was written through it
	}
}

// close is called when no reader is out.
func (p *readerPool) close() error {
	var errs []error
	for _, s := range p.idle {
		errs = append(errs, s.close())
	}
	return errors.Join(append(errs, p.db.Close())...)
}
