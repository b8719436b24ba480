package nodeagent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

func TestRestartOfTheAgent(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	calls := len(b.did())
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the link", func() bool { return n.seen().GetLinked() && n.seen().GetState() == isRunning })
	if len(b.did()) != calls {
		t.Fatalf("did %v", b.did())
	}
}

func TestRebootOfTheNode(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.end()
	b.reboot()
	// The provider comes up later than the agent.
	unusable := &providers.Error{Kind: providers.ErrUnusable, Message: "start web: the engine is down"}
	b.set(func() { b.fail["start w1"] = unusable })
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "tries", func() bool { return len(b.did()) >= 5 })
	expect(t, n.seen(), isFailed, api.FailedPrecondition)
	b.set(func() { delete(b.fail, "start w1") })
	eventually(t, "the instance", func() bool { return n.seen().GetLinked() && n.seen().GetState() == isRunning })
	expect(t, n.seen(), isRunning, "")
	// The instance itself may be gone, too; the files are not.
	n.end()
	b.set(func() { b.haltLocked("w1"); delete(b.instances, "w1") })
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "a new instance", func() bool { return n.seen().GetLinked() })
	if !b.volumes["w1"] {
		t.Fatal("the files are gone")
	}
}

func TestRebootInMidOperation(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.block["create w1"] = make(chan struct{})
	n := start(t, "", []providers.Provider{b})
	go func() { _, _ = n.as("s1").Apply(t.Context(), request("o1", 1, running)) }()
	eventually(t, "create", func() bool { return len(b.did()) == 1 })
	n.end()
	b.set(func() {
		b.block = nil
		b.fail["create w1"] = &providers.Error{Kind: providers.ErrUnusable, Message: "create web: the engine is down"}
	})
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "tries", func() bool { return len(b.did()) >= 6 })
	b.set(func() { b.fail = map[string]error{} })
	expect(t, n.apply(request("o1", 1, running)), isRunning, "")
}

func TestStoppedStaysStopped(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.apply(request("o2", 2, stopped))
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the look", func() bool { return n.seen().GetState() == isStopped })
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	n.apply(request("o3", 3, down))
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the look", func() bool { return n.seen().GetState() == isDown })
	if b.state("w1") != "absent" {
		t.Fatal("it is back")
	}
}

func TestCrashingInstance(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	for range 3 {
		b.halt("w1")
		eventually(t, "the loss", func() bool {
			return len(b.did()) > 0 && b.state("w1") == providers.StateRunning && n.seen().GetLinked()
		})
	}
	starts := 0
	for _, call := range b.did() {
		if call == "start w1" {
			starts++
		}
	}
	if starts != 4 {
		t.Fatalf("did %v", b.did())
	}
	// A stop ends the coming back.
	b.set(func() { b.fail["start w1"] = errors.New("boom") })
	b.halt("w1")
	eventually(t, "a failed start", func() bool { return n.seen().GetState() == isFailed })
	expect(t, n.apply(request("o2", 2, stopped)), isStopped, "")
}

func TestFailedIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	b.set(func() { b.fail["stop w1"] = errors.New("boom") })
	expect(t, n.apply(request("o2", 2, stopped)), isFailed, api.Internal)
	calls := len(b.did())
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	// It runs and can be reached, whatever the journal says of the stop.
	eventually(t, "the link", func() bool { return n.seen().GetLinked() })
	expect(t, n.seen(), isFailed, api.Internal)
	if len(b.did()) != calls {
		t.Fatalf("did %v", b.did())
	}
	expect(t, n.apply(request("o2", 2, stopped)), isFailed, api.Internal)
}

func TestProviderGone(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.end()
	n = start(t, n.dir, nil)
	eventually(t, "the look", func() bool { return n.seen().GetErrorCode() == string(api.FailedPrecondition) })
}

func TestTombstones(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	n.apply(request("o2", 2, removed))
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	if _, err := n.as("s1").Apply(t.Context(), request("o1", 1, running)); api.CodeOf(err) != api.Conflict {
		t.Fatalf("late: %v", err)
	}
	if _, err := n.as("s1").Shutdown(t.Context(), &nodeagentv1.ShutdownRequest{Uninstall: true}); err != nil {
		t.Fatalf("uninstall: %v", err)
	}
	if err := <-n.ended; err != nil {
		t.Fatal(err)
	}
	n.ended <- nil
	if _, err := os.Stat(filepath.Join(n.dir, "journal")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the journal is still there: %v", err)
	}
}

