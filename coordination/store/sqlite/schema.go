package sqlite

import (
	"fmt"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// applicationID marks the file as ours ("vndt").
const applicationID = 0x766e6474

// migrations bring the schema forward, one version each, in order. A released
// one is never changed; PRAGMA user_version says how many have been applied.
//
// No table refers to another by a foreign key: operations outlive the workspaces
// that they are about, and what may be deleted when is for the domain to say.
var migrations = [][]string{{
	`CREATE TABLE meta (
		key   TEXT NOT NULL PRIMARY KEY,
		value TEXT NOT NULL
	) STRICT, WITHOUT ROWID`,

	`CREATE TABLE nodes (
		id         TEXT NOT NULL PRIMARY KEY,
		name       TEXT NOT NULL UNIQUE,
		address    BLOB,
		labels     TEXT,
		state      INTEGER NOT NULL,
		message    TEXT NOT NULL,
		draining   INTEGER NOT NULL,
		host_keys  TEXT,
		created_at INTEGER,
		updated_at INTEGER,
		report     BLOB
	) STRICT`,

	`CREATE TABLE workspaces (
		id           TEXT NOT NULL PRIMARY KEY,
		name         TEXT NOT NULL UNIQUE,
		node_id      TEXT NOT NULL,
		spec         BLOB,
		desired      INTEGER NOT NULL,
		generation   INTEGER NOT NULL,
		state        INTEGER NOT NULL,
		instance     TEXT NOT NULL,
		error_code   TEXT NOT NULL,
		message      TEXT NOT NULL,
		next         TEXT NOT NULL,
		operation_id TEXT NOT NULL,
		created_at   INTEGER,
		updated_at   INTEGER
	) STRICT`,
	`CREATE INDEX workspaces_of_node ON workspaces (node_id, name)`,

	// seq is the order of creation, which a clock that was set back cannot upset.
	`CREATE TABLE operations (
		seq             INTEGER PRIMARY KEY,
		id              TEXT NOT NULL UNIQUE,
		workspace_id    TEXT NOT NULL,
		workspace_name  TEXT NOT NULL,
		node_id         TEXT NOT NULL,
		verb            TEXT NOT NULL,
		principal       TEXT NOT NULL,
		idempotency_key TEXT NOT NULL,
		generation      INTEGER NOT NULL,
		grace_seconds   INTEGER NOT NULL,
		state           INTEGER NOT NULL,
		error_code      TEXT NOT NULL,
		message         TEXT NOT NULL,
		next            TEXT NOT NULL,
		created_at      INTEGER,
		finished_at     INTEGER
	) STRICT`,
	`CREATE UNIQUE INDEX operations_by_key ON operations (principal, idempotency_key) WHERE idempotency_key <> ''`,
	`CREATE INDEX operations_of_workspace ON operations (workspace_id, seq)`,
	`CREATE INDEX operations_pending ON operations (seq) WHERE state = 1`,

	`CREATE TABLE audit (
		seq       INTEGER PRIMARY KEY,
		at        INTEGER,
		principal TEXT NOT NULL,
		method    TEXT NOT NULL,
		workspace TEXT NOT NULL,
		fields    TEXT NOT NULL
	) STRICT`,
	`CREATE INDEX audit_of_workspace ON audit (workspace, seq)`,
}, {
	`ALTER TABLE nodes ADD COLUMN spares TEXT`,
	`ALTER TABLE workspaces ADD COLUMN spare INTEGER NOT NULL DEFAULT 0`,
}, {
	`ALTER TABLE operations ADD COLUMN argument TEXT NOT NULL DEFAULT ''`,
	`ALTER TABLE operations ADD COLUMN limits_before TEXT`,
	`ALTER TABLE operations ADD COLUMN note TEXT NOT NULL DEFAULT ''`,
}}

// prepare checks that the file is a store that this program understands, then
// sets the connection up and brings the schema forward.
func prepare(s *session, path string) error {
	if err := check(s, path); err != nil {
		return err
	}
	var mode string
	// WAL: readers and the writer do not wait for each other. FULL: each commit is
	// on disk before it is acknowledged.
	if err := s.one(`PRAGMA journal_mode = WAL`, func(row scanner) error { return row.Scan(&mode) }); err != nil {
		return fmt.Errorf("open store %s: %w", path, err)
	}
	if mode != "wal" {
		return &api.Error{
			Code:    api.FailedPrecondition,
			Message: fmt.Sprintf("open store %s: its file system has no shared memory, journal mode is %s", path, mode),
			Next:    "put the state directory on a local disk (--state-dir)",
		}
	}
	for _, pragma := range []string{
		`PRAGMA synchronous = FULL`,
		`PRAGMA foreign_keys = ON`,
		// Who commits when the WAL is this many pages long (32 MB) folds it into the
		// file for all. Measured with 64 writers: at SQLite's own 1000 that is more
		// than one commit in a hundred.
		`PRAGMA wal_autocheckpoint = 8000`,
	} {
		if err := s.exec(pragma); err != nil {
			return fmt.Errorf("open store %s: %w", path, err)
		}
	}
	if err := migrate(s); err != nil {
		return fmt.Errorf("open store %s: %w", path, err)
	}
	return nil
}

// number reads a query's one integer.
func number(s *session, query string) (int, error) {
	var n int
	err := s.one(query, func(row scanner) error { return row.Scan(&n) })
	return n, err
}

func check(s *session, path string) error {
	version, err := number(s, `PRAGMA user_version`)
	if err != nil {
		return foreign(path, err)
	}
	tables, err := number(s, `SELECT count(*) FROM sqlite_schema`)
	if err != nil {
		return foreign(path, err)
	}
	id, err := number(s, `PRAGMA application_id`)
	if err != nil {
		return foreign(path, err)
	}
	switch {
	case tables > 0 && id != applicationID:
		return foreign(path, nil)
	case version > len(migrations):
		return &api.Error{
			Code:    api.FailedPrecondition,
			Message: fmt.Sprintf("open store %s: its schema is version %d, this program (%s) knows up to %d", path, version, api.Version, len(migrations)),
			Next:    "run the newer vendetta that wrote it, or restore a backup from before the upgrade",
		}
	}
	return nil
}

func foreign(path string, cause error) error {
	return &api.Error{
		Code:    api.FailedPrecondition,
		Message: fmt.Sprintf("open store %s: the file is not a vendetta store, or is damaged", path),
		Next:    "move the file away or restore a backup; another state directory can be named with --state-dir",
		Cause:   cause,
	}
}

// migrate applies what is missing, each version in one transaction.
func migrate(s *session) error {
	version, err := number(s, `PRAGMA user_version`)
	if err != nil {
		return err
	}
	for ; version < len(migrations); version++ {
		if err := apply(s, version); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", version+1, err)
		}
	}
	return nil
}

func apply(s *session, version int) error {
	if err := s.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	steps := append([]string{}, migrations[version]...)
	steps = append(steps,
		fmt.Sprintf(`PRAGMA application_id = %d`, applicationID),
		fmt.Sprintf(`PRAGMA user_version = %d`, version+1),
		`COMMIT`)
	for _, step := range steps {
		// Not kept as prepared statements: each runs once.
		if _, err := s.conn.ExecContext(s.ctx, step); err != nil {
			_ = s.exec(`ROLLBACK`) // the step's error is the one to tell
			return err
		}
	}
	return nil
}
