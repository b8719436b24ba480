package docker_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
)

// idle is a guest that waits for its end.
const idle = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 1 & wait $!; done\n"

// idling is a provider whose instances do nothing.
func idling(t *testing.T, change ...func(*docker.Options)) *docker.Provider {
	t.Helper()
	return real(t, append([]func(*docker.Options){func(o *docker.Options) { o.GuestProgram = program(t, idle) }}, change...)...)
}

// up makes and starts an instance.
func up(t *testing.T, p *docker.Provider, spec providers.Spec) providers.Instance {
	t.Helper()
	made, err := p.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	return made
}

// sh runs a script in a running instance by the engine's own means.
func sh(t *testing.T, e *client.Client, workspace, script string) string {
	t.Helper()
	run, err := e.ContainerExecCreate(t.Context(), "vendetta-"+workspace, container.ExecOptions{
		Cmd: []string{"sh", "-c", script}, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := e.ContainerExecAttach(t.Context(), run.ID, container.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var said bytes.Buffer
	if _, err := stdcopy.StdCopy(&said, &said, stream.Reader); err != nil {
		t.Fatal(err)
	}
	ended, err := e.ContainerExecInspect(t.Context(), run.ID)
	if err != nil || ended.ExitCode != 0 {
		t.Fatalf("%s: status %d, %v: %s", script, ended.ExitCode, err, said.String())
	}
	return strings.TrimSpace(said.String())
}

// objects are the names of all that the engine has of a workspace.
func objects(t *testing.T, e *client.Client, workspace string) []string {
	t.Helper()
	label := filters.NewArgs(filters.Arg("label", providers.LabelWorkspace+"="+workspace))
	containers, err := e.ContainerList(t.Context(), container.ListOptions{All: true, Filters: label})
	if err != nil {
		t.Fatal(err)
	}
	volumes, err := e.VolumeList(t.Context(), volume.ListOptions{Filters: label})
	if err != nil {
		t.Fatal(err)
	}
	images, err := e.ImageList(t.Context(), image.ListOptions{Filters: label})
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, c := range containers {
		found = append(found, "container"+c.Names[0])
	}
	for _, v := range volumes.Volumes {
		found = append(found, "volume/"+v.Name)
	}
	for _, i := range images {
		if len(i.RepoTags) == 0 {
			found = append(found, "image/none")
		}
		for _, tag := range i.RepoTags {
			found = append(found, "image/"+tag)
		}
	}
	slices.Sort(found)
	for i := range found {
		found[i] = strings.ReplaceAll(found[i], workspace, "ID")
	}
	return found
}

func wantObjects(t *testing.T, e *client.Client, workspace string, want ...string) {
	t.Helper()
	if got := objects(t, e, workspace); !slices.Equal(got, want) {
		t.Errorf("the engine has\n %s\nwant\n %s", strings.Join(got, "\n "), strings.Join(want, "\n "))
	}
}

func snapshot(t *testing.T, p *docker.Provider, workspace, name string) providers.Snapshot {
	t.Helper()
	s, err := p.Snapshot(t.Context(), workspace, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var instanceObjects = []string{"container/vendetta-ID", "volume/vendetta-ID-state", "volume/vendetta-ID-workspace"}

// What the contract's own test does not see: owners, links, limits, network and
// environment, and which objects there are at each moment.
func TestRestoreKeepsAll(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), idling(t)
	spec := providers.Spec{
		Workspace: id(), Name: "box", Generation: 7, Image: testbed.UserImage(t), Network: providers.NetworkNone,
		Resources: providers.Resources{CPUs: 1, MemoryBytes: 128 << 20, PIDs: 77},
	}
	made := up(t, p, spec)
	tell := `stat -c '%n %a %u:%g %h' /workspace /workspace/* /.vendetta/state/record /root/mine; readlink /workspace/link
		cat /workspace/file /root/mine; hostname; echo $` + testbed.ImageVariable + ` $` + providers.EnvGuestUser
	sh(t, e, spec.Workspace, `cd /workspace; echo text > file; ln file hard; ln -s /etc/passwd link; mkdir -p sticky; chmod 1777 sticky
		chown 12:34 file; chmod 4750 file; mkfifo pipe; touch -d 2001-02-03 old; echo r > /.vendetta/state/record; echo mine > /root/mine; chmod 600 /root/mine`)
	before := sh(t, e, spec.Workspace, tell)
	old, err := e.ContainerInspect(t.Context(), made.Name)
	if err != nil {
		t.Fatal(err)
	}

	kept := snapshot(t, p, spec.Workspace, "a")
	if kept.Bytes < 1000 || kept.Bytes > 1<<20 {
		t.Errorf("%d bytes", kept.Bytes)
	}
	all, err := p.Snapshots(t.Context(), spec.Workspace)
	if err != nil || len(all) != 1 || all[0] != kept {
		t.Errorf("listed %+v, %v, made %+v", all, err, kept)
	}
	snapshotObjects := []string{"image/vendetta-snapshot/ID:a", "volume/vendetta-ID-snapshot-a-state", "volume/vendetta-ID-snapshot-a-workspace"}
	wantObjects(t, e, spec.Workspace, slices.Sorted(slices.Values(append(slices.Clone(instanceObjects), snapshotObjects...)))...)

	sh(t, e, spec.Workspace, "rm -rf /workspace/*; echo other > /workspace/file; rm /root/mine; touch /root/other")
	if err := p.Pause(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	if err := p.Restore(t.Context(), spec.Workspace, "a"); err != nil {
		t.Fatal(err)
	}
	second := []string{"container/vendetta-ID", "volume/vendetta-ID-state-2", "volume/vendetta-ID-workspace-2"}
	wantObjects(t, e, spec.Workspace, slices.Sorted(slices.Values(append(slices.Clone(second), snapshotObjects...)))...)
	restored, err := p.Inspect(t.Context(), spec.Workspace)
	if err != nil || restored != made {
		t.Errorf("restored %+v, %v, made %+v", restored, err, made)
	}
	if err := p.Start(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	if after := sh(t, e, spec.Workspace, tell); after != before {
		t.Errorf("restored\n%s\nbefore\n%s", after, before)
	}
	sh(t, e, spec.Workspace, "test ! -e /root/other && test $(stat -c %Y /workspace/old) -lt 1000000000")
	c, err := e.ContainerInspect(t.Context(), made.Name)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := c.HostConfig, old.HostConfig; a.NanoCPUs != b.NanoCPUs || a.Memory != b.Memory || a.MemorySwap != b.MemorySwap ||
		*a.PidsLimit != *b.PidsLimit || a.NetworkMode != b.NetworkMode || !slices.Equal(a.CapAdd, b.CapAdd) || !slices.Equal(a.SecurityOpt, b.SecurityOpt) {
		t.Errorf("restored %+v, before %+v", a, b)
	}

	// The instance lives on its snapshot; that can go all the same, and again come back.
	if err := p.RemoveSnapshot(t.Context(), spec.Workspace, "a"); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, e, spec.Workspace, "container/vendetta-ID", "image/vendetta-root/ID:latest", "volume/vendetta-ID-state-2", "volume/vendetta-ID-workspace-2")
	snapshot(t, p, spec.Workspace, "b")
	if err := p.Restore(t.Context(), spec.Workspace, "b"); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, e, spec.Workspace, "container/vendetta-ID", "image/vendetta-snapshot/ID:b", "volume/vendetta-ID-snapshot-b-state",
		"volume/vendetta-ID-snapshot-b-workspace", "volume/vendetta-ID-state", "volume/vendetta-ID-workspace")
	if err := p.Start(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	if after := sh(t, e, spec.Workspace, tell); after != before {
		t.Errorf("restored\n%s\nbefore\n%s", after, before)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, e, spec.Workspace)
}

// leave makes an idle container as a process does that dies at its work.
func leave(t *testing.T, e *client.Client, server, workspace, end string, volumes ...string) {
	t.Helper()
	labels := map[string]string{providers.LabelServer: server, providers.LabelWorkspace: workspace, providers.LabelGeneration: "1"}
	host := &container.HostConfig{NetworkMode: "none"}
	for i, v := range volumes {
		host.Mounts = append(host.Mounts, mount.Mount{
			Type: mount.TypeVolume, Source: v, Target: "/v" + string(rune('0'+i)), VolumeOptions: &mount.VolumeOptions{Labels: labels},
		})
	}
	_, err := e.ContainerCreate(t.Context(), &container.Config{Image: testbed.Image(t), Cmd: []string{"true"}, Labels: labels}, host, nil, nil, "vendetta-"+workspace+end)
	if err != nil {
		t.Fatal(err)
	}
}

func TestWorkThatWasCutOff(t *testing.T) {
	testbed.Wants(t, "docker")
	e := engine(t)
	var server string
	p := idling(t, func(o *docker.Options) { server = o.ServerID })
	spec := providers.Spec{Workspace: id(), Name: "box", Generation: 1, Image: testbed.Image(t)}
	name := "vendetta-" + spec.Workspace
	up(t, p, spec)
	sh(t, e, spec.Workspace, "echo kept > /workspace/file")
	snapshot(t, p, spec.Workspace, "whole")
	kept := []string{"image/vendetta-snapshot/ID:whole", "volume/vendetta-ID-snapshot-whole-state", "volume/vendetta-ID-snapshot-whole-workspace"}
	with := func(more ...string) []string {
		return slices.Sorted(slices.Values(append(slices.Clone(kept), more...)))
	}

	// A snapshot.
	leave(t, e, server, spec.Workspace, "-target", name+"-snapshot-half-workspace", name+"-snapshot-half-state")
	leave(t, e, server, spec.Workspace, "-source", name+"-workspace")
	if all, err := p.Snapshots(t.Context(), spec.Workspace); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := p.List(t.Context()); err != nil || len(all) != 1 || all[0].State != providers.StateRunning {
		t.Errorf("%+v, %v", all, err)
	}
	snapshot(t, p, spec.Workspace, "next")
	if err := p.RemoveSnapshot(t.Context(), spec.Workspace, "next"); err != nil {
		t.Error(err)
	}
	wantObjects(t, e, spec.Workspace, with(instanceObjects...)...)

	// A restore, before the new instance was there: the old one takes its place again.
	rename := func(from, to string) {
		t.Helper()
		if err := e.ContainerRename(t.Context(), name+from, name+to); err != nil {
			t.Fatal(err)
		}
	}
	rename("", "-old")
	leave(t, e, server, spec.Workspace, "-target", name+"-workspace-2", name+"-state-2")
	if i, err := p.Inspect(t.Context(), spec.Workspace); err != nil || i.State != providers.StateBroken || i.Message == "" {
		t.Errorf("%+v, %v", i, err)
	}
	if all, err := p.List(t.Context()); err != nil || len(all) != 1 || all[0].State != providers.StateBroken || all[0].Name != name {
		t.Errorf("%+v, %v", all, err)
	}
	if err := p.Start(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, e, spec.Workspace, "cat /workspace/file"); got != "kept" {
		t.Errorf("holds %q", got)
	}
	wantObjects(t, e, spec.Workspace, with(instanceObjects...)...)

	// A restore, after it: what it replaced goes.
	leave(t, e, server, spec.Workspace, "-old", name+"-workspace-2", name+"-state-2")
	if made, err := p.Create(t.Context(), spec); err != nil || made.State != providers.StateRunning {
		t.Errorf("%+v, %v", made, err)
	}
	if err := p.Restore(t.Context(), spec.Workspace, "whole"); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, e, spec.Workspace, with("container/vendetta-ID", "volume/vendetta-ID-state-2", "volume/vendetta-ID-workspace-2")...)

	// A restore whose containers were removed by hand: the earlier pair is whole.
	if err := p.Destroy(t.Context(), spec.Workspace, false); err != nil {
		t.Fatal(err)
	}
	leave(t, e, server, spec.Workspace, "-source", name+"-workspace")
	if err := p.Destroy(t.Context(), spec.Workspace, false); err != nil {
		t.Fatal(err)
	}
	up(t, p, spec)
	if got := sh(t, e, spec.Workspace, "ls /workspace"); got != "" && got != "file" {
		t.Errorf("holds %q", got)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, e, spec.Workspace)

	// A fork.
	fork := id()
	leave(t, e, server, fork, "-target", "vendetta-"+fork+"-workspace", "vendetta-"+fork+"-state")
	if all, err := p.List(t.Context()); err != nil || len(all) != 1 || all[0].State != providers.StateBroken {
		t.Errorf("%+v, %v", all, err)
	}
	if err := p.Destroy(t.Context(), fork, false); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, e, fork)
}

// A disk that would be too full stops a copy, and all is as before.
func TestSnapshotLeavesRoom(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), idling(t, func(o *docker.Options) { o.KeepFree = 1 << 60 })
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	up(t, p, spec)
	_, err := p.Snapshot(t.Context(), spec.Workspace, "a")
	want(t, err, providers.ErrExhausted, "MiB left", "docker system df")
	_, err = p.Fork(t.Context(), spec.Workspace, providers.Spec{Workspace: id()})
	want(t, err, providers.ErrExhausted, "MiB left")
	if i, err := p.Inspect(t.Context(), spec.Workspace); err != nil || i.State != providers.StateRunning {
		t.Errorf("%+v, %v", i, err)
	}
	wantObjects(t, e, spec.Workspace, instanceObjects...)
}

// A copy that is cancelled while it runs ends at once, and all is as before.
func TestSnapshotCancelledInTheMiddle(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), idling(t)
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	up(t, p, spec)
	// Holes, which the copy has to fill: far more than it gets to.
	sh(t, e, spec.Workspace, "dd if=/dev/null of=/workspace/holes bs=1M seek=60000 2>&1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	paused := make(chan struct{})
	watch := time.NewTicker(5 * time.Millisecond)
	defer watch.Stop()
	go func() {
		defer close(paused)
		for range watch.C {
			if i, err := p.Inspect(t.Context(), spec.Workspace); err != nil || i.State == providers.StatePaused {
				cancel()
				return
			}
		}
	}()
	_, err := p.Snapshot(ctx, spec.Workspace, "a")
	want(t, err, nil, "snapshot workspace "+spec.Workspace+" as a", "cancelled")
	<-paused
	if i, err := p.Inspect(t.Context(), spec.Workspace); err != nil || i.State != providers.StateRunning {
		t.Errorf("%+v, %v", i, err)
	}
	wantObjects(t, e, spec.Workspace, instanceObjects...)
}

func TestForkToAVolumeThatIsThere(t *testing.T) {
	testbed.Wants(t, "docker")
	p := idling(t)
	origin := providers.Spec{Workspace: id(), Name: "origin", Image: testbed.Image(t), Resources: providers.Resources{CPUs: 1, MemoryBytes: 64 << 20}}
	taken := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	for _, spec := range []providers.Spec{origin, taken} {
		if _, err := p.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Destroy(t.Context(), taken.Workspace, false); err != nil {
		t.Fatal(err)
	}
	_, err := p.Fork(t.Context(), origin.Workspace, taken)
	want(t, err, providers.ErrInvalid, "has a volume already", "new workspace")
	_, err = p.Fork(t.Context(), origin.Workspace, origin)
	want(t, err, providers.ErrInvalid, "its own fork")
	// What the spec names counts, the rest is the origin's.
	fork := providers.Spec{Workspace: id(), Resources: providers.Resources{MemoryBytes: 96 << 20, PIDs: 50}}
	made, err := p.Fork(t.Context(), origin.Workspace, fork)
	if err != nil {
		t.Fatal(err)
	}
	c, err := engine(t).ContainerInspect(t.Context(), made.Name)
	if err != nil || c.HostConfig.NanoCPUs != 1e9 || c.HostConfig.Memory != 96<<20 || *c.HostConfig.PidsLimit != 50 || c.Config.Hostname != "origin" {
		t.Errorf("%+v, %v", c.HostConfig, err)
	}
	for _, w := range []string{taken.Workspace, made.Workspace} {
		if err := p.Destroy(t.Context(), w, true); err != nil {
			t.Error(err)
		}
	}
}

func TestResizeBelowWhatIsUsed(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), idling(t)
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t), Resources: providers.Resources{MemoryBytes: 128 << 20}}
	made := up(t, p, spec)
	// A file in memory counts as used.
	sh(t, e, spec.Workspace, "dd if=/dev/zero of=/dev/shm/fill bs=1M count=40 2>&1")
	_, err := p.Resize(t.Context(), spec.Workspace, providers.Resources{MemoryBytes: 16 << 20, PIDs: 99})
	want(t, err, providers.ErrInvalid, "uses", "more than the 16 MiB asked for", "end processes")
	c, err := e.ContainerInspect(t.Context(), made.Name)
	if err != nil || c.HostConfig.Memory != 128<<20 || *c.HostConfig.PidsLimit == 99 {
		t.Errorf("%+v, %v", c.HostConfig.Resources, err)
	}
	for _, r := range []providers.Resources{{}, {MemoryBytes: 96 << 20}, {CPUs: 0.5, PIDs: 99}} {
		if note, err := p.Resize(t.Context(), spec.Workspace, r); err != nil || note != "" {
			t.Errorf("%q, %v", note, err)
		}
	}
	c, err = e.ContainerInspect(t.Context(), made.Name)
	if h := c.HostConfig; err != nil || h.Memory != 96<<20 || h.MemorySwap != 96<<20 || h.NanoCPUs != 5e8 || *h.PidsLimit != 99 {
		t.Errorf("%+v, %v", c.HostConfig.Resources, err)
	}
	for r, kind := range map[providers.Resources]error{
		{CPUs: 1e6}: providers.ErrInvalid, {CPUs: -1}: providers.ErrInvalid, {MemoryBytes: 1}: providers.ErrInvalid, {DiskBytes: 1}: providers.ErrUnsupported,
	} {
		_, err := p.Resize(t.Context(), spec.Workspace, r)
		want(t, err, kind)
	}
	_, err = p.Resize(t.Context(), id(), providers.Resources{PIDs: 9})
	want(t, err, providers.ErrNotFound)
}

