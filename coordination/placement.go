package coordination

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// The providers that are taken when the caller names none, best first.
const (
	providerDocker = "docker"
	providerNative = "native"
)

// providerLXC is the one whose workspaces may be privileged.
const providerLXC = "lxc"

// candidate is a node as placement sees it.
type candidate struct {
	id       string
	name     string
	draining bool
	// down says why the node takes nothing now; nil when it is up.
	down   error
	report *vendettav1.NodeReport
	// spares are those that run there.
	spares []store.Workspace
}

// hasSpare tells whether the node has a spare for this spec on this provider.
func (c candidate) hasSpare(provider string, spec *vendettav1.WorkspaceSpec) bool {
	want := kindOf(spec)
	want.provider = provider
	return plainSpec(spec) && slices.ContainsFunc(c.spares, func(ws store.Workspace) bool {
		return ready(ws) && kindOf(ws.Spec) == want
	})
}

// placed is the choice of a node and a provider.
type placed struct {
	nodeID   string
	node     string
	provider string
	// note says how the choice was made where the caller left it open.
	note string
}

// choosePlace finds where a workspace goes: the node that was named, else the
// only one, else the one that is up, not draining, has the provider, and has a
// spare for it or else the most free memory. Candidates come in the order of their names.
func choosePlace(nodes []candidate, wantNode string, spec *vendettav1.WorkspaceSpec) (placed, error) {
	if len(nodes) == 0 {
		if wantNode != "" {
			return placed{}, noNode(wantNode)
		}
		return placed{}, api.Errorf(api.FailedPrecondition, "create workspace: there is no node").
			WithNext("vendetta node add local --local, or vendetta node add NAME USER@HOST")
	}
	if wantNode != "" {
		i := slices.IndexFunc(nodes, func(c candidate) bool { return c.name == wantNode })
		if i < 0 {
			return placed{}, noNode(wantNode)
		}
		return placeOn(nodes[i], spec, "")
	}
	if len(nodes) == 1 {
		return placeOn(nodes[0], spec, fmt.Sprintf("node %s (the only one)", nodes[0].name))
	}
	return placeAmong(nodes, spec)
}

// placeOn puts the workspace on one node or says why not.
func placeOn(c candidate, spec *vendettav1.WorkspaceSpec, note string) (placed, error) {
	if c.down != nil {
		return placed{}, c.down
	}
	if c.draining {
		return placed{}, drainingNode(c.name)
	}
	p := placed{nodeID: c.id, node: c.name, provider: spec.GetProvider(), note: note}
	if p.provider != "" {
		return p, providerUsable(c, p.provider)
	}
	p.provider = openProvider(c)
	if p.provider == "" {
		return placed{}, noProvider(c)
	}
	p.note = joinNotes(p.note, "provider "+p.provider)
	return p, nil
}

// placeAmong chooses among several nodes.
func placeAmong(nodes []candidate, spec *vendettav1.WorkspaceSpec) (placed, error) {
	providers := []string{spec.GetProvider()}
	if spec.GetProvider() == "" {
		providers = []string{providerDocker, providerNative}
	}
	var refused []string
	for _, provider := range providers {
		var best *candidate
		bestSpare, fit := false, 0
		for i := range nodes {
			c := &nodes[i]
			if _, err := placeOn(*c, &vendettav1.WorkspaceSpec{Provider: provider}, ""); err != nil {
				if why := err.Error(); !slices.Contains(refused, why) { // a lost node is that to every provider
					refused = append(refused, why)
				}
				continue
			}
			fit++
			switch spare := c.hasSpare(provider, spec); {
			case best == nil, spare && !bestSpare, spare == bestSpare && freeMemory(*c) > freeMemory(*best):
				best, bestSpare = c, spare
			}
		}
		if best == nil {
			continue
		}
		note := fmt.Sprintf("node %s (it has a spare, of %d ready with %s)", best.name, fit, provider)
		if !bestSpare {
			note = fmt.Sprintf("node %s (most free memory, %.1f GiB, of %d ready with %s)", best.name,
				float64(freeMemory(*best))/(1<<30), fit, provider)
		}
		if spec.GetProvider() == "" {
			note = joinNotes(note, "provider "+provider)
		}
		return placed{nodeID: best.id, node: best.name, provider: provider, note: note}, nil
	}
	return placed{}, api.Errorf(api.FailedPrecondition, "create workspace: no node takes it: %s", strings.Join(refused, "; ")).
		WithNext("vendetta node list")
}

