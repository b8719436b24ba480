//go:build linux

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/evals/testbed"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testbed.RemovePrograms()
	os.Exit(code)
}

// house is a state folder of its own with the real program.
type house struct {
	t       *testing.T
	program string
	state   string
}

func newHouse(t *testing.T) *house {
	t.Helper()
	state, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t, testbed.Programs(t), state}
	t.Cleanup(func() {
		if r := h.run("server", "stop"); r.code != 0 {
			t.Errorf("stop: %s", r.err)
		}
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *house) run(args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.program, append(args, "--state-dir", h.state)...)
	cmd.Env = append(os.Environ(), "GOCOVERDIR="+testbed.CoverDir(h.t))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run()
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// The lock of the store decides among servers that start together, and a start
// right after a stop waits for the end of the one that is going.
func TestServerIsStartedManyTimesAtOnce(t *testing.T) {
	h := newHouse(t)
	for round := range 3 {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if r := h.run("workspace", "list"); r.code != 0 {
					t.Errorf("round %d: %s", round, r.err)
				}
			})
		}
		all.Wait()
		if r := h.run("server", "stop"); r.code != 0 {
			t.Errorf("stop: %s", r.err)
		}
	}
}

func TestStoppedServerIsGone(t *testing.T) {
	h := newHouse(t)
	pid := strings.TrimSpace(strings.Fields(strings.SplitAfter(h.run("server", "start").out, "pid")[1])[0])
	if r := h.run("server", "status", "-q"); r.out != "running\n" {
		t.Errorf("quiet: %q", r.out)
	}
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if processEnded(n) {
		t.Error("a running server has ended")
	}
	h.run("server", "stop")
	if !processEnded(n) {
		t.Error("stop returned before the server had ended")
	}
	if _, err := os.Stat(filepath.Join(h.state, "server", "server.sock")); err == nil {
		t.Error("its socket is left")
	}
}

func TestServerThatCannotStart(t *testing.T) {
	h := newHouse(t)
	dir := filepath.Join(h.state, "server")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vendetta.db"), bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.run("workspace", "list")
	if r.code != 5 || !strings.Contains(r.err, "start the server: it ended at once: ") || strings.Contains(r.err, "vendetta: vendetta") ||
		!strings.Contains(r.err, "next: read "+filepath.Join(dir, "server.log")) {
		t.Errorf("got %+v", r)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.run("workspace", "list"); r.code != 5 || !strings.Contains(r.err, "choose another folder with --state-dir") {
		t.Errorf("got %+v", r)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

func TestLastLogLine(t *testing.T) {
	a := &app{stateDir: t.TempDir()}
	if got := a.lastLogLine(0); got != "it left no message" {
		t.Errorf("without a log: %q", got)
	}
	if err := os.Mkdir(a.serverDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"old\nvendetta: open it: no\n  next: do\n": "open it: no",
		"old\npanic: x\n":                          "panic: x",
		"old\n":                                    "it left no message",
	} {
		if err := os.WriteFile(a.serverLog(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := a.lastLogLine(4); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestWaitForTheServerEnds(t *testing.T) {
	a := &app{stateDir: t.TempDir()}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	never := func(context.Context) bool { return false }
	if err := a.await(ctx, "stop", never); api.CodeOf(err) != api.Unavailable {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := a.await(ctx, "stop", never); api.CodeOf(err) != api.DeadlineExceeded {
		t.Errorf("over time: %v", err)
	}
}

func TestProcessEnded(t *testing.T) {
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if processEnded(cmd.Process.Pid) {
		t.Error("a running process has ended")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Nobody has waited for it yet.
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !processEnded(cmd.Process.Pid) {
		if time.Now().After(deadline) {
			t.Fatal("a dead process has not ended")
		}
		<-tick.C
	}
	_ = cmd.Wait()
	if !processEnded(cmd.Process.Pid) {
		t.Error("a process that was waited for has not ended")
	}
}

func TestCompletions(t *testing.T) {
	h := newHouse(t)
	complete := func(words ...string) string {
		cmd := exec.Command(h.program, append([]string{"__complete"}, words...)...)
		cmd.Env = append(os.Environ(), "VENDETTA_STATE_DIR="+h.state, "GOCOVERDIR="+testbed.CoverDir(t))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	// Tab starts nothing.
	for _, words := range [][]string{{"workspace", "status", ""}, {"node", "status", ""}, {"workspace", "logs", "w", ""}, {"workspace", "cp", ""}, {"workspace", "list", "--node", ""}, {"workspace", "snapshot", "rm", "w", ""}} {
		if got := complete(words...); strings.Contains(got, "\n\n") || strings.Count(got, "\n") != 1 {
			t.Errorf("%v without a server: %q", words, got)
		}
	}
	if r := h.run("server", "status"); r.code != 6 {
		t.Errorf("a completion started the server: %+v", r)
	}
	h.run("server", "start")
	for _, words := range [][]string{{"workspace", "status", ""}, {"node", "status", ""}, {"workspace", "logs", "w", ""}, {"workspace", "status", "w", ""}, {"node", "status", "n", ""}, {"workspace", "snapshot", "rm", "w", ""}, {"workspace", "snapshot", "rm", "w", "s", ""}} {
		if got := complete(words...); got != ":4\n" {
			t.Errorf("%v with an empty server: %q", words, got)
		}
	}
	if got := complete("workspace", "list", "-o", ""); got != "table\njson\nyaml\n:4\n" {
		t.Errorf("formats: %q", got)
	}
}
