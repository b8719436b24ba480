package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/providers"
)

func expect(t *testing.T, o *nodeagentv1.ObservedWorkspace, state fmt.Stringer, code api.Code) {
	t.Helper()
	if o.GetState().String() != state.String() || o.GetErrorCode() != string(code) {
		t.Fatalf("got %v, want %v %q", o, state, code)
	}
}

func TestLifeOfAWorkspace(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	o := n.apply(request("o1", 1, running))
	expect(t, o, isRunning, "")
	if !o.GetLinked() || o.GetInstance() != "box-w1" || o.GetGeneration() != 1 || o.GetOperationId() != "o1" {
		t.Fatalf("got %v", o)
	}
	expect(t, n.apply(request("o2", 2, stopped)), isStopped, "")
	expect(t, n.apply(request("o3", 3, running)), isRunning, "")
	expect(t, n.apply(request("o4", 4, down)), isDown, "")
	if !b.volumes["w1"] {
		t.Fatal("down removed the volume")
	}
	expect(t, n.apply(request("o5", 5, running)), isRunning, "")
	expect(t, n.apply(request("o6", 6, removed)), isDown, "")
	if b.volumes["w1"] || b.state("w1") != "absent" {
		t.Fatal("something is left")
	}
	want := []string{"create w1", "start w1", "stop w1", "start w1", "destroy w1", "create w1", "start w1", "remove w1"}
	if got := b.did(); !slices.Equal(got, want) {
		t.Fatalf("did %v", got)
	}
	if o := n.seen(); o != nil {
		t.Fatalf("still reported: %v", o)
	}
}

