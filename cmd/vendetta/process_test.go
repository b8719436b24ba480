package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
)

func TestExecPassesStreamsAndCode(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	if r := s.ok("workspace exec w -- echo a -b -- c"); r.out != "a -b -- c\n" {
		t.Errorf("out %q", r.out)
	}
	if r := s.ok("workspace exec w echo -n"); r.out != "-n\n" {
		t.Errorf("without --: %q", r.out)
	}
	r := s.run("workspace", "exec", "w", "--", "fail")
	if r.code != 3 || r.out != "out\n" || r.err != "err\n" {
		t.Errorf("got %+v", r)
	}
	s.input = "some input"
	if r := s.ok("workspace exec w -- cat"); r.out != "some input" {
		t.Errorf("cat: %q", r.out)
	}
	s.env["MINE"] = "from here"
	s.ok("workspace exec -e A=1 -e MINE -w /tmp w -- sh -c x", "/tmp", "A:1", "MINE:from here")
	s.fails(127, "workspace exec w -- nothere", "vendetta: nothere: command not found")
	s.fails(exitOwnFailure, "workspace exec nothere -- true", "next: see which there are: vendetta workspace list")
}

func TestExecRefuses(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	s.fails(exitOwnFailure, "workspace exec", "takes at least 2")
	s.fails(exitOwnFailure, "workspace exec w --", "names no command")
	s.fails(exitOwnFailure, "workspace exec w -e A=1 -- echo", `flags come before the workspace, and "-e" stands after it`)
	s.fails(exitOwnFailure, "workspace exec -e =1 w -- echo", "the name is empty", "NAME=VALUE")
	s.fails(exitOwnFailure, "workspace exec -t w -- echo", "standard input is no terminal", "workspace exec w -- COMMAND")
	s.fails(exitOwnFailure, "workspace shell w", "standard input is no terminal")
	s.fails(exitOwnFailure, "workspace shell w --attach p1", "standard input is no terminal")
	s.fails(exitOwnFailure, "workspace shell w ls", "a command comes after --")
	s.fails(exitOwnFailure, "workspace shell w --attach p1 -- ls", "takes no command")
	if n := s.server.Guest(t, "w").Starts(); n != 0 {
		t.Errorf("%d commands were started", n)
	}
}

func TestDetachedProcessIsLookedAfter(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	if r := s.ok("workspace ps w"); !strings.Contains(r.err, "no process runs") {
		t.Errorf("an empty list says %q", r.err)
	}
	id := strings.TrimSpace(s.ok("workspace exec -d w -- wait").out)
	s.await("its first words", func() bool { return s.run("workspace", "logs", "w", id).out == "ready\n" })
	s.ok("workspace ps w", id, "running", "6 B", "wait")
	s.ok("workspace kill w "+id+" -s sigint", id)
	if r := s.ok("workspace logs -f w " + id); r.out != "ready\ngot INT\n" {
		t.Errorf("logs: %q", r.out)
	}
	s.ok("workspace ps -a w", "signalled", "130")
	if r := s.ok("workspace logs --tail 4 w " + id); r.out != "INT\n" {
		t.Errorf("tail: %q", r.out)
	}
	s.server.Guest(t, "w").Drop(id, 3)
	if r := s.ok("workspace logs w " + id); !strings.Contains(r.err, "3 bytes of output were dropped here") {
		t.Errorf("a gap: %q", r.err)
	}
	s.fails(5, "workspace kill w "+id)
	s.fails(3, "workspace logs w nothere")
	s.fails(2, "workspace logs w", "takes 2 argument(s), got 1")
}

func TestLostProcess(t *testing.T) {
	s := newStage(t)
	g := s.server.AddWorkspace(t, "w")
	started := make(chan struct{})
	s.server.Programs["hang"] = func(p *clienttest.Proc) int32 {
		close(started)
		<-p.Done
		return 0
	}
	done := make(chan result)
	go func() { done <- s.run("workspace", "exec", "w", "--", "hang") }()
	<-started
	id := strings.TrimSpace(s.ok("workspace ps -q w").out)
	g.Lose(id)
	if r := <-done; r.code != exitOwnFailure || !strings.Contains(r.err, "lost: its instance went away") ||
		!strings.Contains(r.err, "next: read what it wrote with: vendetta workspace logs w "+id) {
		t.Errorf("got %+v", r)
	}
}

