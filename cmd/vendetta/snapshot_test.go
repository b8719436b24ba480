package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestSnapshotCommands(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	if r := s.ok("workspace snapshot list w"); !strings.Contains(r.err, "vendetta workspace snapshot create w NAME") {
		t.Errorf("an empty list says %q", r.err)
	}
	s.ok("workspace snapshot create w clean", "clean\n")
	s.ok("workspace snapshot create w later --json", `"verb": "snapshot-create"`, `"state": "OPERATION_STATE_SUCCEEDED"`)
	s.fails(4, "workspace snapshot create w clean", "it has a snapshot clean")
	s.ok("ws snapshot ls w", "NAME", "clean", "5.0 MiB", "no", "later", "yes")
	if r := s.ok("workspace snapshot list w -q"); r.out != "clean\nlater\n" {
		t.Errorf("quiet: %q", r.out)
	}
	s.ok("workspace snapshot list w -o yaml", "name: clean")
	if r := s.ok("workspace snapshot restore w clean", "w\n"); !strings.Contains(r.err, "what came after snapshot clean of w is lost") {
		t.Errorf("restore said %q", r.err)
	}
	if r := s.ok("workspace snapshot restore w clean -q"); r.err != "" {
		t.Errorf("quiet restore said %q", r.err)
	}
	s.fails(3, "workspace snapshot restore w nothere", "next: vendetta workspace snapshot list w")
	s.ok("workspace snapshot rm w clean", "clean\n")
	s.fails(3, "workspace snapshot rm w clean")
	s.fails(2, "workspace snapshot create w", "takes 2 argument(s), got 1", "next: vendetta workspace snapshot create WORKSPACE NAME")
	s.fails(3, "workspace snapshot list nothere")
}

func TestForkCommand(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	if r := s.ok("workspace fork w w2", "w2\n"); !strings.Contains(r.err, "workspace w2 is running on build1 (docker)") {
		t.Errorf("said %q", r.err)
	}
	s.fails(4, "workspace fork w w2", "workspace w2 exists")
	s.fails(3, "workspace fork nothere w3")
	s.nodes.breaks("GetWorkspace")
	s.fails(1, "workspace fork w w3")
	s.nodes.breaks("WaitOperation")
	s.server.Lock()
	s.server.Hold = true
	s.server.Unlock()
	s.fails(1, "workspace fork w w4")
}

func TestPauseCommands(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	s.fails(5, "workspace resume w", "it is not paused")
	s.ok("workspace pause w", "w\n")
	s.ok("workspace status w", "paused")
	s.fails(5, "workspace stats w", "not running")
	s.ok("workspace resume w", "w\n")
	s.ok("workspace status w", "running")
}

func TestResizeCommand(t *testing.T) {
	a := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, func(string) string { return "" })
	var got resizeOptions
	cmd := newWorkspaceResize(a, func(_ context.Context, _ *app, o resizeOptions) error { got = o; return nil })
	cmd.SetArgs(strings.Fields("w --cpus 1.5 --memory 2G --disk 10G --pids 100"))
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if want := (resizeOptions{name: "w", cpus: 1.5, memory: "2G", disk: "10G", pids: 100}); got != want {
		t.Errorf("got %+v", got)
	}
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	if r := s.ok("workspace resize w --cpus 2 --memory 1G --pids 64", "w\n"); !strings.Contains(r.err, "in effect at the next start") {
		t.Errorf("said %q", r.err)
	}
	s.ok("workspace status w", "cpus", "1.0 GiB", "64")
	s.fails(1, "workspace resize w --disk 10G", "docker cannot do that on this node; qemu can")
	s.fails(2, "workspace resize w --memory much", `size "much"`)
	s.fails(2, "workspace resize w --disk much", `size "much"`)
}

func TestStatsCommand(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	s.ok("workspace stats w --interval 1ms", "NAME", "CPU TIME", "w", "1.0s", "64.0 MiB", "%")
	s.ok("workspace resize w --cpus 2 --memory 1G")
	s.ok("workspace stats w --interval 1ms", "200%", "1.0 GiB")
	s.ok("workspace stats w --interval 1ms --json", `"cpu_percent": `, `"memory_bytes": "67108864"`, `"disk_bytes": "-1"`)
	s.fails(2, "workspace stats w --interval 0s", "above 0")
	s.fails(3, "workspace stats nothere")

	ctx, cancel := context.WithCancel(context.Background())
	a := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, func(string) string { return "" })
	a.connect = s.connect
	done := make(chan error)
	before := s.server.Count("GetWorkspaceStats")
	go func() { done <- runWorkspaceStats(ctx, a, statsOptions{name: "w", interval: time.Hour}) }()
	s.await("the first measurement", func() bool { return s.server.Count("GetWorkspaceStats") > before })
	cancel()
	if err := <-done; err == nil {
		t.Error("an interrupted one succeeded")
	}
}

func TestNodeStatusShowsCapabilitiesAndOrphans(t *testing.T) {
	s := newStage(t)
	n := s.server.AddNode("build1")
	n.Report.Providers[0].Capabilities = []string{"fork", "snapshot"}
	n.Report.Orphans = []*vendettav1.Orphan{{
		Provider: "docker", WorkspaceId: "abc", Instance: "vendetta-abc",
		FoundAt: timestamppb.New(time.Now().Add(-3 * time.Hour)), RemoveAt: timestamppb.New(time.Now().Add(21*time.Hour + time.Minute)),
	}}
	s.ok("node status build1", "can: fork, snapshot", "vendetta-abc of docker belongs to no workspace; found 3h ago, removed in 21h", "it goes by itself")
	s.ok("node status build1 --json", `"workspace_id": "abc"`)
}

func TestListHasTheFirstLineOfAMessage(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	s.server.SetState("w", vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED, "its guest did not answer; its console ends with:\nkernel panic")
	if r := s.ok("workspace list", "its console ends with:"); strings.Contains(r.out, "panic") {
		t.Errorf("list:\n%s", r.out)
	}
	s.ok("workspace status w", "kernel panic")
}

func TestStatusShowsWhatTheImageWasPinnedTo(t *testing.T) {
	text := ""
	for _, row := range workspaceTable(&vendettav1.Workspace{Name: "w", Spec: &vendettav1.WorkspaceSpec{
		Image: "debian:12", ImageDigest: "sha256:abc", Privileged: true, Resources: &vendettav1.Resources{DiskBytes: 1 << 30, Pids: 3},
	}}).rows {
		text += strings.Join(row, " ") + "\n"
	}
	for _, want := range []string{"digest sha256:abc\n", "disk 1.0 GiB\n", "pids 3\n", "privileged its root"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
}