func TestGuestPassThrough(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	base := wire.BaseURL + "/workspaces/w1/guest"
	guest := guestv1connect.NewGuestServiceClient(n.client("s1"), base)
	if _, err := guest.Hello(t.Context(), &guestv1.HelloRequest{}); api.CodeOf(err) != api.NotFound {
		t.Fatalf("before there is one: %v", err)
	}
	n.apply(request("o1", 1, running))
	hello, err := guest.Hello(t.Context(), &guestv1.HelloRequest{})
	if err != nil || hello.GetVersion() != "test" {
		t.Fatalf("got %v %v", hello, err)
	}
	res, err := n.client("s1").Post(base+"/echo", "text/plain", strings.NewReader("hi"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if body, _ := io.ReadAll(res.Body); string(body) != "hi" || res.Header.Get("Seen-Server") != "" {
		t.Fatalf("got %q, the guest saw server %q", body, res.Header.Get("Seen-Server"))
	}
	// Another server's workspaces are not there.
	if _, err := guestv1connect.NewGuestServiceClient(n.client("s2"), base).Hello(t.Context(), &guestv1.HelloRequest{}); api.CodeOf(err) != api.NotFound {
		t.Fatalf("of another server: %v", err)
	}
	// A lost link is made anew, and a call in between waits for it.
	for range 5 {
		b.cut()
		eventually(t, "a call after the cut", func() bool {
			_, err := guest.Hello(t.Context(), &guestv1.HelloRequest{})
			return err == nil
		})
	}
	expect(t, n.seen(), isRunning, "")
	n.apply(request("o2", 2, stopped))
	_, err = guest.Hello(t.Context(), &guestv1.HelloRequest{})
	if e := api.From(err); e == nil || e.Code != api.FailedPrecondition || !strings.Contains(e.Next, "vendetta workspace up web") {
		t.Fatalf("stopped: %#v", e)
	}
}

func TestApplyRepeats(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	block := make(chan struct{})
	b.block["create w1"] = block
	n := start(t, "", []providers.Provider{b})
	// The first caller is lost; the operation goes on and a repeat joins it.
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := n.as("s1").Apply(ctx, request("o1", 1, running))
		first <- err
	}()
	eventually(t, "create", func() bool { return len(b.did()) == 1 })
	cancel()
	if err := <-first; err == nil {
		t.Fatal("the lost caller got an answer")
	}
	joined := make(chan *nodeagentv1.ObservedWorkspace, 1)
	go func() { joined <- n.apply(request("o1", 1, running)) }()
	close(block)
	expect(t, <-joined, isRunning, "")
	expect(t, n.apply(request("o1", 1, running)), isRunning, "")
	if got := b.did(); len(got) != 2 {
		t.Fatalf("did %v", got)
	}
	if _, err := n.as("s1").Apply(t.Context(), request("o0", 0, stopped)); api.CodeOf(err) != api.Conflict {
		t.Fatalf("older generation: %v", err)
	}
}

func TestApplySuperseded(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.block["create w1"] = make(chan struct{}) // never ends by itself
	n := start(t, "", []providers.Provider{b})
	first := make(chan error, 1)
	go func() {
		_, err := n.as("s1").Apply(t.Context(), request("o1", 1, running))
		first <- err
	}()
	eventually(t, "create", func() bool { return len(b.did()) == 1 })
	expect(t, n.apply(request("o2", 2, removed)), isDown, "")
	if err := <-first; api.CodeOf(err) != api.Conflict {
		t.Fatalf("superseded: %v", err)
	}
	if b.volumes["w1"] {
		t.Fatal("a volume is left")
	}
	// What was sent before the removal and comes late is refused.
	if _, err := n.as("s1").Apply(t.Context(), request("o1", 1, running)); api.CodeOf(err) != api.Conflict {
		t.Fatalf("late: %v", err)
	}
}

func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	for name, tc := range map[string]struct {
		change func(*nodeagentv1.ApplyRequest)
		code   api.Code
	}{
		"id":          {func(r *nodeagentv1.ApplyRequest) { r.WorkspaceId = "../x" }, api.InvalidArgument},
		"operation":   {func(r *nodeagentv1.ApplyRequest) { r.OperationId = "" }, api.InvalidArgument},
		"name":        {func(r *nodeagentv1.ApplyRequest) { r.WorkspaceName = "-x" }, api.InvalidArgument},
		"grace":       {func(r *nodeagentv1.ApplyRequest) { r.GraceSeconds = -1 }, api.InvalidArgument},
		"desired":     {func(r *nodeagentv1.ApplyRequest) { r.Desired = 77 }, api.InvalidArgument},
		"network":     {func(r *nodeagentv1.ApplyRequest) { r.Spec.Network = 77 }, api.InvalidArgument},
		"limit":       {func(r *nodeagentv1.ApplyRequest) { r.Spec.Resources = &vendettav1.Resources{DiskBytes: math.MaxUint64} }, api.InvalidArgument},
		"no provider": {func(r *nodeagentv1.ApplyRequest) { r.Spec = nil }, api.InvalidArgument},
		"provider":    {func(r *nodeagentv1.ApplyRequest) { r.Spec.Provider = "other" }, api.FailedPrecondition},
	} {
		r := request("o1", 1, running)
		tc.change(r)
		if _, err := n.as("s1").Apply(t.Context(), r); api.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, server := range []string{"", "../s", "S1"} {
		if _, err := n.as(server).Hello(t.Context(), &nodeagentv1.HelloRequest{ProtocolMin: 1, ProtocolMax: 1}); api.CodeOf(err) != api.InvalidArgument {
			t.Errorf("server %q: %v", server, err)
		}
	}
	if s, _ := n.agent.server("s1"); len(s.workspaces) != 0 {
		t.Errorf("kept %v", s.workspaces)
	}
	if len(b.did()) != 0 {
		t.Errorf("did %v", b.did())
	}
}

func TestSpecReachesTheProvider(t *testing.T) {
	t.Parallel()
	r := request("o1", 4, running)
	r.Spec = &vendettav1.WorkspaceSpec{
		Provider: "box", Image: "https://example.org/a.qcow2", ImageDigest: "sha256:d", Checksum: "sha256:c", Privileged: true,
		Resources: &vendettav1.Resources{Cpus: 1.5, MemoryBytes: 2, Pids: 3, DiskBytes: 4}, Network: vendettav1.Network_NETWORK_NONE,
	}
	got, err := specOf(r)
	want := providers.Spec{
		Workspace: "w1", Name: "web", Generation: 4, Image: "https://example.org/a.qcow2", Digest: "sha256:d", Checksum: "sha256:c",
		Privileged: true, Resources: providers.Resources{CPUs: 1.5, MemoryBytes: 2, PIDs: 3, DiskBytes: 4}, Network: providers.NetworkNone,
	}
	if err != nil || got != want {
		t.Fatalf("got %+v %v, want %+v", got, err, want)
	}
}

func TestApplyFailures(t *testing.T) {
	t.Parallel()
	kind := func(k error) error {
		return &providers.Error{Kind: k, Message: "create web: it failed", Next: "do this"}
	}
	for name, tc := range map[string]struct {
		call string
		err  error
		code api.Code
	}{
		"not found": {"start w1", providers.ErrNotFound, api.NotFound},
		"invalid":   {"create w1", kind(providers.ErrInvalid), api.InvalidArgument},
		"image":     {"create w1", kind(providers.ErrImage), api.FailedPrecondition},
		"unusable":  {"create w1", kind(providers.ErrUnusable), api.FailedPrecondition},
		"exhausted": {"start w1", kind(providers.ErrExhausted), api.ResourceExhausted},
		"full disk": {"create w1", syscall.ENOSPC, api.ResourceExhausted},
		"slow":      {"create w1", context.DeadlineExceeded, api.DeadlineExceeded},
		"other":     {"create w1", errors.New("boom"), api.Internal},
		"own":       {"create w1", api.Errorf(api.Unimplemented, "no"), api.Unimplemented},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			b.fail[tc.call] = tc.err
			n := start(t, "", []providers.Provider{b})
			o := n.apply(request("o1", 1, running))
			expect(t, o, isFailed, tc.code)
			if o.GetMessage() == "" || errors.Is(tc.err, providers.ErrImage) && o.GetNext() != "do this" {
				t.Fatalf("got %v", o)
			}
			if b.state("w1") != "absent" || b.volumes["w1"] {
				t.Fatal("the failed create left something")
			}
			// The failure is what a repeat hears, and it is not tried again by itself.
			calls := len(b.did())
			expect(t, n.apply(request("o1", 1, running)), isFailed, tc.code)
			if len(b.did()) != calls {
				t.Fatalf("did %v", b.did())
			}
			// A new operation may succeed.
			b.set(func() { b.fail = map[string]error{} })
			expect(t, n.apply(request("o2", 2, running)), isRunning, "")
		})
	}
}

