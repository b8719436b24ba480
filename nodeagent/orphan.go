package nodeagent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

// orphanLimit bounds how many of a server's orphans are reported.
const orphanLimit = 100

// orphans finds instances that carry a server's label and that no workspace of
// the journal knows: left behind by a crash in the wrong moment, or by a journal
// that was lost. It reports what two searches in a row have found, with the time
// when it may go. It removes nothing: the server, which may know more, says so.
//
// What is made is in the journal before it exists, a fork and a snapshot too, so
// an instance that is listed and then not found in the journal is none that is
// being made. Times begin anew when the agent does.
type orphans struct {
	server *server

	mu sync.Mutex
	// found holds what was seen at least once, by provider and workspace id.
	found map[orphanKey]orphan
}

type orphanKey struct{ provider, workspace string }

type orphan struct {
	instance string
	// at is when it was first seen.
	at time.Time
	// times that searches saw it, one after another.
	times int
}

func newOrphans(s *server) *orphans { return &orphans{server: s, found: map[orphanKey]orphan{}} }

// searchOrphans looks for those of every server, at intervals, until ctx ends.
func (a *Agent) searchOrphans(ctx context.Context) {
	for wait(ctx, a.timing.orphans) {
		a.mu.Lock()
		servers := slices.Collect(maps.Values(a.servers))
		a.mu.Unlock()
		for _, s := range servers {
			s.orphans.look(ctx)
		}
	}
}

// look asks every provider once. What a provider that does not answer was seen
// to have is neither confirmed nor forgotten.
func (o *orphans) look(ctx context.Context) {
	for _, p := range o.server.providers {
		list, err := o.list(ctx, p)
		if err != nil {
			o.server.log.Debug("instances not listed", "provider", p.Name(), "error", err)
			continue
		}
		if o.take(p.Name(), list) {
			o.server.notify()
		}
	}
}

func (o *orphans) list(ctx context.Context, p providers.Provider) ([]providers.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, askCeiling)
	defer cancel()
	return p.List(ctx)
}

// take notes what a provider lists and tells whether what is reported changed.
func (o *orphans) take(provider string, list []providers.Instance) bool {
	now := o.server.agent.options.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := map[orphanKey]bool{}
	news := false
	for _, inst := range list {
		// An id that is none of ours could not be named to remove it.
		if !ids.MatchString(inst.Workspace) || o.server.knows(inst.Workspace) {
			continue
		}
		key := orphanKey{provider, inst.Workspace}
		one, known := o.found[key]
		if !known {
			one = orphan{at: now}
		}
		one.instance, one.times = inst.Name, one.times+1
		o.found[key], seen[key] = one, true
		if one.times == 2 {
			news = true
			o.server.log.Warn("an instance belongs to no workspace", "provider", provider, "instance", inst.Name, "workspace", inst.Workspace)
		}
	}
	for key, one := range o.found {
		if key.provider == provider && !seen[key] {
			delete(o.found, key)
			news = news || one.times > 1
		}
	}
	return news
}

// report returns those that were confirmed, the first found first. One that a
// workspace knows by now is none.
func (o *orphans) report() []*vendettav1.Orphan {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []*vendettav1.Orphan
	for key, one := range o.found {
		if one.times < 2 || o.server.knows(key.workspace) {
			continue
		}
		all = append(all, &vendettav1.Orphan{
			Provider: key.provider, WorkspaceId: key.workspace, Instance: one.instance,
			FoundAt: timestamppb.New(one.at), RemoveAt: timestamppb.New(one.at.Add(o.server.agent.timing.grace)),
		})
	}
	slices.SortFunc(all, func(a, b *vendettav1.Orphan) int {
		if c := a.GetFoundAt().AsTime().Compare(b.GetFoundAt().AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a.GetWorkspaceId()+a.GetProvider(), b.GetWorkspaceId()+b.GetProvider())
	})
	return all[:min(len(all), orphanLimit)]
}

// knows reports whether there is a workspace with that id here.
func (s *server) knows(id string) bool {
	s.mu.Lock()
	w := s.workspaces[id]
	s.mu.Unlock()
	return w != nil && w.present()
}
