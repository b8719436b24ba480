package sqlite

import (
	"fmt"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

const selectAudit = `SELECT seq, at, principal, method, workspace, fields FROM audit `

func scanAudit(a *store.Audit) func(scanner) error {
	return func(row scanner) error {
		return row.Scan(&a.Seq, instant{&a.At}, &a.Principal, &a.Method, &a.Workspace, &a.Fields)
	}
}

// AppendAudit implements store.Tx. The table has an INTEGER PRIMARY KEY without
// AUTOINCREMENT and nothing is deleted from it, so that the next number is
// always the highest committed one plus one.
func (t *tx) AppendAudit(a store.Audit) (int64, error) {
	switch {
	case t.ended:
		return 0, fmt.Errorf("audit: %w", store.ErrTxEnded)
	case !t.writable:
		return 0, fmt.Errorf("audit: %w", store.ErrReadOnly)
	}
	var seq int64
	err := t.one("audit", `INSERT INTO audit (at, principal, method, workspace, fields) VALUES (?, ?, ?, ?, ?) RETURNING seq`,
		func(row scanner) error { return row.Scan(&seq) },
		nanos(a.At), a.Principal, a.Method, a.Workspace, a.Fields)
	return seq, err
}

// AuditAfter implements store.Tx.
func (t *tx) AuditAfter(seq int64, workspace string, limit int) ([]store.Audit, error) {
	var all []store.Audit
	if workspace == "" {
		err := t.each("audit", selectAudit+`WHERE seq > ? ORDER BY seq LIMIT ?`, collect(&all, scanAudit), seq, bound(limit))
		return all, err
	}
	err := t.each("audit", selectAudit+`WHERE workspace = ? AND seq > ? ORDER BY seq LIMIT ?`,
		collect(&all, scanAudit), workspace, seq, bound(limit))
	return all, err
}
