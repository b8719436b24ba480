package coordination

import (
	"fmt"
	"slices"
	"time"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// What is looked at in a plan, and how far it goes.
const (
	// spareInterval is the shortest time from the beginning of one spare, or from
	// a create that took one, to the beginning of the next on that node: what users
	// do there comes first.
	spareInterval = time.Second
	// spareRetry is the pause after a spare that failed; it doubles up to
	// spareRetryMost.
	spareRetry     = 10 * time.Second
	spareRetryMost = 10 * time.Minute
	// spareRemovals is how many are removed at the same time on one node.
	spareRemovals = 2
	// One spare is dropped while less than a tenth of the node's memory is free,
	// and none is made while less than a seventh is: between the two lies what
	// one more would take, so that they do not come and go.
	memoryShort  = 10
	memoryEnough = 7
	// dropInterval lets a node report what a dropped spare gave back.
	dropInterval = 2 * heartbeatInterval
)

// NodeSpares is what is known of a node when its spares are looked after.
type NodeSpares struct {
	Node     store.Node
	Settings []store.Spares
	// Spares of the node, those on their way out included.
	Spares []store.Workspace
	// Operations holds the latest operation of each spare, by its id.
	Operations map[string]store.Operation
	// Report is nil while the node cannot be reached.
	Report *vendettav1.NodeReport
	// Closed: the node drains or is being removed, so it keeps none.
	Closed bool
	// History is what earlier attempts have left.
	History spareHistory
}

// spareHistory is what is remembered of a node's spares.
type spareHistory struct {
	// moved is when the last one was begun or taken, dropped when one was last
	// given up for want of memory.
	moved, dropped time.Time
	failures       map[spareKind]spareFailure
}

// spareFailure is how often in a row spares of a kind failed, and the last time.
type spareFailure struct {
	times   int
	at      time.Time
	message string
}

// until is when the next attempt may be made.
func (f spareFailure) until() time.Time {
	if f.times == 0 {
		return time.Time{}
	}
	return f.at.Add(min(spareRetry<<min(f.times-1, 10), spareRetryMost))
}

// SparePlan is what is to be done about the spares of a node.
type SparePlan struct {
	// Make is the kind of which one more is to be made now, if there is one.
	Make *store.Spares
	// Remove are the spares that are to go now.
	Remove []string
	// Dropped: one of them goes for want of memory.
	Dropped bool
	// Again is when to look again, if nothing happens earlier; zero for never.
	Again time.Time
	// Messages say for each setting why there are fewer, "" where that needs no
	// word.
	Messages []string
}

// PlanSpares decides what to do about the spares of a node. It does no I/O and
// remembers nothing: the same input gives the same plan. It touches nothing but
// spares, makes one at a time, and nothing at all on a node that is out of reach.
func PlanSpares(n NodeSpares, now time.Time) SparePlan {
	p := SparePlan{Messages: make([]string, len(n.Settings))}
	if n.Report == nil {
		for i, s := range n.Settings {
			if s.Count > 0 {
				p.Messages[i] = "the node cannot be reached"
			}
		}
		return p
	}
	v := newSpareView(n)
	v.removeExcess(&p)
	if n.Closed {
		for i := range n.Settings {
			p.Messages[i] = "the node is draining"
		}
		return p
	}
	v.dropForMemory(&p, now)
	v.makeMissing(&p, now)
	return p
}

// spareView is the working state of one plan.
type spareView struct {
	NodeSpares
	wanted map[spareKind]int
	// alive are the spares that are to stay, by kind, the oldest first.
	alive    map[spareKind][]store.Workspace
	making   int
	removing int
}

func newSpareView(n NodeSpares) *spareView {
	v := &spareView{NodeSpares: n, wanted: map[spareKind]int{}, alive: map[spareKind][]store.Workspace{}}
	for _, s := range n.Settings {
		if !n.Closed {
			v.wanted[kindOfSetting(s)] += int(s.Count)
		}
	}
	spares := slices.Clone(n.Spares)
	slices.SortStableFunc(spares, func(a, b store.Workspace) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, ws := range spares {
		pending := v.operation(ws).State == vendettav1.OperationState_OPERATION_STATE_PENDING
		switch {
		case ws.Desired == vendettav1.DesiredState_DESIRED_STATE_REMOVED:
			if pending {
				v.removing++
			}
			continue
		case pending:
			v.making++
		}
		kind := kindOf(ws.Spec)
		v.alive[kind] = append(v.alive[kind], ws)
	}
	return v
}

func (v *spareView) operation(ws store.Workspace) store.Operation {
	return v.Operations[ws.OperationID]
}

// remove takes a spare out, if there is room for another removal.
func (v *spareView) remove(p *SparePlan, kind spareKind, i int) {
	ws := v.alive[kind][i]
	v.alive[kind] = slices.Delete(v.alive[kind], i, i+1)
	if v.removing >= spareRemovals {
		return // the end of one that is under way calls for the next
	}
	v.removing++
	p.Remove = append(p.Remove, ws.ID)
}

// removeExcess removes the spares that failed and those beyond what is wanted,
// the newest first.
func (v *spareView) removeExcess(p *SparePlan) {
	for _, kind := range v.kinds() {
		for i := len(v.alive[kind]) - 1; i >= 0; i-- {
			if v.failed(v.alive[kind][i]) {
				v.remove(p, kind, i)
			}
		}
		for len(v.alive[kind]) > v.wanted[kind] {
			v.remove(p, kind, len(v.alive[kind])-1)
		}
	}
}

// failed tells whether a spare never came up, or died and could not be brought
// back.
func (v *spareView) failed(ws store.Workspace) bool {
	return v.operation(ws).State == vendettav1.OperationState_OPERATION_STATE_FAILED ||
		ws.State == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED && ws.ErrorCode != ""
}

// kinds in an order that does not depend on a map's.
func (v *spareView) kinds() []spareKind {
	var kinds []spareKind
	for _, ws := range v.Spares {
		if k := kindOf(ws.Spec); !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// free tells whether at least one part in so many of the memory is free. A node
// that does not say how much it has is taken at its best.
func (v *spareView) free(part uint64) bool {
	c := v.Report.GetCapacity()
	return c.GetMemoryBytes() == 0 || c.GetMemoryFreeBytes() >= c.GetMemoryBytes()/part
}

// dropForMemory gives one spare up while memory is short: one of the kind that
// has the most.
func (v *spareView) dropForMemory(p *SparePlan, now time.Time) {
	if v.free(memoryShort) {
		return
	}
	if next := v.History.dropped.Add(dropInterval); now.Before(next) {
		p.Again = earlier(p.Again, next)
		return
	}
	var most spareKind
	for _, kind := range v.kinds() {
		if len(v.alive[kind]) > len(v.alive[most]) {
			most = kind
		}
	}
	if n := len(v.alive[most]); n > 0 {
		before := len(p.Remove)
		v.remove(p, most, n-1)
		p.Dropped = len(p.Remove) > before
	}
}

// makeMissing chooses what is made next and says what keeps the rest from it.
func (v *spareView) makeMissing(p *SparePlan, now time.Time) {
	at := candidate{name: v.Node.Name, report: v.Report}
	for i, s := range v.Settings {
		kind := kindOfSetting(s)
		if len(v.alive[kind]) >= int(s.Count) {
			continue
		}
		failure := v.History.failures[kind]
		switch err := providerUsable(at, s.Provider); {
		case err != nil:
			p.Messages[i] = unprefixed(at.name, err.Error())
			continue
		case !v.free(memoryEnough):
			c := v.Report.GetCapacity()
			p.Messages[i] = fmt.Sprintf("memory is short: %.1f GiB free of %.1f GiB",
				float64(c.GetMemoryFreeBytes())/(1<<30), float64(c.GetMemoryBytes())/(1<<30))
			continue
		case failure.times > 0:
			p.Messages[i] = failure.message
		}
		next := v.History.moved.Add(spareInterval)
		if until := failure.until(); until.After(next) {
			next = until
		}
		switch {
		case now.Before(next):
			p.Again = earlier(p.Again, next)
		case p.Make == nil && v.making == 0:
			p.Make = &s
		}
	}
}

// earlier is the earlier of two moments of which the first may be none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
