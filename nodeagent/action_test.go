package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/providers"
)

// fullBox is a box that can do all that is optional.
type fullBox struct {
	*box
	kept    map[string][]providers.Snapshot
	limits  map[string]providers.Resources
	note    string
	console string
	// dead: a restore leaves the instance broken.
	dead bool
}

func newFullBox(t *testing.T) *fullBox {
	return &fullBox{box: newBox(t), kept: map[string][]providers.Snapshot{}, limits: map[string]providers.Resources{}}
}

func (b *fullBox) Snapshot(ctx context.Context, id, name string) (providers.Snapshot, error) {
	if err := b.call(ctx, "snapshot", id); err != nil {
		return providers.Snapshot{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	one := providers.Snapshot{Name: name, CreatedAt: time.Unix(1700000000, 0), Bytes: 5}
	if !slices.Contains(b.kept[id], one) {
		b.kept[id] = append(b.kept[id], one)
	}
	return one, nil
}

func (b *fullBox) Snapshots(ctx context.Context, id string) ([]providers.Snapshot, error) {
	if err := b.call(ctx, "snapshots", id); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept[id], nil
}

func (b *fullBox) Restore(ctx context.Context, id, _ string) error {
	if err := b.call(ctx, "restore", id); err != nil {
		if b.dead {
			b.set(func() { b.instances[id].State = providers.StateBroken })
		}
		return err
	}
	b.halt(id)
	return nil
}

func (b *fullBox) RemoveSnapshot(ctx context.Context, id, name string) error {
	if err := b.call(ctx, "forget", id); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept[id] = slices.DeleteFunc(b.kept[id], func(s providers.Snapshot) bool { return s.Name == name })
	return nil
}

func (b *fullBox) Fork(ctx context.Context, origin string, spec providers.Spec) (providers.Instance, error) {
	if err := b.call(ctx, "fork "+origin, spec.Workspace); err != nil {
		return providers.Instance{}, err
	}
	return b.Create(ctx, spec)
}

func (b *fullBox) Pause(ctx context.Context, id string) error {
	if err := b.call(ctx, "pause", id); err != nil {
		return err
	}
	b.set(func() { b.instances[id].State = providers.StatePaused })
	return nil
}

func (b *fullBox) Resume(ctx context.Context, id string) error {
	if err := b.call(ctx, "resume", id); err != nil {
		return err
	}
	b.set(func() { b.instances[id].State = providers.StateRunning })
	return nil
}

func (b *fullBox) Resize(ctx context.Context, id string, r providers.Resources) (string, error) {
	if err := b.call(ctx, "resize", id); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits[id] = r
	return b.note, nil
}

func (b *fullBox) Console(context.Context, string) string { return b.console }

func act(op string, generation int64, desired vendettav1.DesiredState, change func(*nodeagentv1.ApplyRequest)) *nodeagentv1.ApplyRequest {
	r := request(op, generation, desired)
	change(r)
	return r
}

func keep(name string) func(*nodeagentv1.ApplyRequest) {
	return func(r *nodeagentv1.ApplyRequest) {
		r.Action = &nodeagentv1.ApplyRequest_CreateSnapshot{CreateSnapshot: name}
	}
}

func restore(name string) func(*nodeagentv1.ApplyRequest) {
	return func(r *nodeagentv1.ApplyRequest) {
		r.Action = &nodeagentv1.ApplyRequest_RestoreSnapshot{RestoreSnapshot: name}
	}
}

func forget(name string) func(*nodeagentv1.ApplyRequest) {
	return func(r *nodeagentv1.ApplyRequest) {
		r.Action = &nodeagentv1.ApplyRequest_RemoveSnapshot{RemoveSnapshot: name}
	}
}

func resize(cpus float64) func(*nodeagentv1.ApplyRequest) {
	return func(r *nodeagentv1.ApplyRequest) {
		r.Spec.Resources = &vendettav1.Resources{Cpus: cpus}
		r.Action = &nodeagentv1.ApplyRequest_Resize{Resize: true}
	}
}

func forkOf(origin string) func(*nodeagentv1.ApplyRequest) {
	return func(r *nodeagentv1.ApplyRequest) {
		r.WorkspaceId, r.WorkspaceName = "w2", "web2"
		r.Action = &nodeagentv1.ApplyRequest_ForkOf{ForkOf: origin}
	}
}

// count is how often a call was made.
func (b *box) count(call string) int {
	n := 0
	for _, c := range b.did() {
		if c == call {
			n++
		}
	}
	return n
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	agent := n.as("s1")
	expect(t, n.apply(act("o2", 2, running, keep("clean"))), isRunning, "")
	list, err := agent.ListSnapshots(t.Context(), &nodeagentv1.ListSnapshotsRequest{WorkspaceId: "w1"})
	if err != nil || len(list.GetSnapshots()) != 1 || list.GetSnapshots()[0].GetName() != "clean" || list.GetSnapshots()[0].GetBytes() != 5 {
		t.Fatalf("got %v %v", list, err)
	}
	// A restore ends the instance, and the workspace runs again after it.
	expect(t, n.apply(act("o3", 3, running, restore("clean"))), isRunning, "")
	expect(t, n.apply(request("o4", 4, stopped)), isStopped, "")
	expect(t, n.apply(act("o5", 5, stopped, restore("clean"))), isStopped, "")
	expect(t, n.apply(act("o6", 6, stopped, forget("clean"))), isStopped, "")
	if len(b.kept["w1"]) != 0 {
		t.Fatalf("kept %v", b.kept)
	}
	want := []string{"create w1", "start w1", "snapshot w1", "snapshots w1", "restore w1", "start w1", "stop w1", "restore w1", "stop w1", "forget w1"}
	if got := b.did(); !slices.Equal(got, want) {
		t.Fatalf("did %v", got)
	}
	// A repeat is answered and not done again; neither does a restart repeat it.
	n.apply(act("o6", 6, stopped, forget("clean")))
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the look", func() bool { return n.seen().GetState() == isStopped })
	n.apply(request("o7", 7, running))
	b.halt("w1")
	eventually(t, "a restart", func() bool { return b.count("start w1") == 4 })
	for _, once := range []string{"snapshot w1", "forget w1"} {
		if b.count(once) != 1 {
			t.Errorf("%s was called %d times", once, b.count(once))
		}
	}
	if b.count("restore w1") != 2 {
		t.Errorf("did %v", b.did())
	}
}

// What fails beside the desired state leaves a workspace that is well as it is.
func TestFailedActionsLeaveTheWorkspace(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		call   string
		change func(*nodeagentv1.ApplyRequest)
	}{
		"snapshot": {"snapshot w1", keep("clean")},
		"restore":  {"restore w1", restore("clean")},
		"removal":  {"forget w1", forget("clean")},
		"resize":   {"resize w1", resize(9)},
		"pause":    {"pause w1", func(r *nodeagentv1.ApplyRequest) { r.Desired = paused }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFullBox(t)
			n := start(t, "", []providers.Provider{b})
			n.apply(request("o1", 1, running))
			b.fail[tc.call] = &providers.Error{Kind: providers.ErrInvalid, Message: "it cannot be", Next: "do this"}
			o := n.apply(act("o2", 2, running, tc.change))
			expect(t, o, isRunning, api.InvalidArgument)
			if o.GetGeneration() != 2 || o.GetOperationId() != "o2" || o.GetNext() != "do this" {
				t.Fatalf("got %v", o)
			}
			expect(t, n.seen(), isRunning, "")
			eventually(t, "the link", func() bool { return n.seen().GetLinked() })
			// What was wanted before is what it is brought back to.
			b.set(func() { delete(b.fail, tc.call) })
			calls := b.count(tc.call)
			b.halt("w1")
			eventually(t, "a restart", func() bool {
				return b.count("start w1") == 2 && n.seen().GetLinked() && n.seen().GetState() == isRunning
			})
			n.end()
			n = start(t, n.dir, []providers.Provider{b})
			eventually(t, "the link", func() bool { return n.seen().GetLinked() && n.seen().GetState() == isRunning })
			if b.count(tc.call) != calls {
				t.Fatalf("did %v", b.did())
			}
			// The repeat hears of the failure, after a restart too.
			expect(t, n.apply(act("o2", 2, running, tc.change)), isRunning, api.InvalidArgument)
			s, _ := n.agent.server("s1")
			if got := s.workspaces["w1"].record.request; got.GetSpec().GetResources().GetCpus() != 0 || got.GetAction() != nil || got.GetDesired() != running {
				t.Fatalf("kept %v", got)
			}
		})
	}
}

