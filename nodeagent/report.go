package nodeagent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sourcegraph/conc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

// report says what the machine has; fresh asks the providers again, whatever
// they said a moment ago.
func (s *server) report(ctx context.Context, fresh bool) *vendettav1.NodeReport {
	a := s.agent
	r := a.machine.report()
	r.AgentVersion = a.options.Version
	r.Protocol = api.Protocol
	r.AgentStartedAt = timestamppb.New(a.started)
	r.Orphans = s.orphans.report()
	r.Providers = s.probes.get(ctx, fresh, a.root, a.tasks.Go)
	return r
}

// heartbeat is a whole report, with the workspaces in the order of their ids.
func (s *server) heartbeat(ctx context.Context) *nodeagentv1.WatchResponse {
	out := &nodeagentv1.WatchResponse{Report: s.report(ctx, false)}
	for _, w := range s.list() {
		out.Workspaces = append(out.Workspaces, w.report())
	}
	slices.SortFunc(out.Workspaces, func(a, b *nodeagentv1.ObservedWorkspace) int {
		if a.GetWorkspaceId() < b.GetWorkspaceId() {
			return -1
		}
		return 1
	})
	return out
}

// probes keeps what the providers' probes found. A probe may take seconds, and
// a heartbeat must not: it takes what is known and has it refreshed beside it.
type probes struct {
	drivers []providers.Provider
	timing  timing
	now     func() time.Time
	changed func()

	mu      sync.Mutex
	found   []*vendettav1.ProviderStatus
	at      time.Time
	running chan struct{}
}

func newProbes(drivers []providers.Provider, t timing, now func() time.Time, changed func()) *probes {
	return &probes{drivers: drivers, timing: t, now: now, changed: changed}
}

// get returns what was found. It waits for a probe when nothing was found yet
// or fresh is set, and has an old answer refreshed by spawn within life.
func (p *probes) get(ctx context.Context, fresh bool, life context.Context, spawn func(func())) []*vendettav1.ProviderStatus { //nolint:revive // two lives: the call's and the agent's
	p.mu.Lock()
	if p.running == nil && (fresh || p.found == nil || p.now().Sub(p.at) >= p.timing.probed) {
		done := make(chan struct{})
		p.running = done
		spawn(func() { p.refresh(life, done) })
	}
	running, found := p.running, p.found
	p.mu.Unlock()
	if running == nil || found != nil && !fresh {
		return found
	}
	select {
	case <-running:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.found
}

func (p *probes) refresh(ctx context.Context, done chan struct{}) {
	found := make([]*vendettav1.ProviderStatus, len(p.drivers))
	var all conc.WaitGroup
	for i, driver := range p.drivers {
		all.Go(func() { found[i] = p.ask(ctx, driver) })
	}
	all.Wait()
	p.mu.Lock()
	news := !slices.EqualFunc(found, p.found, func(a, b *vendettav1.ProviderStatus) bool {
		return a.GetUsable() == b.GetUsable() && a.GetReason() == b.GetReason() && a.GetVersion() == b.GetVersion()
	})
	first := p.found == nil
	p.found, p.at, p.running = found, p.now(), nil
	p.mu.Unlock()
	close(done)
	if news && !first {
		p.changed()
	}
}

// ask probes one driver; one that does not answer in time is reported as such
// and left behind.
func (p *probes) ask(ctx context.Context, driver providers.Provider) *vendettav1.ProviderStatus {
	ctx, cancel := context.WithTimeout(ctx, p.timing.probe)
	defer cancel()
	status := driver.Probe(ctx)
	if !status.Usable && status.Reason == "" {
		status.Reason = "its probe gave no reason"
		if ctx.Err() != nil {
			status.Reason = "its probe did not answer within " + p.timing.probe.String()
		}
	}
	return &vendettav1.ProviderStatus{
		Name:         driver.Name(),
		Usable:       status.Usable,
		Version:      status.Version,
		Capabilities: status.Capabilities,
		Reason:       status.Reason,
		Fix:          status.Fix,
	}
}