// A guest that uses more processor time than it may is held back by the kernel.
func TestLimitOfProcessors(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), idling(t)
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t), Resources: providers.Resources{CPUs: 0.2}}
	up(t, p, spec)
	sh(t, e, spec.Workspace, `while :; do :; done & burn=$!; file=/sys/fs/cgroup/cpu.stat; test -e $file || file=/sys/fs/cgroup/cpu/cpu.stat
		until [ "$(awk '$1 == "nr_throttled" {print $2}' $file)" -gt 2 ]; do :; done; kill $burn`)
}

func TestConsoleIsBounded(t *testing.T) {
	testbed.Wants(t, "docker")
	p := real(t, func(o *docker.Options) {
		o.GuestProgram = program(t, "#!/bin/sh\ni=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i of a guest that says a great deal; done; echo the end\n")
	})
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	up(t, p, spec)
	said := ""
	for again := time.NewTicker(10 * time.Millisecond); !strings.Contains(said, "end"); <-again.C {
		said = p.Console(t.Context(), spec.Workspace)
	}
	if len(said) > 4<<10 || len(said) < 2<<10 || !strings.HasPrefix(said, "line 2") || !strings.HasSuffix(said, "deal\nthe end") {
		t.Errorf("%d bytes: %.40q ... %q", len(said), said, said[max(0, len(said)-20):])
	}
	if said := p.Console(t.Context(), id()); said != "" {
		t.Errorf("%q", said)
	}
}