func TestFailedActionOnWhatHadFailed(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.apply(request("o2", 2, stopped))
	b.set(func() { b.fail["start w1"] = errors.New("boom"); b.fail["restore w1"] = errors.New("bang") })
	expect(t, n.apply(request("o3", 3, running)), isFailed, api.Internal)
	o := n.apply(act("o4", 4, running, restore("clean")))
	expect(t, o, isFailed, api.Internal)
	if !strings.Contains(o.GetMessage(), "bang") || !strings.Contains(n.seen().GetMessage(), "boom") {
		t.Fatalf("got %v, seen %v", o, n.seen())
	}
	// A restore that breaks the instance fails the workspace, and its repeat mends it.
	b.set(func() { b.fail = map[string]error{} })
	expect(t, n.apply(request("o5", 5, running)), isRunning, "")
	b.set(func() { b.dead = true; b.fail["restore w1"] = errors.New("half") })
	o = n.apply(act("o6", 6, running, restore("clean")))
	expect(t, o, isFailed, api.Internal)
	if !strings.Contains(o.GetNext(), "snapshot restore web clean") {
		t.Fatalf("next %q", o.GetNext())
	}
	b.set(func() { b.fail = map[string]error{}; b.instances["w1"].State = providers.StateStopped })
	expect(t, n.apply(act("o7", 7, running, restore("clean"))), isRunning, "")
}

