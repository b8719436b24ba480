package mcp

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
	"github.com/vendetta-dev/vendetta/nodeagent/guest"
)

// The tools against the guest that ships: real commands, real files.
func TestToolsOnARealGuest(t *testing.T) {
	t.Parallel()
	s := clienttest.New(t)
	s.AddWorkspace(t, "ws")
	dir := t.TempDir()
	project := filepath.Join(dir, "project")
	if err := os.Mkdir(project, 0o755); err != nil {
		t.Fatal(err)
	}
	real, err := guest.New(t.Context(), guest.Options{
		StateDir: filepath.Join(dir, "state"), ProjectDir: project, Env: os.Environ(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { real.Close(time.Second) })
	s.Mount("ws", real)
	g := gateway(t, s, Options{})
	w := func(args m) m { args["workspace"] = "ws"; return args }

	has(t, ok(t, g, "exec", w(m{"script": "echo out; echo err >&2; exit 3"})), "exit_code: 3", "out\n", "[stderr]\nerr\n")
	has(t, ok(t, g, "exec", w(m{"argv": []any{"no-such-tool"}})), "exit_code: 127", "not found")
	has(t, ok(t, g, "exec", w(m{"argv": []any{"cat"}, "stdin": "hello"})), "---\nhello")
	has(t, ok(t, g, "exec", w(m{"argv": []any{"sh", "-c", "kill -9 $$"}})), "exit_code: 137 (killed by signal 9)")
	has(t, ok(t, g, "exec", w(m{"script": "seq 1 200000"})), "output: 1288895 bytes", "bytes left out here", "\n200000\n")
	id := idIn(t, ok(t, g, "exec", w(m{"script": "read a; echo got $a; sleep 600", "stdin_open": true, "wait_seconds": 0})))
	ok(t, g, "process_input", w(m{"process_id": id, "text": "this\n"}))
	clienttest.Wait(t, func() bool {
		return strings.Contains(ok(t, g, "process_output", w(m{"process_id": id})), "got this")
	})
	s.Cut()
	clienttest.Wait(t, func() bool { // the connection may still be taken for a good one
		_, isError := try(t.Context(), t, g, "process_list", w(m{}))
		return !isError
	})
	ok(t, g, "process_signal", w(m{"process_id": id, "signal": "TERM"}))
	has(t, ok(t, g, "process_output", w(m{"process_id": id, "offset": 0, "wait_seconds": 20})), "exit_code: 143 (killed by signal 15)", "got this")
	has(t, ok(t, g, "process_list", w(m{})), id)

	ok(t, g, "file_write", w(m{"path": "d/a.txt", "content": "one\ntwo\n"}))
	ok(t, g, "file_edit", w(m{"path": "d/a.txt", "old_text": "two", "new_text": "2"}))
	has(t, ok(t, g, "file_read", w(m{"path": "d/a.txt"})), "bytes 0 to 6 of 6", "one\n2\n")
	has(t, ok(t, g, "file_list", w(m{"path": "d"})), "a.txt  6 bytes  0644")
	has(t, ok(t, g, "file_search", w(m{"pattern": "^o", "path": "."})), "d/a.txt:1: one")
	fails(t, g, "file_read", w(m{"path": "../state"}), "error (permission_denied)")
	fails(t, g, "file_read", w(m{"path": "none"}), "error (not_found)")

	// Copies both ways, by the road that the CLI takes.
	local := t.TempDir()
	copier := client.New(s.Dial)
	defer copier.Close()
	if err := copier.Guest("ws").CopyFrom(t.Context(), "d", local); err != nil {
		t.Fatal(err)
	}
	if err := copier.Guest("ws").CopyTo(t.Context(), filepath.Join(local, "d"), "e"); err != nil {
		t.Fatal(err)
	}
	has(t, ok(t, g, "file_read", w(m{"path": "e/a.txt"})), "one\n2\n")
}
