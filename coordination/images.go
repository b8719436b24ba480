package coordination

import (
	"context"
	"net/http"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// NodeAgent finds the way to the agent of a node, once it is up: what carries
// requests to it. Without a name the only node is meant. Bulk gets a connection
// of its own.
func (s *Server) NodeAgent(ctx context.Context, node string, bulk bool) (http.RoundTripper, error) {
	if node == "" {
		var err error
		if node, err = s.onlyNode(ctx); err != nil {
			return nil, err
		}
	}
	l, err := s.nodeLink(ctx, node)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, api.Errorf(api.Unavailable, "node %s: it is being removed", node).WithNext("vendetta node list")
	}
	if bulk {
		return l.bulk, nil
	}
	// Like calls to guests these may be many and long, and never share a window
	// with control.
	return l.guests, nil
}

// onlyNode returns the name of the one node that there is.
func (s *Server) onlyNode(ctx context.Context) (string, error) {
	var names []string
	err := s.store.View(ctx, func(tx store.Tx) error {
		nodes, err := tx.Nodes()
		for _, n := range nodes {
			if n.State != vendettav1.NodeState_NODE_STATE_REMOVED {
				names = append(names, n.Name)
			}
		}
		return err
	})
	switch {
	case err != nil:
		return "", s.storeError(ctx, "find node", err)
	case len(names) == 0:
		return "", api.Errorf(api.FailedPrecondition, "find node: there is none").
			WithNext("vendetta node add local --local, or vendetta node add NAME USER@HOST")
	case len(names) > 1:
		shown := names[:min(len(names), mostNamed)]
		return "", api.Errorf(api.InvalidArgument, "find node: there are %d, and none is named", len(names)).
			WithNext("name one with --node: %s", strings.Join(shown, ", "))
	}
	return names[0], nil
}