func TestActionsAfterACrash(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		call   string
		change func(*nodeagentv1.ApplyRequest)
	}{
		"snapshot": {"snapshot w1", keep("clean")},
		"restore":  {"restore w1", restore("clean")},
		"resize":   {"resize w1", resize(2)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFullBox(t)
			n := start(t, "", []providers.Provider{b})
			n.apply(request("o1", 1, running))
			b.set(func() { b.block[tc.call] = make(chan struct{}) })
			go func() { _, _ = n.as("s1").Apply(t.Context(), act("o2", 2, running, tc.change)) }()
			eventually(t, "the call", func() bool { return b.count(tc.call) == 1 })
			n.end()
			b.set(func() { b.block = nil })
			n = start(t, n.dir, []providers.Provider{b})
			expect(t, n.apply(act("o2", 2, running, tc.change)), isRunning, "")
			if b.count(tc.call) != 2 {
				t.Fatalf("did %v", b.did())
			}
		})
	}
}

// A restore whose end cannot be written down is not worked in: an agent that is
// restarted would do it again.
func TestRestoreThatIsNotWrittenDown(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	write, writes := n.agent.journal.replace, 0
	n.agent.journal.replace = func(path string, data []byte) error {
		if writes++; writes > 1 {
			return syscall.ENOSPC
		}
		return write(path, data)
	}
	expect(t, n.apply(act("o2", 2, running, restore("clean"))), isFailed, api.ResourceExhausted)
	if b.count("start w1") != 1 {
		t.Fatalf("did %v", b.did())
	}
	writes = 0
	expect(t, n.apply(act("o3", 3, running, keep("clean"))), isStopped, "")
}

