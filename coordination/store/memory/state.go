package memory

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// state is everything. Its maps and lists belong to whoever made them: a draft
// copies one before its first write to it.
type state struct {
	meta       map[string]string
	nodes      map[string]store.Node
	workspaces map[string]store.Workspace
	operations map[string]store.Operation
	// order holds the operations' ids as they were created.
	order []string
	audit []store.Audit
}

// own makes a map writable for a draft, once.
func own[V any](m *map[string]V, owned *bool) map[string]V {
	if !*owned {
		*m = maps.Clone(*m)
		if *m == nil {
			*m = map[string]V{}
		}
		*owned = true
	}
	return *m
}

// message copies m through its wire form, which also refuses what could not be
// stored.
func message[T any, M interface {
	*T
	proto.Message
}](m M) (M, error) {
	if m == nil {
		return nil, nil
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	c := M(new(T))
	return c, proto.Unmarshal(b, c)
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.Unix(0, t.UnixNano()).UTC()
}

func labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func list[E any](l []E) []E {
	if len(l) == 0 {
		return nil
	}
	return slices.Clone(l)
}

func copyNode(n store.Node) (_ store.Node, err error) {
	if n.Address, err = message(n.Address); err != nil {
		return n, err
	}
	if n.Report, err = message(n.Report); err != nil {
		return n, err
	}
	n.Labels, n.HostKeys, n.Spares = labels(n.Labels), list(n.HostKeys), list(n.Spares)
	n.CreatedAt, n.UpdatedAt = utc(n.CreatedAt), utc(n.UpdatedAt)
	return n, nil
}

func copyWorkspace(w store.Workspace) (_ store.Workspace, err error) {
	if w.Spec, err = message(w.Spec); err != nil {
		return w, err
	}
	w.CreatedAt, w.UpdatedAt = utc(w.CreatedAt), utc(w.UpdatedAt)
	return w, nil
}

func copyOperation(o store.Operation) store.Operation {
	o.CreatedAt, o.FinishedAt = utc(o.CreatedAt), utc(o.FinishedAt)
	return o
}
