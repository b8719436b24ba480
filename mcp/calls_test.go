package mcp

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
)

type m = map[string]any

func setup(t *testing.T) (*clienttest.Server, *clienttest.Guest, *Gateway) {
	t.Helper()
	s := clienttest.New(t)
	s.AddNode("build1")
	guest := s.AddWorkspace(t, "ws")
	g := gateway(t, s, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	g.imports.begin(ctx)
	t.Cleanup(func() {
		cancel()
		g.imports.wait()
	})
	return s, guest, g
}

// idIn finds the process id in an answer.
func idIn(t testing.TB, answer string) string {
	t.Helper()
	id := processID.FindString(answer)
	if id == "" {
		t.Fatalf("no process id in %s", answer)
	}
	return id
}

func TestExec(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	has(t, ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"fail"}}), "exit_code: 3\n", "output: 8 bytes\n---\nout\n[stderr]\nerr\n")
	has(t, ok(t, g, "exec", m{"workspace": "ws", "script": "a; b | c", "dir": "/tmp", "env": m{"A": "1"}}),
		`["sh" "-c" "a; b | c"] in /tmp with map[A:1]`)
	has(t, ok(t, g, "exec", m{"workspace": "ws", "argv": `["cat"]`, "stdin": "from stdin"}), "exit_code: 0", "---\nfrom stdin")
	has(t, ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"nope"}}), "exit_code: 127", "message: nope: command not found")
	has(t, ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"binary"}}), `\x00\x01\xffa<`, `[3 bytes that are no text show as \xNN]`)
	starts := guest.Starts()
	fails(t, g, "exec", m{"workspace": "ws"}, "argv or script is missing", "argv (array)")
	fails(t, g, "exec", m{"workspace": "ws", "argv": []any{"a"}, "script": "b"}, "exclude each other")
	fails(t, g, "exec", m{"workspace": "ws", "argv": []any{"cat"}, "stdin": strings.Repeat("x", inputMost+1)}, "are the most", "file_write")
	fails(t, g, "exec", m{"workspace": "none", "argv": []any{"a"}}, "error (not_found)", "there is none of that name")
	if guest.Starts() != starts {
		t.Error("a refused call started something")
	}
}

func TestLongOutputIsHeadAndTail(t *testing.T) {
	t.Parallel()
	_, _, g := setup(t)
	answer := ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"flood"}})
	id := idIn(t, answer)
	has(t, answer, "output: 1000000 bytes", "line 0000 ", "line 9999 ",
		fmt.Sprintf(`[... 982000 bytes left out here; read on with process_output {"workspace":"ws","process_id":"%s","offset":8000} ...]`, id))
	page := ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 8000})
	has(t, page, "output: bytes 8000 to 26000 of 1000000", fmt.Sprintf(`read on: process_output {"workspace":"ws","process_id":"%s","offset":26000}`, id), "line 0080 ")
	has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id}), "bytes 990000 to 1000000 of 1000000", "line 9999 ")
	has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 0, "wait_seconds": 5}), "exit_code: 0", "982000 bytes left out")
}

func TestLongCommand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, guest, g := setup(t)
		began := time.Now()
		answer := ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"wait"}})
		if took := time.Since(began); took != execWait*time.Second {
			t.Errorf("exec took %v", took)
		}
		id := idIn(t, answer)
		has(t, answer, "running: true", fmt.Sprintf(`wait for it: process_output {"workspace":"ws","process_id":"%s","offset":6,"wait_seconds":30}`, id), "---\nready\n")
		began = time.Now()
		has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": "6", "wait_seconds": "45"}), "running: true")
		if took := time.Since(began); took > callMost || took < callMost-2*time.Second {
			t.Errorf("the longest wait took %v", took)
		}
		has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 6}), "wait for it: ")
		has(t, ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"wait"}, "wait_seconds": 0}), "running: true")
		// The link breaks while a call waits; the command goes on and so does the call.
		time.AfterFunc(5*time.Second, func() { s.SetDown(true); s.Cut() })
		time.AfterFunc(8*time.Second, func() { s.SetDown(false) })
		time.AfterFunc(12*time.Second, func() {
			has(t, ok(t, g, "process_signal", m{"workspace": "ws", "process_id": id, "signal": "INT"}), "sent INT to "+id)
		})
		has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 6, "wait_seconds": 30}), "exit_code: 130 (killed by signal 2)", "got INT")
		fails(t, g, "process_signal", m{"workspace": "ws", "process_id": id, "signal": "INT"}, "it has ended")
		fails(t, g, "process_signal", m{"workspace": "ws", "process_id": "none", "signal": "INT"}, "process_list")
		fails(t, g, "process_output", m{"workspace": "ws", "process_id": "none"}, "process_list")
		list := ok(t, g, "process_list", m{"workspace": "ws"})
		has(t, list, id+": signalled with code 130", `: running, `, `["wait"]`)
		if running := ok(t, g, "process_list", m{"workspace": "ws", "running": true}); strings.Contains(running, id) {
			t.Errorf("running: %s", running)
		}
		fails(t, g, "process_list", m{"workspace": "none"}, "workspace_list")
		if guest.Starts() != 2 {
			t.Errorf("%d starts", guest.Starts())
		}
		s.Cut()
	})
}