func TestPause(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	o := n.apply(request("o2", 2, paused))
	expect(t, o, isPaused, "")
	// A call to it is refused at once.
	res, err := n.client("s1").Get(wire.BaseURL + "/workspaces/w1/guest/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var refusal struct{ Message, Next string }
	if err := json.NewDecoder(res.Body).Decode(&refusal); err != nil || !strings.Contains(fmt.Sprint(refusal), "paused") {
		t.Fatalf("got %d %+v %v", res.StatusCode, refusal, err)
	}
	// A guest that says nothing is no reason to start it again.
	b.set(func() { b.fail["connect w1"] = errors.New("no answer") })
	b.cut()
	eventually(t, "the link's end", func() bool {
		s, _ := n.agent.server("s1")
		return s.workspaces["w1"].guest() == nil
	})
	expect(t, n.seen(), isPaused, "")
	b.set(func() { delete(b.fail, "connect w1") })
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the look", func() bool { return n.seen().GetState() == isPaused })
	expect(t, n.apply(request("o3", 3, running)), isRunning, "")
	expect(t, n.apply(request("o4", 4, paused)), isPaused, "")
	// After a reboot it is started, and paused again.
	n.end()
	b.reboot()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the pause", func() bool { return n.seen().GetState() == isPaused })
	expect(t, n.apply(act("o5", 5, paused, keep("clean"))), isPaused, "")
	expect(t, n.apply(request("o6", 6, stopped)), isStopped, "")
	expect(t, n.apply(request("o7", 7, paused)), isPaused, "")
	expect(t, n.apply(request("o8", 8, down)), isDown, "")
	want := []string{"create w1", "start w1", "pause w1", "resume w1", "pause w1", "start w1", "pause w1", "snapshot w1", "stop w1", "start w1", "pause w1", "destroy w1"}
	if got := b.did(); !slices.Equal(got, want) {
		t.Fatalf("did %v", got)
	}
}

func TestResize(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	b.note = "the memory is in effect at the next start"
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	o := n.apply(act("o2", 2, running, resize(3)))
	expect(t, o, isRunning, "")
	if o.GetNote() != b.note || b.limits["w1"].CPUs != 3 {
		t.Fatalf("got %v, limits %v", o, b.limits)
	}
	n.apply(act("o3", 3, stopped, func(r *nodeagentv1.ApplyRequest) { r.Spec.Resources = &vendettav1.Resources{Cpus: 3} }))
	expect(t, n.apply(act("o4", 4, stopped, resize(4))), isStopped, "")
	n.apply(act("o5", 5, down, func(r *nodeagentv1.ApplyRequest) { r.Spec.Resources = &vendettav1.Resources{Cpus: 4} }))
	o = n.apply(act("o6", 6, down, resize(5)))
	expect(t, o, isDown, "")
	if !strings.Contains(o.GetNote(), "up again") || b.count("resize w1") != 2 || b.limits["w1"].CPUs != 4 {
		t.Fatalf("got %v, limits %v", o, b.limits)
	}
}

func TestFork(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	o := n.apply(act("f1", 1, running, forkOf("w1")))
	expect(t, o, isRunning, "")
	if !o.GetLinked() || b.state("w2") != providers.StateRunning || b.state("w1") != providers.StateRunning {
		t.Fatalf("got %v", o)
	}
	// An instance that is lost is made anew, not forked anew.
	b.set(func() { b.haltLocked("w2"); delete(b.instances, "w2") })
	eventually(t, "a new instance", func() bool { return b.state("w2") == providers.StateRunning })
	want := []string{"create w1", "start w1", "fork w1 w2", "create w2", "start w2", "create w2", "start w2"}
	if got := b.did(); !slices.Equal(got, want) {
		t.Fatalf("did %v", got)
	}
}

func TestForkRefuses(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	plain := &box{instances: map[string]*boxInstance{}, volumes: map[string]bool{}, fail: map[string]error{}}
	n := start(t, "", []providers.Provider{b, renamed{plain, "plain"}})
	expect(t, n.apply(act("f1", 1, running, forkOf("w1"))), isFailed, api.NotFound)
	n.apply(request("o1", 1, running))
	b.set(func() {
		b.fail["fork w1 w2"] = &providers.Error{Kind: providers.ErrExhausted, Message: "the disk is full"}
	})
	expect(t, n.apply(act("f2", 2, running, forkOf("w1"))), isFailed, api.ResourceExhausted)
	expect(t, n.seen(), isRunning, "")
	if b.state("w2") != "absent" || b.volumes["w2"] {
		t.Fatal("the failed fork left something")
	}
	other := act("f3", 1, running, forkOf("w1"))
	other.WorkspaceId, other.Spec.Provider = "w3", "plain"
	expect(t, n.apply(other), isFailed, api.Unimplemented)
	b.set(func() { delete(b.fail, "fork w1 w2") })
	expect(t, n.apply(act("f4", 3, running, forkOf("w1"))), isRunning, "")
}

// renamed is a provider under another name.
type renamed struct {
	providers.Provider
	name string
}

func (r renamed) Name() string { return r.name }

// While a fork is made its origin is left alone, and two that are to be made
// from each other do not wait for each other.
func TestForkHasTheOriginsTurn(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	block := make(chan struct{})
	b.set(func() { b.block["fork w1 w2"] = block })
	forked := make(chan *nodeagentv1.ObservedWorkspace, 1)
	go func() { forked <- n.apply(act("f1", 1, running, forkOf("w1"))) }()
	eventually(t, "the fork", func() bool { return b.count("fork w1 w2") == 1 })
	stopping := make(chan *nodeagentv1.ObservedWorkspace, 1)
	go func() { stopping <- n.apply(request("o2", 2, stopped)) }()
	eventually(t, "the stop's acceptance", func() bool { return n.seen().GetGeneration() == 2 })
	back := act("o3", 3, running, forkOf("w2"))
	back.WorkspaceId, back.WorkspaceName = "w3", "web3"
	expect(t, n.apply(back), isFailed, api.FailedPrecondition)
	if b.count("stop w1") != 0 {
		t.Fatalf("did %v", b.did())
	}
	close(block)
	expect(t, <-forked, isRunning, "")
	expect(t, <-stopping, isStopped, "")
}

func TestForkThatWasCutShort(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	b.set(func() { b.block["fork w1 w2"] = make(chan struct{}) })
	go func() { _, _ = n.as("s1").Apply(t.Context(), act("f1", 1, running, forkOf("w1"))) }()
	eventually(t, "the fork", func() bool { return b.count("fork w1 w2") == 1 })
	n.end()
	b.set(func() {
		b.block = nil
		b.instances["w2"] = &boxInstance{Instance: providers.Instance{Workspace: "w2", State: providers.StateBroken}}
	})
	n = start(t, n.dir, []providers.Provider{b})
	expect(t, n.apply(act("f1", 1, running, forkOf("w1"))), isRunning, "")
	if b.count("remove w2") != 1 || b.count("fork w1 w2") != 2 {
		t.Fatalf("did %v", b.did())
	}
}

// A provider without the optional interfaces says so, and the workspace stays.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	for i, change := range []func(*nodeagentv1.ApplyRequest){
		keep("clean"), restore("clean"), forget("clean"), resize(2), func(r *nodeagentv1.ApplyRequest) { r.Desired = paused },
	} {
		o := n.apply(act(fmt.Sprint("o1", i), int64(i+2), running, change))
		expect(t, o, isRunning, api.Unimplemented)
		if !strings.Contains(o.GetMessage(), "box cannot do that here") || o.GetNext() == "" {
			t.Errorf("got %v", o)
		}
	}
	if _, err := n.as("s1").ListSnapshots(t.Context(), &nodeagentv1.ListSnapshotsRequest{WorkspaceId: "w1"}); api.CodeOf(err) != api.Unimplemented {
		t.Errorf("list: %v", err)
	}
	expect(t, n.seen(), isRunning, "")
}