func TestLinkLossIsTold(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	started, goOn := make(chan struct{}), make(chan struct{})
	s.server.Programs["slow"] = func(p *clienttest.Proc) int32 {
		_, _ = p.Stdout.Write([]byte("one\n"))
		_, _ = io.ReadFull(p.Stdin, make([]byte, 1)) // it comes when the client has the stream
		close(started)
		<-goOn
		_, _ = p.Stdout.Write([]byte("two\n"))
		return 4
	}
	s.input = "x"
	done := make(chan result)
	go func() { done <- s.run("workspace", "exec", "w", "--", "slow") }()
	<-started
	s.server.Cut()
	s.await("the new stream", func() bool { return s.server.Count("Attach") > 0 })
	close(goOn)
	r := <-done
	if r.code != 4 || r.out != "one\ntwo\n" || !strings.Contains(r.err, "lost the link to w") || !strings.Contains(r.err, "the link to w is back") {
		t.Errorf("got %+v", r)
	}
}

func TestCommandText(t *testing.T) {
	for want, argv := range map[string][]string{
		"echo a":                        {"echo", "a"},
		`sh -c "a b" ""`:                {"sh", "-c", "a b", ""},
		`echo "it's"`:                   {"echo", "it's"},
		strings.Repeat("ä", 57) + "...": {strings.Repeat("ä", 80)},
	} {
		if got := commandText(argv); got != want {
			t.Errorf("%q is %q, want %q", argv, got, want)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for _, sig := range forwardedSignals {
		name := signalName(sig)
		if name == "" || strings.HasPrefix(name, "SIG") {
			t.Errorf("%v is %q", sig, name)
		}
	}
	if got := signalName(os.Interrupt); got != "INT" {
		t.Errorf("interrupt is %q", got)
	}
	if got := signalName(strange{}); got != "TERM" {
		t.Errorf("a strange signal is %q", got)
	}
}

type strange struct{}

func (strange) String() string { return "strange" }
func (strange) Signal()        {}

func TestCopy(t *testing.T) {
	s := newStage(t)
	g := s.server.AddWorkspace(t, "w")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok("workspace cp " + file + " w:copied")
	if got, err := os.ReadFile(filepath.Join(g.Dir, "copied")); err != nil || string(got) != "text" {
		t.Errorf("copied in: %q, %v", got, err)
	}
	s.ok("workspace cp w:copied " + filepath.Join(dir, "back"))
	if got, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || string(got) != "text" {
		t.Errorf("copied out: %q, %v", got, err)
	}
	s.fails(2, "workspace cp a b", "NAME:PATH")
	s.fails(2, "workspace cp w:a w:b", "NAME:PATH")
	s.fails(3, "workspace cp nothere:a b", "nothere")
}

func TestSplitWorkspacePath(t *testing.T) {
	for in, want := range map[string]workspacePath{
		"w:/tmp/a": {"w", "/tmp/a"},
		"w:":       {"w", "."},
		"w:a:b":    {"w", "a:b"},
		"a":        {"", "a"},
		"./a:b":    {"", "./a:b"},
		"/a:b":     {"", "/a:b"},
		"a/b:c":    {"", "a/b:c"},
		":a":       {"", ":a"},
	} {
		if got := splitWorkspacePath(in); got != want {
			t.Errorf("%q is %+v, want %+v", in, got, want)
		}
	}
}

func TestEndedProcessesWithoutCode(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	s.ok("workspace exec w -- echo")
	s.ok("workspace ps -a w -o json", `"PROCESS_STATE_EXITED"`)
	if got := enumWord(guestv1.ProcessState_PROCESS_STATE_UNSPECIFIED, "PROCESS_STATE_"); got != "-" {
		t.Errorf("an unknown state is %q", got)
	}
}