func TestFailedStartKeepsFiles(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.apply(request("o2", 2, down))
	b.set(func() { b.fail["start w1"] = errors.New("boom") })
	expect(t, n.apply(request("o3", 3, running)), isFailed, api.Internal)
	if b.state("w1") != "absent" || !b.volumes["w1"] {
		t.Fatal("the instance should be gone and the files there")
	}
	b.set(func() { delete(b.fail, "start w1") })
	expect(t, n.apply(request("o4", 4, running)), isRunning, "")
	n.apply(request("o5", 5, stopped))
	b.set(func() { b.fail["start w1"] = errors.New("boom") })
	expect(t, n.apply(request("o6", 6, running)), isFailed, api.Internal)
	if b.state("w1") != providers.StateStopped {
		t.Fatal("an instance that was there before is gone")
	}
	for _, what := range []string{"stop", "destroy", "remove"} {
		b.set(func() { b.fail[what+" w1"] = errors.New("boom") })
	}
	expect(t, n.apply(request("o7", 7, stopped)), isFailed, api.Internal)
	expect(t, n.apply(request("o8", 8, down)), isFailed, api.Internal)
	expect(t, n.apply(request("o9", 9, removed)), isFailed, api.Internal)
	if n.seen() == nil {
		t.Fatal("a failed removal is not reported")
	}
}

func TestSilentGuest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*box)
		code   api.Code
		text   string
	}{
		"mute":     {func(b *box) { b.mute = true }, api.DeadlineExceeded, providers.GuestProgram},
		"dying":    {func(b *box) { b.dying = true }, api.FailedPrecondition, "exec format error"},
		"protocol": {func(b *box) { b.hello = &guestv1.HelloResponse{Protocol: 99} }, api.FailedPrecondition, "protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			tc.change(b)
			n := start(t, "", []providers.Provider{b}, func(o *Options) {
				if b.mute {
					o.timing.guestAnswer, o.timing.linkOpen = 200*time.Millisecond, 50*time.Millisecond
				}
			})
			o := n.apply(request("o1", 1, running))
			expect(t, o, isFailed, tc.code)
			if !strings.Contains(o.GetMessage(), tc.text) || o.GetNext() == "" {
				t.Fatalf("got %v", o)
			}
			if b.state("w1") != "absent" || b.volumes["w1"] {
				t.Fatal("the failed create left something")
			}
		})
	}
}