func TestInput(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	id := idIn(t, ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"cat"}, "stdin": "one ", "stdin_open": true, "wait_seconds": 0}))
	has(t, ok(t, g, "process_input", m{"workspace": "ws", "process_id": id, "text": "two "}), "sent: 4 bytes, 8 in all", "process_output {")
	ok(t, g, "process_input", m{"workspace": "ws", "process_id": id, "text": "three", "close": true})
	has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 0, "wait_seconds": 10}), "exit_code: 0", "one two three")
	fails(t, g, "process_input", m{"workspace": "ws", "process_id": id, "text": "x"}, "its input is closed")
	fails(t, g, "process_input", m{"workspace": "ws", "process_id": "none", "text": "x"}, "process_list")
	fails(t, g, "process_input", m{"workspace": "ws", "process_id": id, "text": strings.Repeat("x", inputMost+1)}, "in parts")
	guest.Drop(id, 4)
	has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 0}), "dropped: bytes 0 to 4 are no longer kept", "two three")
	has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": id, "offset": 0, "wait_seconds": 1}), "[4 bytes of older output are no longer kept]", "two three")
	lost := idIn(t, ok(t, g, "exec", m{"workspace": "ws", "argv": []any{"wait"}, "wait_seconds": 0}))
	guest.Lose(lost)
	has(t, ok(t, g, "process_output", m{"workspace": "ws", "process_id": lost}), "lost: true")
}

