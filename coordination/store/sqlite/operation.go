package sqlite

import (
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const selectOperation = `SELECT id, workspace_id, workspace_name, node_id, verb, principal, idempotency_key, generation, grace_seconds,
	argument, limits_before, state, error_code, message, next, note, created_at, finished_at FROM operations `

func scanOperation(o *store.Operation) func(scanner) error {
	return func(row scanner) error {
		return row.Scan(&o.ID, &o.WorkspaceID, &o.WorkspaceName, &o.NodeID, &o.Verb, &o.Principal, &o.IdempotencyKey, &o.Generation,
			&o.GraceSeconds, &o.Argument, limits{&o.Before}, &o.State, &o.ErrorCode, &o.Message, &o.Next, &o.Note, instant{&o.CreatedAt}, instant{&o.FinishedAt})
	}
}

func operationArgs(o store.Operation) []any {
	return []any{o.WorkspaceID, o.WorkspaceName, o.NodeID, o.Verb, o.Principal, o.IdempotencyKey, o.Generation, o.GraceSeconds,
		o.Argument, limitsColumn(o.Before), int32(o.State), o.ErrorCode, o.Message, o.Next, o.Note, nanos(o.CreatedAt), nanos(o.FinishedAt), o.ID}
}

// CreateOperation implements store.Tx.
func (t *tx) CreateOperation(o store.Operation) error {
	return t.insert("operation "+o.ID, `INSERT INTO operations
		(workspace_id, workspace_name, node_id, verb, principal, idempotency_key, generation, grace_seconds,
		argument, limits_before, state, error_code, message, next, note, created_at, finished_at, id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, operationArgs(o)...)
}

// UpdateOperation implements store.Tx.
func (t *tx) UpdateOperation(o store.Operation) error {
	return t.update("operation "+o.ID, `UPDATE operations SET
		workspace_id = ?, workspace_name = ?, node_id = ?, verb = ?, principal = ?, idempotency_key = ?, generation = ?, grace_seconds = ?,
		argument = ?, limits_before = ?, state = ?, error_code = ?, message = ?, next = ?, note = ?, created_at = ?, finished_at = ?
		WHERE id = ?`, operationArgs(o)...)
}

// Operation implements store.Tx.
func (t *tx) Operation(id string) (o store.Operation, err error) {
	err = t.one("operation "+id, selectOperation+`WHERE id = ?`, scanOperation(&o), id)
	return o, err
}

// OperationByKey implements store.Tx.
func (t *tx) OperationByKey(principal, key string) (o store.Operation, err error) {
	// The second condition lets SQLite use the partial index.
	err = t.one("operation of "+principal+" with key "+key,
		selectOperation+`WHERE principal = ? AND idempotency_key = ? AND idempotency_key <> ''`, scanOperation(&o), principal, key)
	return o, err
}

// Operations implements store.Tx.
func (t *tx) Operations(workspace string, limit int) ([]store.Operation, error) {
	var all []store.Operation
	if workspace == "" {
		err := t.each("operations", selectOperation+`ORDER BY seq DESC LIMIT ?`, collect(&all, scanOperation), bound(limit))
		return all, err
	}
	err := t.each("operations", selectOperation+`WHERE workspace_id = ? ORDER BY seq DESC LIMIT ?`,
		collect(&all, scanOperation), workspace, bound(limit))
	return all, err
}

// PendingOperations implements store.Tx.
func (t *tx) PendingOperations() ([]store.Operation, error) {
	// The number is written out, as in the partial index, so that SQLite uses it.
	const _ = uint(vendettav1.OperationState_OPERATION_STATE_PENDING - 1)
	var all []store.Operation
	err := t.each("operations", selectOperation+`WHERE state = 1 ORDER BY seq`, collect(&all, scanOperation))
	return all, err
}

// bound makes SQLite's limit of ours: it takes -1 for none.
func bound(limit int) int {
	if limit <= 0 {
		return -1
	}
	return limit
}
