package sqlite

import (
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

type (
	nodeAddress   = vendettav1.NodeAddress
	nodeReport    = vendettav1.NodeReport
	workspaceSpec = vendettav1.WorkspaceSpec
)

const selectWorkspace = `SELECT id, name, node_id, spec, desired, generation, state, instance, error_code, message, next,
	operation_id, created_at, updated_at, spare FROM workspaces `

func scanWorkspace(w *store.Workspace) func(scanner) error {
	return func(row scanner) error {
		return row.Scan(&w.ID, &w.Name, &w.NodeID, message[workspaceSpec, *workspaceSpec]{&w.Spec}, &w.Desired, &w.Generation,
			&w.State, &w.Instance, &w.ErrorCode, &w.Message, &w.Next,
			&w.OperationID, instant{&w.CreatedAt}, instant{&w.UpdatedAt}, &w.Spare)
	}
}

func workspaceArgs(w store.Workspace) ([]any, error) {
	spec, err := encode(w.Spec, w.Spec != nil)
	if err != nil {
		return nil, err
	}
	return []any{w.Name, w.NodeID, spec, int32(w.Desired), w.Generation, int32(w.State), w.Instance, w.ErrorCode,
		w.Message, w.Next, w.OperationID, nanos(w.CreatedAt), nanos(w.UpdatedAt), w.Spare, w.ID}, nil
}

// CreateWorkspace implements store.Tx.
func (t *tx) CreateWorkspace(w store.Workspace) error {
	args, err := workspaceArgs(w)
	if err != nil {
		return named("workspace "+w.Name, err)
	}
	return t.insert("workspace "+w.Name, `INSERT INTO workspaces
		(name, node_id, spec, desired, generation, state, instance, error_code, message, next, operation_id, created_at, updated_at, spare, id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, args...)
}

// UpdateWorkspace implements store.Tx.
func (t *tx) UpdateWorkspace(w store.Workspace) error {
	args, err := workspaceArgs(w)
	if err != nil {
		return named("workspace "+w.Name, err)
	}
	return t.update("workspace "+w.Name, `UPDATE workspaces SET
		name = ?, node_id = ?, spec = ?, desired = ?, generation = ?, state = ?, instance = ?, error_code = ?, message = ?, next = ?,
		operation_id = ?, created_at = ?, updated_at = ?, spare = ?
		WHERE id = ?`, args...)
}

// Workspace implements store.Tx.
func (t *tx) Workspace(id string) (w store.Workspace, err error) {
	err = t.one("workspace "+id, selectWorkspace+`WHERE id = ?`, scanWorkspace(&w), id)
	return w, err
}

// WorkspaceByName implements store.Tx.
func (t *tx) WorkspaceByName(name string) (w store.Workspace, err error) {
	err = t.one("workspace "+name, selectWorkspace+`WHERE name = ?`, scanWorkspace(&w), name)
	return w, err
}

// Workspaces implements store.Tx.
func (t *tx) Workspaces(node string) ([]store.Workspace, error) {
	var all []store.Workspace
	if node == "" {
		err := t.each("workspaces", selectWorkspace+`ORDER BY name`, collect(&all, scanWorkspace))
		return all, err
	}
	err := t.each("workspaces", selectWorkspace+`WHERE node_id = ? ORDER BY name`, collect(&all, scanWorkspace), node)
	return all, err
}

// DeleteWorkspace implements store.Tx.
func (t *tx) DeleteWorkspace(id string) error {
	_, err := t.change(`DELETE FROM workspaces WHERE id = ?`, id)
	return named("workspace "+id, err)
}