func TestFiles(t *testing.T) {
	t.Parallel()
	_, guest, g := setup(t)
	w := func(args m) m { args["workspace"] = "ws"; return args }
	has(t, ok(t, g, "file_write", w(m{"path": "d/a.txt", "content": "x < y\nx > y\n"})), "wrote 12 bytes to d/a.txt, which now has 12")
	ok(t, g, "file_write", w(m{"path": "d/a.txt", "content": "z", "append": true}))
	has(t, ok(t, g, "file_read", w(m{"path": "d/a.txt"})), "bytes 0 to 13 of 13\n---\nx < y\nx > y\nz")
	ok(t, g, "file_write", w(m{"path": "bin", "content": "AAH/YQ==", "encoding": "base64", "mode": "755"}))
	if info, err := os.Stat(filepath.Join(guest.Dir, "bin")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("bin: %v, %v", info, err)
	}
	has(t, ok(t, g, "file_read", w(m{"path": "bin"})), `\x00\x01\xffa`, "binary: 3 bytes", "encoding base64")
	has(t, ok(t, g, "file_read", w(m{"path": "bin", "encoding": "base64"})), "---\nAAH/YQ==")
	has(t, ok(t, g, "file_read", w(m{"path": "bin", "offset": 1, "limit": 2})), "bytes 1 to 3 of 4", `read on: file_read {"workspace":"ws","path":"bin","offset":3}`)
	ok(t, g, "file_write", w(m{"path": "u", "content": "aé" + strings.Repeat("é", 10_000)}))
	has(t, ok(t, g, "file_read", w(m{"path": "u"})), "bytes 0 to 17999 of 20003") // no rune is cut
	fails(t, g, "file_write", w(m{"path": "x", "content": "?", "encoding": "base64"}), "not base64")
	fails(t, g, "file_write", w(m{"path": "x", "content": "?", "mode": "999"}), "no octal number")
	fails(t, g, "file_write", w(m{"path": "x", "content": strings.Repeat("x", writeMost+1)}), "with append")
	fails(t, g, "file_write", w(m{"path": "d", "content": "x"}), "error (")
	fails(t, g, "file_read", w(m{"path": "none"}), "error (not_found)", "file_list")

	has(t, ok(t, g, "file_edit", w(m{"path": "d/a.txt", "old_text": "x > y", "new_text": "& <"})), "replaced 1 occurrence in d/a.txt, the first in line 2")
	fails(t, g, "file_edit", w(m{"path": "u", "old_text": "é", "new_text": ""}), "occurs 10001 times", "give more of what stands around")
	fails(t, g, "file_edit", w(m{"path": "none", "old_text": "a", "new_text": "b"}), "file_list")

	if err := os.Symlink("target", filepath.Join(guest.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	has(t, ok(t, g, "file_list", w(m{})), "/workspace: entries: 4", "bin  4 bytes  0755", "d/\n", "link -> target", "u  19.5 KiB  0644")
	has(t, ok(t, g, "file_list", w(m{"limit": 1})), "[there is more")
	fails(t, g, "file_list", w(m{"path": "none"}), "workspace_list shows the workspaces")

	has(t, ok(t, g, "file_search", w(m{"pattern": "^x", "path": "d"})), "1 matches, 1 file searched", "a.txt:1: x < y")
	has(t, ok(t, g, "file_search", w(m{"pattern": ".", "path": "d", "limit": 1})), "[there are more")
	fails(t, g, "file_search", w(m{"pattern": "("}), "missing closing")
	for i := range 300 {
		ok(t, g, "file_write", w(m{"path": fmt.Sprintf("many/%0200d", i), "content": "x"}))
	}
	has(t, ok(t, g, "file_list", w(m{"path": "many", "limit": 1000})), "more lines had no room; list a folder below]")
}

func TestNodesAndWorkspaces(t *testing.T) {
	t.Parallel()
	s, guest, g := setup(t)
	has(t, ok(t, g, "node_list", m{}), "build1: ready, providers docker, 4.0 GiB of 8.0 GiB memory free, 0 workspaces, arch=amd64, zone=a")
	has(t, ok(t, g, "node_status", m{"name": "build1"}), "provider native: not usable: user namespaces are restricted; the user can fix it with: sudo sysctl", "4 processors")
	fails(t, g, "node_status", m{"name": "no"}, "node_list shows the names")
	has(t, ok(t, g, "workspace_list", m{}), "ws: running, on node build1, provider docker, image debian:12")
	has(t, ok(t, g, "workspace_list", m{"node": "other"}), "no workspaces; workspace_create makes one")
	guest.SetChanges("a.txt")
	has(t, ok(t, g, "workspace_status", m{"name": "ws"}), "state: running", "git: branch main, commit 0123456789ab", "  a.txt")
	fails(t, g, "workspace_status", m{"name": "no"}, "workspace_list")
	has(t, ok(t, g, "workspace_stop", m{"name": "ws", "grace_seconds": 3}), "stop ws: done")
	has(t, ok(t, g, "workspace_status", m{"name": "ws"}), "state: stopped")
	has(t, ok(t, g, "workspace_create", m{"name": "ws"}), "exists and is stopped", `workspace_up {"name":"ws"}`)
	has(t, ok(t, g, "workspace_up", m{"name": "ws"}), "up ws: done")
	fails(t, g, "workspace_rm", m{"name": "ws"}, "changes exist only there: a.txt", "with force")
	has(t, ok(t, g, "workspace_rm", m{"name": "ws", "force": true}), "rm ws: done")
	fails(t, g, "workspace_up", m{"name": "ws"}, "workspace_list")
	s.Lock()
	s.Nodes[0].Spares = []*vendettav1.Spares{{Provider: "docker", Image: "debian:12", Count: 2, Ready: 1, Message: "memory is short"}, {Provider: "native", Count: 1}}
	s.Unlock()
	has(t, ok(t, g, "node_status", m{"name": "build1"}), "spares of docker debian:12: 1 of 2 ready; memory is short; a workspace_create", "spares of native: 0 of 1 ready; a")
	s.Lock()
	s.Nodes[0].Message = "its disk is full"
	s.Nodes[0].Report.Providers = nil
	s.Unlock()
	has(t, ok(t, g, "node_list", m{}), "ready (its disk is full), providers none")
	s.Lock()
	s.Nodes = nil
	s.Unlock()
	has(t, ok(t, g, "node_list", m{}), "no nodes yet; the user adds one with")
	s.SetDown(true)
	s.Cut()
	for _, name := range []string{"node_list", "workspace_list"} {
		clienttest.Wait(t, func() bool {
			answer, isError := try(context.Background(), t, g, name, m{})
			return isError && strings.Contains(answer, "connect to the server: connection refused")
		})
	}
}

func TestCreateWaitsAndGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _, g := setup(t)
		s.Lock()
		s.Hold = true
		s.Unlock()
		args := m{"name": "new", "image": "debian:12", "cpus": "2", "memory_mb": 512, "network": "none"}
		began := time.Now()
		has(t, ok(t, g, "workspace_create", args), "not finished yet: waiting until new runs", "call workspace_create again with the same arguments")
		if took := time.Since(began); took > callMost {
			t.Errorf("it took %v", took)
		}
		fails(t, g, "workspace_create", m{"name": "new", "image": "other"}, "error (conflict)")
		has(t, ok(t, g, "workspace_stop", m{"name": "ws"}), "stop ws: accepted, not finished yet", "workspace_status")
		time.AfterFunc(10*time.Second, func() { s.Release("") })
		has(t, ok(t, g, "workspace_create", args), "workspace new is running on node build1", "chosen: node build1: the only one", `exec {"workspace":"new"`)
		has(t, ok(t, g, "workspace_create", args), "workspace new is running")
		if n := s.Count("CreateWorkspace"); n != 1 {
			t.Errorf("created %d times", n)
		}
		fails(t, g, "workspace_create", m{"name": "new", "image": "other"}, "error (already_exists)", "its image is debian:12", "choose another name")
		fails(t, g, "workspace_create", m{"name": "new", "from": "/none"}, "its source is not set")
		fails(t, g, "workspace_create", m{"name": "bad"}, "that is no name")

		s.Lock()
		s.Hold = true
		s.Unlock()
		time.AfterFunc(time.Second, func() { s.Release("no such image") })
		fails(t, g, "workspace_create", m{"name": "broken"}, "create broken: no such image", "next: name another image")
		fails(t, g, "workspace_create", m{"name": "broken"}, "it exists and has failed: no such image")
		s.SetState("broken", vendettav1.WorkspaceState_WORKSPACE_STATE_UNKNOWN, "its node is lost")
		has(t, ok(t, g, "workspace_create", m{"name": "broken"}), "exists and is unknown (its node is lost)")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if answer, isError := try(ctx, t, g, "workspace_create", m{"name": "more"}); isError || !strings.Contains(answer, "not finished yet") {
			t.Errorf("a client that went away: %s", answer)
		}
		synctest.Wait()
		has(t, ok(t, g, "workspace_create", m{"name": "more"}), "workspace more is running")
		s.Cut()
	})
}

