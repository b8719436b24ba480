package sqlite

import (
	"errors"
	"fmt"
	"path/filepath"

	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// primary is the result code of err without its extension, 0 when err is not
// SQLite's.
func primary(err error) int {
	var own *driver.Error
	if !errors.As(err, &own) {
		return 0
	}
	return own.Code() & 0xff
}

// isTaken: a key that must be unique is there already. The schema has no other
// constraint that a record can break.
func isTaken(err error) bool { return primary(err) == codes.SQLITE_CONSTRAINT }

// isFault: not the statement but the store failed, after which SQLite may have
// rolled back more than the statement.
func isFault(err error) bool {
	switch primary(err) {
	case codes.SQLITE_FULL, codes.SQLITE_IOERR, codes.SQLITE_NOMEM, codes.SQLITE_BUSY, codes.SQLITE_LOCKED,
		codes.SQLITE_INTERRUPT, codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB, codes.SQLITE_READONLY,
		codes.SQLITE_CANTOPEN, codes.SQLITE_PROTOCOL:
		return true
	}
	return false
}

// failure makes an error of the store fit for a user.
func (s *Store) failure(err error) error {
	switch {
	case err == nil:
		return nil
	case primary(err) == codes.SQLITE_FULL:
		return &api.Error{
			Code:    api.ResourceExhausted,
			Message: fmt.Sprintf("store %s: the disk is full; nothing was changed", s.path),
			Next:    fmt.Sprintf("free space on the disk that holds %s, then repeat the command", filepath.Dir(s.path)),
			Cause:   err,
		}
	default:
		return &api.Error{Code: api.Internal, Message: fmt.Sprintf("store %s: %v", s.path, err), Cause: err}
	}
}