func TestPausedInstance(t *testing.T) {
	testbed.Wants(t, "docker")
	p := idling(t)
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	want(t, p.Pause(t.Context(), spec.Workspace), providers.ErrNotFound, "is not running")
	want(t, p.Resume(t.Context(), spec.Workspace), providers.ErrNotFound, "is not running")
	pause := func() {
		t.Helper()
		if err := p.Start(t.Context(), spec.Workspace); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := p.Pause(t.Context(), spec.Workspace); err != nil {
				t.Fatal(err)
			}
		}
		if i, err := p.Inspect(t.Context(), spec.Workspace); err != nil || i.State != providers.StatePaused {
			t.Fatalf("%+v, %v", i, err)
		}
	}
	pause()
	if usage, err := p.Usage(t.Context(), spec.Workspace); err != nil || usage.MemoryBytes <= 0 {
		t.Errorf("%+v, %v", usage, err)
	}
	_, err := p.Connect(t.Context(), spec.Workspace)
	want(t, err, nil, "is paused", "resume it")
	// A guest that was paused still ends by itself.
	if err := p.Stop(t.Context(), spec.Workspace, time.Minute); err != nil {
		t.Fatal(err)
	}
	if i, err := p.Inspect(t.Context(), spec.Workspace); err != nil || i.State != providers.StateStopped || !strings.Contains(i.Message, "status 0") {
		t.Errorf("%+v, %v", i, err)
	}
	pause()
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, engine(t), spec.Workspace)
}