func joinNotes(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

func freeMemory(c candidate) uint64 { return c.report.GetCapacity().GetMemoryFreeBytes() }

// openProvider is the provider taken when none was named: docker if usable, else
// native.
func openProvider(c candidate) string {
	for _, name := range []string{providerDocker, providerNative} {
		if providerUsable(c, name) == nil {
			return name
		}
	}
	return ""
}

// providerUsable tells why a provider cannot be used on a node, nil when it can.
func providerUsable(c candidate, name string) error {
	var have []string
	for _, p := range c.report.GetProviders() {
		if p.GetName() == name {
			if p.GetUsable() {
				return nil
			}
			e := api.Errorf(api.FailedPrecondition, "node %s: provider %s is not usable: %s", c.name, name, p.GetReason())
			if p.GetFix() != "" {
				return e.WithNext("on %s: %s", c.name, p.GetFix())
			}
			return e.WithNext("vendetta node test %s", c.name)
		}
		have = append(have, p.GetName())
	}
	e := api.Errorf(api.FailedPrecondition, "node %s: it has no provider %q", c.name, name)
	if len(have) > 0 {
		return e.WithNext("use one of %s", strings.Join(have, ", "))
	}
	return e.WithNext("vendetta node test %s", c.name)
}

// noProvider says that none of the providers one would take is usable.
func noProvider(c candidate) error {
	docker := api.From(providerUsable(c, providerDocker))
	native := api.From(providerUsable(c, providerNative))
	return api.Errorf(api.FailedPrecondition, "node %s: no provider is usable: %s; %s", c.name,
		unprefixed(c.name, docker.Message), unprefixed(c.name, native.Message)).WithNext("%s; or %s", docker.Next, native.Next)
}

func noNode(name string) *api.Error {
	return api.Errorf(api.NotFound, "node %q: there is none", clip(name)).WithNext("vendetta node list")
}

func drainingNode(name string) *api.Error {
	return api.Errorf(api.FailedPrecondition, "node %s: it is draining and takes no new workspaces", name).
		WithNext("vendetta node undrain %s", name)
}

// place chooses among the nodes as they are now. It waits a moment for those
// whose links are still being made.
func (s *Server) place(ctx context.Context, wantNode string, spec *vendettav1.WorkspaceSpec) (placed, error) {
	var nodes []store.Node
	spares := map[string][]store.Workspace{}
	if err := s.store.View(ctx, func(tx store.Tx) (err error) {
		if nodes, err = tx.Nodes(); err != nil {
			return err
		}
		for _, n := range nodes {
			if len(n.Spares) == 0 {
				continue
			}
			if spares[n.ID], err = tx.Workspaces(n.ID); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return placed{}, s.storeError(ctx, "create workspace", err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectCeiling)
	defer cancel()
	var candidates []candidate
	for _, n := range nodes {
		if n.State == vendettav1.NodeState_NODE_STATE_REMOVED {
			continue
		}
		c := candidate{id: n.ID, name: n.Name, draining: n.Draining, spares: spares[n.ID]}
		if l := s.linkTo(n.ID); l != nil && (wantNode == "" || wantNode == n.Name) {
			c.down = l.await(ctx)
			c.report = l.view().report
		} else {
			c.down = api.Errorf(api.Unavailable, "node %s: it has no link", n.Name).WithNext("vendetta node test %s", n.Name)
		}
		candidates = append(candidates, c)
	}
	return choosePlace(candidates, wantNode, spec)
}