func TestCreateFromARepository(t *testing.T) {
	t.Parallel()
	s, _, g := setup(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "."}, {"-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "one"}} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git: %v\n%s", err, out)
		}
	}
	fails(t, g, "workspace_create", m{"name": "r", "from": "relative"}, "not an absolute path")
	fails(t, g, "workspace_create", m{"name": "r", "from": t.TempDir()}, "is not in a git repository")
	fails(t, g, "workspace_status", m{"name": "r"}, "not_found") // nothing half-made stays
	has(t, ok(t, g, "workspace_create", m{"name": "r", "from": dir}), "workspace r is running", "/workspace holds "+dir+", branch main, commit ")
	if text, err := os.ReadFile(filepath.Join(s.Guest(t, "r").Dir, "a.txt")); err != nil || string(text) != "a" {
		t.Errorf("a.txt: %q, %v", text, err)
	}
	has(t, ok(t, g, "workspace_create", m{"name": "r", "from": dir}), "workspace r is running")
	if n := s.Count("Import"); n != 1 {
		t.Errorf("imported %d times", n)
	}
	has(t, ok(t, g, "workspace_status", m{"name": "r"}), "created from: "+dir+", branch main", "changed since it was created: 0 files, 0 new commits")
	fails(t, g, "workspace_create", m{"name": "r", "from": os.TempDir()}, "its source is "+dir)
	// An import that was cut off is taken up by the next call.
	s.Guest(t, "r").Forget()
	has(t, ok(t, g, "workspace_create", m{"name": "r", "from": dir}), "workspace r is running")
	if n := s.Count("Import"); n != 2 {
		t.Errorf("imported %d times", n)
	}
}