func TestTombstoneExpires(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b}, func(o *Options) { o.timing.tombstone = time.Nanosecond })
	n.apply(request("o1", 1, removed))
	eventually(t, "oblivion", func() bool {
		s, _ := n.agent.server("s1")
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.workspaces) == 0
	})
	if _, err := os.Stat(n.journalFile()); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	expect(t, n.apply(request("o1", 1, running)), isRunning, "")
}

func TestCorruptJournal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	good, err := os.ReadFile(n.journalFile())
	if err != nil {
		t.Fatal(err)
	}
	n.end()
	dir := filepath.Dir(n.journalFile())
	for name, data := range map[string][]byte{
		"cut.json": good[:len(good)/2], "empty.json": nil, "other.json": good,
		"format.json": []byte(`{"format":9}`), "request.json": []byte(`{"format":1,"request":7}`),
		"observed.json": []byte(`{"format":1,"request":{},"observed":7}`),
		"result.json":   []byte(`{"format":1,"request":{"workspaceId":"result"}}`),
		"invalid.json":  []byte(`{"format":1,"pending":true,"request":{"workspaceId":"invalid"}}`),
		"big.json":      make([]byte, recordLimit+1),
		".new-123":      nil, "UPPER.json": nil, "w1.json.corrupt": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.Symlink("/dev/zero", filepath.Join(dir, "link.json"))
	_ = os.WriteFile(filepath.Join(n.dir, "journal", "s2"), nil, 0o600)
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the good one", func() bool { return n.seen().GetLinked() })
	s, _ := n.agent.server("s1")
	if len(s.list()) != 1 {
		t.Fatalf("took up %d", len(s.list()))
	}
	entries, _ := os.ReadDir(dir)
	aside := 0
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".corrupt" {
			aside++
		}
	}
	if aside != 11 {
		t.Fatalf("set aside %d of %v", aside, entries)
	}
}

func TestJournalRoundTrip(t *testing.T) {
	t.Parallel()
	j := newJournal(filepath.Join(t.TempDir(), "j"))
	r := record{request: request("o1", 1, running), pending: true, made: true}
	if err := j.write("s1", r); err != nil {
		t.Fatal(err)
	}
	r.pending, r.observed = false, &nodeagentv1.ObservedWorkspace{WorkspaceId: "w1", Message: "x"}
	if err := j.write("s1", r); err != nil {
		t.Fatal(err)
	}
	records, problems, err := j.load()
	got := records["s1"]["w1"]
	if err != nil || len(problems) != 0 || got.pending || !got.made || got.observed.GetMessage() != "x" || got.request.GetOperationId() != "o1" {
		t.Fatalf("got %+v %v %v", got, problems, err)
	}
	if err := errors.Join(j.remove("s1", "w1"), j.remove("s1", "w1")); err != nil {
		t.Fatal(err)
	}
	files, _ := os.ReadDir(filepath.Join(j.dir, "s1"))
	if len(files) != 0 {
		t.Fatalf("left %v", files)
	}
	// A folder in the record's place: the write fails and leaves nothing.
	_ = os.MkdirAll(filepath.Join(j.path("s1", "w1"), "x"), 0o700)
	if err := j.write("s1", r); err == nil {
		t.Fatal("wrote over a folder")
	}
	if err := j.remove("s1", "w1"); err == nil {
		t.Fatal("removed a folder")
	}
	if files, _ := os.ReadDir(filepath.Join(j.dir, "s1")); len(files) != 1 {
		t.Fatalf("left %v", files)
	}
	if err := replaceFile(filepath.Join(j.dir, "none", "x"), nil); err == nil {
		t.Fatal("wrote into nothing")
	}
	if err := syncDir(filepath.Join(j.dir, "none")); err == nil {
		t.Fatal("synced nothing")
	}
	_ = os.WriteFile(filepath.Join(j.dir, "f"), nil, 0o600)
	if _, _, err := newJournal(filepath.Join(j.dir, "f")).load(); err == nil {
		t.Fatal("read a file as a journal")
	}
	if err := newJournal(filepath.Join(j.dir, "f")).write("s1", r); err == nil {
		t.Fatal("wrote below a file")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	good, err := encodeRecord(record{request: request("o1", 1, running), observed: &nodeagentv1.ObservedWorkspace{WorkspaceId: "w1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"request":{"workspaceId":"w1"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data, "w1")
		if err != nil {
			return
		}
		again, err := encodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRecord(again, "w1"); err != nil {
			t.Fatalf("%s became %s: %v", data, again, err)
		}
	})
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for failures, most := range []time.Duration{time.Second, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		for range 20 {
			if d := backoff(failures, time.Second, 5*time.Second); d < most/2 || d > most {
				t.Fatalf("after %d failures: %v", failures, d)
			}
		}
	}
}
