package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestDoctor(t *testing.T) {
	s := newStage(t)
	// The programs for nodes are missing beside a test's own program.
	s.fails(5, "doctor", "found something missing")
	r := s.run("doctor")
	for _, want := range []string{"state folder", "ok", "server", "version v9, pid 4711", "there is none; fix: vendetta node add local --local", "fix: make build"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is missing in:\n%s", want, r.out)
		}
	}
	n := s.server.AddNode("build1")
	r = s.run("doctor", "--json")
	if !strings.Contains(r.out, `"node build1 docker"`) || !strings.Contains(r.out, `"fix": "sudo sysctl`) {
		t.Errorf("got:\n%s", r.out)
	}
	n.State, n.Message = vendettav1.NodeState_NODE_STATE_LOST, "no heartbeat"
	if r = s.run("doctor"); !strings.Contains(r.out, "lost: no heartbeat; fix: vendetta node test build1") {
		t.Errorf("got:\n%s", r.out)
	}
	for _, broken := range []string{"ListNodes", "ServerStatus"} {
		s.nodes.breaks(broken)
		if r = s.run("doctor"); r.code != 5 || !strings.Contains(r.out, "the server is out of order") {
			t.Errorf("%s: got:\n%s", broken, r.out)
		}
	}
}

func TestOneUsableProviderIsEnough(t *testing.T) {
	s := newStage(t)
	n := s.server.AddNode("build1")
	for _, f := range examineNode(n) {
		if !f.ok && !f.optional {
			t.Errorf("%+v is taken for a fault", f)
		}
	}
	n.Report.Providers[0].Usable = false
	bad := 0
	for _, f := range examineNode(n) {
		if !f.ok && !f.optional {
			bad++
		}
	}
	if bad != 2 {
		t.Errorf("%d faults where no provider is usable", bad)
	}
}

func TestExamineThisMachine(t *testing.T) {
	if f := examineProgram("no-such-program", "this", "get it"); f.ok || f.fix != "get it" {
		t.Errorf("got %+v", f)
	}
	if f := examineProgram("sh", "this", ""); !f.ok {
		t.Errorf("got %+v", f)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{stateDir: filepath.Join(file, "below")}
	if f := a.examineStateDir(); f.ok || !strings.Contains(f.fix, "--state-dir") {
		t.Errorf("got %+v", f)
	}
}
