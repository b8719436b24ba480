package coordination

import (
	"encoding/json"
	"errors"
	"slices"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// A lost node that is removed by force keeps what it has of spares and of
// workspaces whose removal was accepted. Should it ever be added again, that goes:
// nobody could name it any more.

// metaLeftBehind holds the ids of what was left on nodes, as a JSON list.
const metaLeftBehind = "left_behind"

// mostLeftBehind is how many are remembered, the last ones.
const mostLeftBehind = 1000

// leftBehind returns the ids of what was left on nodes, the last left last.
func leftBehind(tx store.Tx) ([]string, error) {
	text, err := tx.Meta(metaLeftBehind)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	return ids, json.Unmarshal([]byte(text), &ids)
}

// leaveBehind remembers workspaces that go from the store and stay on a node.
func leaveBehind(tx store.Tx, list []store.Workspace) error {
	if len(list) == 0 {
		return nil
	}
	ids, err := leftBehind(tx)
	if err != nil {
		return err
	}
	for _, ws := range list {
		ids = append(ids, ws.ID)
	}
	return setLeftBehind(tx, ids[max(0, len(ids)-mostLeftBehind):])
}

// foundAgain forgets one that is gone from its node, too.
func foundAgain(tx store.Tx, id string) error {
	ids, err := leftBehind(tx)
	if err != nil || !slices.Contains(ids, id) {
		return err
	}
	return setLeftBehind(tx, slices.DeleteFunc(ids, func(have string) bool { return have == id }))
}

func setLeftBehind(tx store.Tx, ids []string) error {
	text, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return tx.SetMeta(metaLeftBehind, string(text))
}

// leftOn returns what was left behind and is on the link's node, as orphans.
func (l *link) leftOn(left []string, known map[string]bool) []*vendettav1.Orphan {
	v := l.view()
	if !v.up {
		return nil
	}
	var found []*vendettav1.Orphan
	for _, id := range left {
		if o := v.observed[id]; o != nil && !known[id] {
			found = append(found, &vendettav1.Orphan{WorkspaceId: id, Instance: o.GetInstance()})
		}
	}
	return found
}
