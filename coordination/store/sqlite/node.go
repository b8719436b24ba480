package sqlite

import (
	"github.com/vendetta-dev/vendetta/coordination/store"
)

const selectNode = `SELECT id, name, address, labels, state, message, draining, host_keys, created_at, updated_at, report, spares FROM nodes `

func scanNode(n *store.Node) func(scanner) error {
	return func(row scanner) error {
		return row.Scan(&n.ID, &n.Name, message[nodeAddress, *nodeAddress]{&n.Address}, listing[map[string]string]{&n.Labels},
			&n.State, &n.Message, &n.Draining, listing[[]string]{&n.HostKeys},
			instant{&n.CreatedAt}, instant{&n.UpdatedAt}, message[nodeReport, *nodeReport]{&n.Report},
			listing[[]store.Spares]{&n.Spares})
	}
}

func nodeArgs(n store.Node) ([]any, error) {
	address, err := encode(n.Address, n.Address != nil)
	if err != nil {
		return nil, err
	}
	report, err := encode(n.Report, n.Report != nil)
	if err != nil {
		return nil, err
	}
	return []any{n.Name, address, collection(n.Labels), int32(n.State), n.Message, n.Draining, collection(n.HostKeys),
		nanos(n.CreatedAt), nanos(n.UpdatedAt), report, collection(n.Spares), n.ID}, nil
}

// CreateNode implements store.Tx.
func (t *tx) CreateNode(n store.Node) error {
	args, err := nodeArgs(n)
	if err != nil {
		return named("node "+n.Name, err)
	}
	return t.insert("node "+n.Name, `INSERT INTO nodes
		(name, address, labels, state, message, draining, host_keys, created_at, updated_at, report, spares, id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, args...)
}

// UpdateNode implements store.Tx.
func (t *tx) UpdateNode(n store.Node) error {
	args, err := nodeArgs(n)
	if err != nil {
		return named("node "+n.Name, err)
	}
	return t.update("node "+n.Name, `UPDATE nodes SET
		name = ?, address = ?, labels = ?, state = ?, message = ?, draining = ?, host_keys = ?, created_at = ?, updated_at = ?, report = ?, spares = ?
		WHERE id = ?`, args...)
}

// Node implements store.Tx.
func (t *tx) Node(id string) (n store.Node, err error) {
	err = t.one("node "+id, selectNode+`WHERE id = ?`, scanNode(&n), id)
	return n, err
}

// NodeByName implements store.Tx.
func (t *tx) NodeByName(name string) (n store.Node, err error) {
	err = t.one("node "+name, selectNode+`WHERE name = ?`, scanNode(&n), name)
	return n, err
}

// Nodes implements store.Tx.
func (t *tx) Nodes() ([]store.Node, error) {
	var all []store.Node
	err := t.each("nodes", selectNode+`ORDER BY name`, collect(&all, scanNode))
	return all, err
}

// DeleteNode implements store.Tx.
func (t *tx) DeleteNode(id string) error {
	_, err := t.change(`DELETE FROM nodes WHERE id = ?`, id)
	return named("node "+id, err)
}

// collect appends each row as a record.
func collect[R any](all *[]R, scan func(*R) func(scanner) error) func(scanner) error {
	return func(row scanner) error {
		var r R
		if err := scan(&r)(row); err != nil {
			return err
		}
		*all = append(*all, r)
		return nil
	}
}