func TestBrokenInstance(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.apply(request("o2", 2, stopped))
	b.set(func() { b.instances["w1"].State = providers.StateBroken })
	expect(t, n.apply(request("o3", 3, stopped)), isFailed, api.Internal)
	expect(t, n.apply(request("o4", 4, running)), isRunning, "")
	if !b.volumes["w1"] {
		t.Fatal("the files are gone")
	}
}

func TestStopOfNothing(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	expect(t, n.apply(request("o1", 1, stopped)), isDown, "")
	r := request("o2", 2, removed)
	r.Spec, r.WorkspaceId = nil, "w2"
	expect(t, n.apply(r), isDown, "")
}

func TestTwoServers(t *testing.T) {
	t.Parallel()
	one, two := newBox(t), newBox(t)
	n := start(t, "", nil, func(o *Options) {
		o.Providers = func(id string) []providers.Provider {
			if id == "s1" {
				return []providers.Provider{one}
			}
			return []providers.Provider{two}
		}
	})
	n.apply(request("o1", 1, running))
	if _, err := n.as("s2").Apply(t.Context(), request("o1", 7, stopped)); err != nil {
		t.Fatal(err)
	}
	if one.state("w1") != providers.StateRunning || len(two.did()) != 1 {
		t.Fatalf("one %v, two did %v", one.state("w1"), two.did())
	}
	_, err := n.as("s2").Shutdown(t.Context(), &nodeagentv1.ShutdownRequest{Uninstall: true})
	if api.CodeOf(err) != api.FailedPrecondition {
		t.Fatalf("uninstall: %v", err)
	}
}

func TestJournalFailure(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	write := n.agent.journal.replace
	n.agent.journal.replace = func(string, []byte) error { return syscall.ENOSPC }
	_, err := n.as("s1").Apply(t.Context(), request("o1", 1, running))
	if e := api.From(err); e == nil || e.Code != api.ResourceExhausted || e.Next == "" {
		t.Fatalf("got %#v", e)
	}
	if len(b.did()) != 0 || n.seen() != nil {
		t.Fatal("acted without a journal")
	}
	// The end cannot be written: the caller hears of the success all the same,
	// and an agent that starts later does the work again, which changes nothing.
	writes := 0
	n.agent.journal.replace = func(path string, data []byte) error {
		if writes++; writes > 1 {
			return syscall.EIO
		}
		return write(path, data)
	}
	expect(t, n.apply(request("o1", 1, running)), isRunning, "")
	n.end()
	data, err := os.ReadFile(n.journalFile())
	if err != nil || !bytes.Contains(data, []byte(`"pending":true`)) {
		t.Fatalf("journal: %s %v", data, err)
	}
	calls := len(b.did())
	n = start(t, n.dir, []providers.Provider{b})
	expect(t, n.apply(request("o1", 1, running)), isRunning, "")
	if len(b.did()) != calls {
		t.Fatalf("did %v", b.did())
	}
}

func TestShutdownInMidOperation(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.block["start w1"] = make(chan struct{})
	n := start(t, "", []providers.Provider{b})
	first := make(chan error, 1)
	go func() {
		_, err := n.as("s1").Apply(t.Context(), request("o1", 1, running))
		first <- err
	}()
	eventually(t, "start", func() bool { return len(b.did()) == 2 })
	n.end()
	if err := <-first; api.CodeOf(err) != api.Unavailable {
		t.Fatalf("at shutdown: %v", err)
	}
	b.set(func() { b.block = nil })
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the operation's end", func() bool { return n.seen().GetState() == isRunning })
	expect(t, n.apply(request("o1", 1, running)), isRunning, "")
	if got, want := b.did(), []string{"create w1", "start w1", "start w1"}; !slices.Equal(got, want) {
		t.Fatalf("did %v", got)
	}
}

func TestRequestsWithoutALink(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b}, func(o *Options) { o.timing.linkWait = 50 * time.Millisecond })
	n.apply(request("o1", 1, running))
	b.set(func() { b.fail["connect w1"] = errors.New("boom") })
	b.cut()
	eventually(t, "the loss", func() bool { return !n.seen().GetLinked() })
	res, err := n.client("s1").Get(wire.BaseURL + "/workspaces/w1/guest/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusServiceUnavailable || !bytes.Contains(body, []byte("does not answer")) {
		t.Fatalf("got %d %s", res.StatusCode, body)
	}
}