func TestPanicBecomesAResult(t *testing.T) {
	t.Parallel()
	s := clienttest.New(t)
	g := gateway(t, s, Options{})
	r := g.call(t.Context(), &tool{name: "broken", run: func(context.Context, *Gateway, *call) (string, error) { panic("oh") }}, mcpgo.CallToolRequest{})
	text, _ := r.Content[0].(mcpgo.TextContent)
	if !r.IsError || !strings.Contains(text.Text, "broken: the gateway has a bug") || strings.Contains(text.Text, "oh\n") {
		t.Errorf("%v", text.Text)
	}
}

// Every code has a next step, and a deadline reads as one.
func TestErrors(t *testing.T) {
	t.Parallel()
	for code, next := range nextSteps {
		text, _ := failed(api.Errorf(code, "it went wrong")).Content[0].(mcpgo.TextContent)
		if text.Text != "error ("+string(code)+"): it went wrong\nnext: "+next {
			t.Errorf("%s: %q", code, text.Text)
		}
	}
	text, _ := failed(context.DeadlineExceeded).Content[0].(mcpgo.TextContent)
	has(t, text.Text, "no answer within 45 seconds")
}

// notes is a session whose notifications a test reads.
type notes chan mcpgo.JSONRPCNotification

func (n notes) SessionID() string                                     { return "notes" }
func (n notes) NotificationChannel() chan<- mcpgo.JSONRPCNotification { return n }
func (n notes) Initialize()                                           {}
func (n notes) Initialized() bool                                     { return true }

func TestProgressComesEveryTenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _, g := setup(t)
		seen := make(notes, 10)
		ctx := g.server.WithContext(t.Context(), seen)
		r := mcpgo.CallToolRequest{Params: mcpgo.CallToolParams{Name: "exec", Arguments: m{"workspace": "ws", "argv": []any{"wait"}, "wait_seconds": "35"}, Meta: &mcpgo.Meta{ProgressToken: "tok"}}}
		if _, err := g.server.GetTool("exec").Handler(ctx, r); err != nil {
			t.Fatal(err)
		}
		close(seen)
		var got []string
		for n := range seen {
			got = append(got, fmt.Sprint(n.Params.AdditionalFields["progress"], " ", n.Params.AdditionalFields["message"]))
		}
		want := "[10 the command runs, 6 bytes of output, 10 seconds so far 20 the command runs, 6 bytes of output, 20 seconds so far 30 the command runs, 6 bytes of output, 30 seconds so far]"
		if fmt.Sprint(got) != want {
			t.Errorf("got %v", got)
		}
		// A channel that is full costs messages, never the call.
		full := make(notes)
		if _, err := g.server.GetTool("exec").Handler(g.server.WithContext(t.Context(), full), r); err != nil {
			t.Fatal(err)
		}
		s.Cut()
	})
}

func TestCollector(t *testing.T) {
	t.Parallel()
	read := func(o uint64) string { return fmt.Sprintf("read(%d)", o) }
	var c collector
	for i := range 500 {
		fmt.Fprint(c.writer(byte(i%2)), "x")
	}
	if got := c.render(read); len(got) > 3000 || !strings.Contains(got, "they are not marked]") {
		t.Errorf("alternating streams: %d bytes", len(got))
	}
	c = collector{}
	fmt.Fprint(c.writer(stdout), strings.Repeat("é", headMost)) // 16,000 bytes
	fmt.Fprint(c.writer(stdout), "x"+strings.Repeat("é", tailMost))
	if got := c.render(read); strings.Contains(got, `\x`) || !strings.Contains(got, "bytes left out here; read on with read(8000)") {
		t.Errorf("a rune was cut: %s", got[:200])
	}
	c = collector{next: 100}
	fmt.Fprint(c.writer(stderr), strings.Repeat("\xff", 9000))
	if got := c.render(read); len(got) > resultMost || !strings.Contains(got, "read(2100)") {
		t.Errorf("binary: %d bytes, %s", len(got), got[:300])
	}
	for s, want := range map[string]string{"a\r\n": "a\\r\n", "\x1b[31m": `\x1b[31m`, "\u202e": `\xe2\x80\xae`, "\ufffd": "\ufffd"} {
		if got := printable([]byte(s), 100); got != want {
			t.Errorf("printable(%q) = %q", s, got)
		}
	}
	if got := string(wholeRunes([]byte("a\xe2\x80"))); got != "a" {
		t.Errorf("wholeRunes = %q", got)
	}
	if describe(&guestv1.Process{}) != "running: true\nprocess_id: \n" || bytesText(3<<20) != "3.0 MiB" || stamp(nil) != "-" || state(vendettav1.NodeState(0), "NODE_STATE_") != "unknown" {
		t.Error("rendering")
	}
}
