package coordination

import (
	"slices"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// What providers may be able to do beyond the contract, in the words of their
// probes.
const (
	capabilitySnapshot  = "snapshot"
	capabilityFork      = "fork"
	capabilityPause     = "pause"
	capabilityResize    = "resize"
	capabilityLimitDisk = "limit-disk"
)

// able refuses what a workspace's provider cannot do on its node and says which
// can, as the node's probes found it. A provider of which nothing was reported
// is left to judge for itself.
func (s *Server) able(ws store.Workspace, capability, what string) error {
	return capable(s.linkTo(ws.NodeID).view().report, ws, capability, what)
}

func capable(report *vendettav1.NodeReport, ws store.Workspace, capability, what string) error {
	provider := ws.Spec.GetProvider()
	known := false
	var others []string
	for _, p := range report.GetProviders() {
		can := slices.Contains(p.GetCapabilities(), capability)
		switch {
		case p.GetName() == provider && (can || !p.GetUsable()):
			return nil
		case p.GetName() == provider:
			known = true
		case can:
			others = append(others, p.GetName())
		}
	}
	if !known {
		return nil
	}
	e := api.Errorf(api.Unimplemented, "%s workspace %s: %s cannot do that on this node; %s", what, ws.Name, provider, canDo(others))
	if len(others) == 0 {
		return e.WithNext("vendetta node status shows what the providers of a node can do")
	}
	return e.WithNext("create a workspace with --provider %s where you need it", others[0])
}

// canDo says which providers can do something.
func canDo(names []string) string {
	switch len(names) {
	case 0:
		return "none of its providers can"
	case 1:
		return names[0] + " can"
	default:
		return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1] + " can"
	}
}

// ready refuses what needs an instance that is well, and what its provider
// cannot do.
func (s *Server) ready(ws store.Workspace, capability, what string) error {
	if err := s.able(ws, capability, what); err != nil {
		return err
	}
	switch {
	case ws.Desired == vendettav1.DesiredState_DESIRED_STATE_DOWN:
		return noInstance(what, ws)
	case ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED:
		e := api.Errorf(api.FailedPrecondition, "%s workspace %s: it failed: %s", what, ws.Name, ws.Message)
		if ws.Next != "" {
			return e.WithNext("%s", ws.Next)
		}
		return e.WithNext("vendetta workspace up %s", ws.Name)
	}
	return nil
}

func noInstance(what string, ws store.Workspace) error {
	return api.Errorf(api.FailedPrecondition, "%s workspace %s: it is down, so there is no instance", what, ws.Name).
		WithNext("vendetta workspace up %s", ws.Name)
}
