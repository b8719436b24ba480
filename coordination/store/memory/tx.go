package memory

import (
	"cmp"
	"fmt"
	"slices"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// tx is a store.Tx on the committed state or on a draft of the next.
type tx struct {
	state    *state
	writable bool
	ended    bool

	// Which maps of the draft are its own already.
	ownMeta, ownNodes, ownWorkspaces, ownOperations bool
}

var _ store.Tx = (*tx)(nil)

func (t *tx) reads() error {
	if t.ended {
		return store.ErrTxEnded
	}
	return nil
}

func (t *tx) writes() error {
	if t.ended {
		return store.ErrTxEnded
	}
	if !t.writable {
		return store.ErrReadOnly
	}
	return nil
}

// named says which record an error is about.
func named(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

// create adds a record unless its id is there or another clashes with it.
func create[R any](records map[string]R, id string, clashes func(R) bool) error {
	if _, taken := records[id]; taken {
		return store.ErrExists
	}
	return clash(records, id, clashes)
}

// update demands that the record is there and that no other clashes with it.
func update[R any](records map[string]R, id string, clashes func(R) bool) error {
	if _, there := records[id]; !there {
		return store.ErrNotFound
	}
	return clash(records, id, clashes)
}

func clash[R any](records map[string]R, id string, clashes func(R) bool) error {
	for other, r := range records {
		if other != id && clashes(r) {
			return store.ErrExists
		}
	}
	return nil
}

// find returns the record that fits.
func find[R any](records map[string]R, fits func(R) bool) (R, error) {
	for _, r := range records {
		if fits(r) {
			return r, nil
		}
	}
	var none R
	return none, store.ErrNotFound
}

// Meta implements store.Tx.
func (t *tx) Meta(key string) (string, error) {
	if err := t.reads(); err != nil {
		return "", named("meta", key, err)
	}
	value, ok := t.state.meta[key]
	if !ok {
		return "", named("meta", key, store.ErrNotFound)
	}
	return value, nil
}

// SetMeta implements store.Tx.
func (t *tx) SetMeta(key, value string) error {
	if err := t.writes(); err != nil {
		return named("meta", key, err)
	}
	own(&t.state.meta, &t.ownMeta)[key] = value
	return nil
}

func (t *tx) putNode(n store.Node, allowed func(map[string]store.Node, string, func(store.Node) bool) error) error {
	if err := t.writes(); err != nil {
		return named("node", n.Name, err)
	}
	n, err := copyNode(n)
	if err == nil {
		err = allowed(t.state.nodes, n.ID, func(o store.Node) bool { return o.Name == n.Name })
	}
	if err != nil {
		return named("node", n.Name, err)
	}
	own(&t.state.nodes, &t.ownNodes)[n.ID] = n
	return nil
}

// CreateNode implements store.Tx.
func (t *tx) CreateNode(n store.Node) error { return t.putNode(n, create[store.Node]) }

// UpdateNode implements store.Tx.
func (t *tx) UpdateNode(n store.Node) error { return t.putNode(n, update[store.Node]) }

func (t *tx) node(name string, fits func(store.Node) bool) (store.Node, error) {
	if err := t.reads(); err != nil {
		return store.Node{}, named("node", name, err)
	}
	n, err := find(t.state.nodes, fits)
	if err != nil {
		return store.Node{}, named("node", name, err)
	}
	return copyNode(n)
}

// Node implements store.Tx.
func (t *tx) Node(id string) (store.Node, error) {
	return t.node(id, func(n store.Node) bool { return n.ID == id })
}

// NodeByName implements store.Tx.
func (t *tx) NodeByName(name string) (store.Node, error) {
	return t.node(name, func(n store.Node) bool { return n.Name == name })
}

// Nodes implements store.Tx.
func (t *tx) Nodes() ([]store.Node, error) {
	if err := t.reads(); err != nil {
		return nil, named("nodes", "", err)
	}
	var all []store.Node
	for _, n := range t.state.nodes {
		c, err := copyNode(n)
		if err != nil {
			return nil, named("node", n.Name, err)
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b store.Node) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// DeleteNode implements store.Tx.
func (t *tx) DeleteNode(id string) error {
	if err := t.writes(); err != nil {
		return named("node", id, err)
	}
	delete(own(&t.state.nodes, &t.ownNodes), id)
	return nil
}

func (t *tx) putWorkspace(w store.Workspace, allowed func(map[string]store.Workspace, string, func(store.Workspace) bool) error) error {
	if err := t.writes(); err != nil {
		return named("workspace", w.Name, err)
	}
	w, err := copyWorkspace(w)
	if err == nil {
		err = allowed(t.state.workspaces, w.ID, func(o store.Workspace) bool { return o.Name == w.Name })
	}
	if err != nil {
		return named("workspace", w.Name, err)
	}
	own(&t.state.workspaces, &t.ownWorkspaces)[w.ID] = w
	return nil
}

// CreateWorkspace implements store.Tx.
func (t *tx) CreateWorkspace(w store.Workspace) error {
	return t.putWorkspace(w, create[store.Workspace])
}

// UpdateWorkspace implements store.Tx.
func (t *tx) UpdateWorkspace(w store.Workspace) error {
	return t.putWorkspace(w, update[store.Workspace])
}

func (t *tx) workspace(name string, fits func(store.Workspace) bool) (store.Workspace, error) {
	if err := t.reads(); err != nil {
		return store.Workspace{}, named("workspace", name, err)
	}
	w, err := find(t.state.workspaces, fits)
	if err != nil {
		return store.Workspace{}, named("workspace", name, err)
	}
	return copyWorkspace(w)
}

// Workspace implements store.Tx.
func (t *tx) Workspace(id string) (store.Workspace, error) {
	return t.workspace(id, func(w store.Workspace) bool { return w.ID == id })
}

// WorkspaceByName implements store.Tx.
func (t *tx) WorkspaceByName(name string) (store.Workspace, error) {
	return t.workspace(name, func(w store.Workspace) bool { return w.Name == name })
}

// Workspaces implements store.Tx.
func (t *tx) Workspaces(node string) ([]store.Workspace, error) {
	if err := t.reads(); err != nil {
		return nil, named("workspaces", "", err)
	}
	var all []store.Workspace
	for _, w := range t.state.workspaces {
		if node != "" && w.NodeID != node {
			continue
		}
		c, err := copyWorkspace(w)
		if err != nil {
			return nil, named("workspace", w.Name, err)
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b store.Workspace) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// DeleteWorkspace implements store.Tx.
func (t *tx) DeleteWorkspace(id string) error {
	if err := t.writes(); err != nil {
		return named("workspace", id, err)
	}
	delete(own(&t.state.workspaces, &t.ownWorkspaces), id)
	return nil
}

// sameKey tells whether another operation holds o's idempotency key.
func sameKey(o store.Operation) func(store.Operation) bool {
	return func(other store.Operation) bool {
		return o.IdempotencyKey != "" && other.IdempotencyKey == o.IdempotencyKey && other.Principal == o.Principal
	}
}

// CreateOperation implements store.Tx.
func (t *tx) CreateOperation(o store.Operation) error {
	err := t.writes()
	if err == nil {
		err = create(t.state.operations, o.ID, sameKey(o))
	}
	if err != nil {
		return named("operation", o.ID, err)
	}
	own(&t.state.operations, &t.ownOperations)[o.ID] = copyOperation(o)
	// Appending writes behind the end of what a committed state can see.
	t.state.order = append(t.state.order, o.ID)
	return nil
}

// UpdateOperation implements store.Tx.
func (t *tx) UpdateOperation(o store.Operation) error {
	err := t.writes()
	if err == nil {
		err = update(t.state.operations, o.ID, sameKey(o))
	}
	if err != nil {
		return named("operation", o.ID, err)
	}
	own(&t.state.operations, &t.ownOperations)[o.ID] = copyOperation(o)
	return nil
}

// Operation implements store.Tx.
func (t *tx) Operation(id string) (store.Operation, error) {
	if err := t.reads(); err != nil {
		return store.Operation{}, named("operation", id, err)
	}
	o, there := t.state.operations[id]
	if !there {
		return store.Operation{}, named("operation", id, store.ErrNotFound)
	}
	return o, nil
}

// OperationByKey implements store.Tx.
func (t *tx) OperationByKey(principal, key string) (store.Operation, error) {
	err := t.reads()
	var o store.Operation
	if err == nil {
		o, err = find(t.state.operations, sameKey(store.Operation{Principal: principal, IdempotencyKey: key}))
	}
	return o, named("operation with key", key, err)
}

// Operations implements store.Tx.
func (t *tx) Operations(workspace string, limit int) ([]store.Operation, error) {
	if err := t.reads(); err != nil {
		return nil, named("operations", "", err)
	}
	var all []store.Operation
	for _, id := range slices.Backward(t.state.order) {
		if limit > 0 && len(all) == limit {
			break
		}
		if o := t.state.operations[id]; workspace == "" || o.WorkspaceID == workspace {
			all = append(all, o)
		}
	}
	return all, nil
}

// PendingOperations implements store.Tx.
func (t *tx) PendingOperations() ([]store.Operation, error) {
	if err := t.reads(); err != nil {
		return nil, named("operations", "", err)
	}
	var all []store.Operation
	for _, id := range t.state.order {
		if o := t.state.operations[id]; o.State == vendettav1.OperationState_OPERATION_STATE_PENDING {
			all = append(all, o)
		}
	}
	return all, nil
}

// AppendAudit implements store.Tx.
func (t *tx) AppendAudit(a store.Audit) (int64, error) {
	if err := t.writes(); err != nil {
		return 0, named("audit", a.Method, err)
	}
	a.Seq, a.At = int64(len(t.state.audit))+1, utc(a.At)
	t.state.audit = append(t.state.audit, a)
	return a.Seq, nil
}

// AuditAfter implements store.Tx.
func (t *tx) AuditAfter(seq int64, workspace string, limit int) ([]store.Audit, error) {
	if err := t.reads(); err != nil {
		return nil, named("audit", "", err)
	}
	var all []store.Audit
	for _, a := range t.state.audit[min(max(seq, 0), int64(len(t.state.audit))):] {
		if limit > 0 && len(all) == limit {
			break
		}
		if workspace == "" || a.Workspace == workspace {
			all = append(all, a)
		}
	}
	return all, nil
}