func TestActionsAreChecked(t *testing.T) {
	t.Parallel()
	n := start(t, "", []providers.Provider{newFullBox(t)})
	for i, change := range []func(*nodeagentv1.ApplyRequest){
		keep(""), keep("../x"), restore("-a"), forget("A"), forkOf("../w"), forkOf("w2"),
		func(r *nodeagentv1.ApplyRequest) { keep("a")(r); r.Desired = removed },
	} {
		if _, err := n.as("s1").Apply(t.Context(), act("o1", 1, running, change)); api.CodeOf(err) != api.InvalidArgument {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestQuestions(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	n := start(t, "", []providers.Provider{b})
	agent := n.as("s1")
	if _, err := agent.Usage(t.Context(), &nodeagentv1.UsageRequest{WorkspaceId: "w1"}); api.CodeOf(err) != api.NotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := agent.ListSnapshots(t.Context(), &nodeagentv1.ListSnapshotsRequest{WorkspaceId: "w1"}); api.CodeOf(err) != api.NotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := n.as("").Usage(t.Context(), &nodeagentv1.UsageRequest{WorkspaceId: "w1"}); api.CodeOf(err) != api.InvalidArgument {
		t.Errorf("no server: %v", err)
	}
	n.apply(request("o1", 1, running))
	u, err := agent.Usage(t.Context(), &nodeagentv1.UsageRequest{WorkspaceId: "w1"})
	if err != nil || u.GetCpuSeconds() != 1.5 || u.GetMemoryBytes() != 7 || u.GetDiskBytes() != -1 {
		t.Fatalf("got %v %v", u, err)
	}
	for err, code := range map[error]api.Code{
		providers.ErrNotFound:    api.FailedPrecondition,
		providers.ErrUnsupported: api.Unimplemented,
	} {
		b.set(func() { b.fail["usage w1"] = err })
		if _, got := agent.Usage(t.Context(), &nodeagentv1.UsageRequest{WorkspaceId: "w1"}); api.CodeOf(got) != code {
			t.Errorf("%v: %v", err, got)
		}
	}
	// A question waits for what is being done, for a while.
	s, _ := n.agent.server("s1")
	w := s.workspaces["w1"]
	release, err := w.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := w.usage(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is worked on: %v", err)
	}
	release()
}

func TestDigestIsPinned(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	b.digest = "sha256:abc"
	n := start(t, "", []providers.Provider{b})
	if o := n.apply(request("o1", 1, running)); o.GetImageDigest() != "sha256:abc" {
		t.Fatalf("got %v", o)
	}
	b.set(func() { b.haltLocked("w1"); delete(b.instances, "w1") })
	eventually(t, "a new instance", func() bool { return b.state("w1") == providers.StateRunning })
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.specs) != 2 || b.specs[0].Digest != "" || b.specs[1].Digest != "sha256:abc" {
		t.Fatalf("made with %+v", b.specs)
	}
}

func TestConsoleInErrors(t *testing.T) {
	t.Parallel()
	b := newFullBox(t)
	b.mute, b.boot = true, 300*time.Millisecond
	b.console = "old\nboot: ok\r\n\x1b[31mkernel panic\x1b[0m - not syncing\n\n"
	n := start(t, "", []providers.Provider{b}, func(o *Options) {
		o.timing.guestAnswer, o.timing.linkOpen = time.Millisecond, 50*time.Millisecond
	})
	o := n.apply(request("o1", 1, running))
	expect(t, o, isFailed, api.DeadlineExceeded)
	// It got the time that it takes to boot.
	if want := "within 300ms; its console ends with:\nold\nboot: ok\nkernel panic - not syncing"; !strings.Contains(o.GetMessage(), want) {
		t.Fatalf("got %q", o.GetMessage())
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                "",
		"\n \n":                           "",
		"a\x1b]0;t\x07b":                  "a0;tb",
		"50%\r100%":                       "100%",
		"\x1b":                            "",
		"\x1b[1;31":                       "",
		"a\tb\x00\xff":                    "a b?",
		strings.Repeat("x\n", 20):         strings.TrimSpace(strings.Repeat("x\n", consoleLines)),
		strings.Repeat("y", 2000):         "..." + strings.Repeat("y", consoleBytes),
		strings.Repeat("z", 599) + "\nab": "ab",
	} {
		if got := tail(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzTail(f *testing.F) {
	f.Add("a\x1b[31mb\r\nc")
	f.Fuzz(func(t *testing.T, s string) {
		got := tail(s)
		if len(got) > consoleBytes+consoleLines+3 || strings.ContainsAny(got, "\x1b\r\x00\x07") {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func TestJournalKeepsActions(t *testing.T) {
	t.Parallel()
	r := record{
		request: act("o2", 2, running, restore("clean")), prior: request("o1", 1, running), pending: true,
		observed: &nodeagentv1.ObservedWorkspace{WorkspaceId: "w1"},
	}
	data, err := encodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(data, "w1")
	if err != nil || !proto.Equal(got.request, r.request) || !proto.Equal(got.prior, r.prior) || !got.pending {
		t.Fatalf("got %+v %v", got, err)
	}
	for _, bad := range []string{`"prior":7`, `"prior":{"workspaceId":"../x"}`} {
		text := strings.Replace(string(data), `"prior":`, `"was":`, 1)
		text = strings.TrimSuffix(text, "}") + "," + bad + "}"
		if _, err := decodeRecord([]byte(text), "w1"); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	b, broken := newBox(t), newBox(t)
	clock := time.Unix(1800000000, 0)
	n := start(t, "", []providers.Provider{b, renamed{broken, "broken"}}, func(o *Options) {
		o.Now = func() time.Time { return clock }
	})
	n.apply(request("o1", 1, running))
	s, _ := n.agent.server("s1")
	orphan := func(b *box, id string) {
		b.set(func() {
			b.instances[id] = &boxInstance{Instance: providers.Instance{Workspace: id, Name: "box-" + id, State: providers.StateBroken}}
		})
	}
	orphan(b, "lost")
	orphan(b, "../odd")
	s.orphans.look(t.Context())
	if got := s.orphans.report(); len(got) != 0 {
		t.Fatalf("after one search: %v", got)
	}
	clock = clock.Add(time.Hour)
	orphan(broken, "other")
	changes := s.changes()
	s.orphans.look(t.Context())
	got := n.report().GetOrphans()
	if len(got) != 1 || got[0].GetWorkspaceId() != "lost" || got[0].GetProvider() != "box" || got[0].GetInstance() != "box-lost" ||
		!got[0].GetFoundAt().AsTime().Equal(time.Unix(1800000000, 0)) || got[0].GetRemoveAt().AsTime().Sub(got[0].GetFoundAt().AsTime()) != 24*time.Hour {
		t.Fatalf("got %v", got)
	}
	select {
	case <-changes:
	default:
		t.Error("nobody was told")
	}
	// A provider that does not answer changes nothing.
	b.set(func() { b.fail["list"] = errors.New("down") })
	s.orphans.look(t.Context())
	if len(s.orphans.report()) != 2 {
		t.Fatalf("got %v", s.orphans.report())
	}
	b.set(func() { delete(b.fail, "list") })
	// One that a workspace knows again is none, and neither is one that is gone.
	r := request("o9", 1, running)
	r.WorkspaceId, r.WorkspaceName = "lost", "lost"
	n.apply(r)
	if got := s.orphans.report(); len(got) != 1 || got[0].GetWorkspaceId() != "other" {
		t.Fatalf("got %v", got)
	}
	broken.set(func() { delete(broken.instances, "other") })
	s.orphans.look(t.Context())
	if got := s.orphans.report(); len(got) != 0 {
		t.Fatalf("got %v", got)
	}
	// The server's word removes one that no journal knows.
	orphan(broken, "again")
	r = request("o10", 1, removed)
	r.WorkspaceId, r.WorkspaceName, r.Spec = "again", "again", nil
	expect(t, n.apply(r), isDown, "")
	if broken.state("again") != "absent" {
		t.Error("it is still there")
	}
}

// report is what the agent says of its machine to server s1.
func (n *node) report() *vendettav1.NodeReport {
	n.Helper()
	res, err := n.as("s1").Hello(n.Context(), &nodeagentv1.HelloRequest{ProtocolMin: 1, ProtocolMax: api.Protocol})
	if err != nil {
		n.Fatal(err)
	}
	return res.GetReport()
}
