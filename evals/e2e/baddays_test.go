//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// counted is a command that writes a line a second, notes its start in a file of
// the workspace, and ends with a code of its own.
func counted(seconds int) []string {
	return []string{"sh", "-c", fmt.Sprintf("echo started >>/workspace/starts; for i in $(seq 1 %d); do echo line $i; sleep 1; done; exit 5", seconds)}
}

func lines(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

// whileRunning starts a command with exec, breaks something once its first lines
// are there, and checks that nothing was lost and nothing started twice.
func whileRunning(t *testing.T, b *bed, seconds int, during func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	output := newLineLog()
	cmd := b.command(ctx, append([]string{"workspace", "exec", "w", "--"}, counted(seconds)...)...)
	cmd.Stdout = output
	stderr := newLineLog()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.await("the first lines", 20*time.Second, func() bool { return output.count() >= 2 })
	during()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit code %d, the command's own is 5; stderr: %s", code, stderr)
	}
	if got := output.String(); got != lines(seconds) {
		t.Errorf("the output is not complete:\n%s", got)
	}
	if got := b.run("workspace", "exec", "w", "--", "cat", "/workspace/starts"); got != "started\n" {
		t.Errorf("the command was started %d times", strings.Count(got, "started"))
	}
	id := processOf(t, b)
	if got := b.run("workspace", "logs", "w", id); got != lines(seconds) {
		t.Errorf("the output read again is not complete:\n%s", got)
	}
}

// processOf is the id of the counted command in the list of processes.
func processOf(t *testing.T, b *bed) string {
	t.Helper()
	for _, line := range strings.Split(b.run("workspace", "ps", "-a", "w"), "\n") {
		if strings.Contains(line, "echo started") {
			return strings.Fields(line)[0]
		}
	}
	t.Fatal("the command is not in the list of processes")
	return ""
}

// agentPIDs are the node agent and its supervisor of a state folder, the
// supervisor first; found by their command lines, ended by their ids.
func agentPIDs(t *testing.T, state string) (supervisor, agent int) {
	t.Helper()
	for _, p := range processes(t) {
		if !strings.Contains(p.args, state) {
			continue
		}
		switch {
		case strings.Contains(p.args, "nodeagent\x00supervise"):
			supervisor = p.pid
		case strings.Contains(p.args, "nodeagent\x00run"):
			agent = p.pid
		}
	}
	if supervisor == 0 || agent == 0 {
		t.Fatalf("no node agent of %s: supervisor %d, agent %d", state, supervisor, agent)
	}
	return supervisor, agent
}

type proc struct {
	pid  int
	args string
}

func processes(t *testing.T) []proc {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var list []proc
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(args) == 0 {
			continue // ended meanwhile, or a kernel thread
		}
		list = append(list, proc{pid, string(args)})
	}
	return list
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func serverPID(t *testing.T, b *bed) int {
	t.Helper()
	for _, line := range strings.Split(b.run("server", "status"), "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "pid" {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no pid in the server's status")
	return 0
}

// onEach runs a test on a native and on a Docker workspace of a node over SSH.
func onEach(t *testing.T, test func(t *testing.T, b *bed, r *remote)) {
	for _, provider := range []string{"native", "docker"} {
		t.Run(provider, func(t *testing.T) {
			testbed.Wants(t, provider)
			b := newBed(t, nil)
			env, create := map[string]string{}, []string{"workspace", "create", "w", "--provider", provider}
			if provider == "docker" {
				env["DOCKER_HOST"] = testbed.Docker(t)
				create = append(create, "--image", testbed.Image(t))
			}
			r := b.newRemote(nil, "127.0.0.1", env)
			b.add("build1", r)
			b.run(create...)
			test(t, b, r)
		})
	}
}

func TestNodeAgentIsKilledDuringACommand(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		whileRunning(t, b, 12, func() {
			_, agent := agentPIDs(t, r.state)
			kill(t, agent)
		})
	})
}

// A paused workspace is paused for the agent that comes after a crash, too, and
// goes on where it was.
func TestNodeAgentIsKilledWhilePaused(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		b.run("workspace", "exec", "-d", "w", "--", "sh", "-c", "while :; do echo tick >>/workspace/ticks; sleep 0.1; done")
		b.run("workspace", "pause", "w")
		_, agent := agentPIDs(t, r.state)
		kill(t, agent)
		b.await("the agent's return", 30*time.Second, func() bool {
			return strings.Contains(b.run("workspace", "list"), "paused") && b.try("node", "test", "build1").code == 0
		})
		b.refuse([]string{"paused", "vendetta workspace resume w"}, "workspace", "exec", "w", "--", "true")
		b.run("workspace", "resume", "w")
		if got := b.run("workspace", "ps", "w"); !strings.Contains(got, "tick") {
			t.Errorf("the process is gone:\n%s", got)
		}
		ticks := func() string { return b.run("workspace", "exec", "w", "--", "wc", "-l", "/workspace/ticks") }
		first := ticks()
		b.await("more ticks", 20*time.Second, func() bool { return ticks() != first })
	})
}

// A snapshot that the agent is killed in the middle of is there once when it is
// back, and whole.
func TestNodeAgentIsKilledDuringASnapshot(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		b.run("workspace", "exec", "w", "--", "sh", "-c", "dd if=/dev/urandom of=/workspace/big bs=1M count=200 && md5sum /workspace/big >/workspace/sum")
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := b.command(ctx, "workspace", "snapshot", "create", "w", "whole")
		stderr := newLineLog()
		cmd.Stderr = stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		b.await("the snapshot's beginning", 30*time.Second, func() bool { return journaled(t, r.state, "whole") })
		_, agent := agentPIDs(t, r.state)
		kill(t, agent)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		if got := b.run("workspace", "snapshot", "list", "w", "-q"); got != "whole\n" {
			t.Errorf("there are %q", got)
		}
		b.run("workspace", "exec", "w", "--", "rm", "/workspace/big")
		b.run("workspace", "snapshot", "restore", "w", "whole")
		b.run("workspace", "exec", "w", "--", "md5sum", "-c", "/workspace/sum")
	})
}

// journaled tells whether a node agent of a state folder has written down an
// operation on a snapshot, whether or not it has ended.
func journaled(t *testing.T, state, snapshot string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(state, "agent", "journal", "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && (strings.Contains(string(data), snapshot) || strings.Contains(string(data), `"generation":"2"`)) {
			return true
		}
	}
	return false
}

func TestServerIsKilledDuringACommand(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		whileRunning(t, b, 12, func() {
			kill(t, serverPID(t, b))
			b.run("server", "start")
		})
	})
}

func TestSSHConnectionIsCutDuringACommand(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		whileRunning(t, b, 12, func() { r.sshd.Disconnect() })
	})
}

// A server that is killed while nobody looks finds its nodes and workspaces again.
func TestServerRemembersAfterAKill(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		b.run("workspace", "exec", "-d", "w", "--", "sleep", "300")
		kill(t, serverPID(t, b))
		if got := b.run("workspace", "exec", "w", "--", "echo", "still here"); got != "still here\n" {
			t.Errorf("exec after the kill: %q", got)
		}
		if got := b.run("workspace", "ps", "w"); !strings.Contains(got, "sleep 300") {
			t.Errorf("the process is gone:\n%s", got)
		}
	})
}

// The node's machine is rebooted: agent, engine and containers are gone and come
// back. Desired workspaces return with their files; what ran reads lost, with its
// output.
func TestNodeIsRebooted(t *testing.T) {
	t.Run("docker", func(t *testing.T) {
		testbed.Wants(t, "docker")
		engine := newEngine(t)
		b := newBed(t, nil)
		r := b.newRemote(nil, "127.0.0.1", map[string]string{"DOCKER_HOST": engine.host})
		b.add("build1", r)
		b.run("workspace", "create", "w", "--provider", "docker", "--image", engine.image)
		rebootAndCheck(t, b, r, engine.stop, engine.start)
	})
	t.Run("native", func(t *testing.T) {
		testbed.Wants(t, "native")
		b := newBed(t, nil)
		r := b.newRemote(nil, "127.0.0.1", nil)
		b.add("build1", r)
		b.run("workspace", "create", "w", "--provider", "native")
		rebootAndCheck(t, b, r, func() {
			for _, p := range processes(t) {
				if strings.Contains(p.args, "vendetta-guest") && ownedBy(p.pid, r.state) {
					kill(t, p.pid)
				}
			}
		}, func() {})
	})
}

// ownedBy tells whether a native guest's workspace lies below the state folder.
func ownedBy(pid int, state string) bool {
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return strings.Contains(string(mounts), state)
}

func rebootAndCheck(t *testing.T, b *bed, r *remote, down, up func()) {
	t.Helper()
	b.run("workspace", "exec", "w", "--", "sh", "-c", "echo kept >/workspace/file")
	b.run("workspace", "exec", "-d", "w", "--", "sh", "-c", "echo before the reboot; sleep 600")
	var id string
	b.await("the process", 10*time.Second, func() bool {
		for _, line := range strings.Split(b.run("workspace", "ps", "w"), "\n") {
			if strings.Contains(line, "before the reboot") {
				id = strings.Fields(line)[0]
			}
		}
		return id != "" && b.run("workspace", "logs", "w", id) != ""
	})
	// Down: first the supervisor, which would start the agent again.
	supervisor, agent := agentPIDs(t, r.state)
	kill(t, supervisor)
	kill(t, agent)
	r.sshd.Stop()
	down()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	up()
	if err := r.sshd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	b.await("the workspace after the reboot", 80*time.Second, func() bool {
		return b.try("workspace", "exec", "w", "--", "true").code == 0
	})
	if got := b.run("workspace", "exec", "w", "--", "cat", "/workspace/file"); got != "kept\n" {
		t.Errorf("the file: %q", got)
	}
	if got := b.run("workspace", "ps", "-a", "w"); !strings.Contains(got, "lost") {
		t.Errorf("the earlier process is not lost:\n%s", got)
	}
	if got := b.run("workspace", "logs", "w", id); got != "before the reboot\n" {
		t.Errorf("the earlier output: %q", got)
	}
}

// engine is a Docker engine of the test's own, which can be stopped and started.
type engine struct {
	t     *testing.T
	dir   string
	host  string
	image string
	where *testbed.Namespace
	cmd   *exec.Cmd
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "vd")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, dir: dir, host: "unix://" + filepath.Join(dir, "docker.sock"), image: "vendetta-test/reboot:1"}
	network := testbed.NewNetwork()
	if e.where, err = network.Add(t.Context(), "engine"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.stop()
		if err := network.Close(context.Background()); err != nil {
			t.Errorf("remove the engine's network: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Logf("remove the engine: %v", err)
		}
	})
	e.start()
	// The image comes over from the engine that the other tests use.
	save := exec.Command("docker", "-H", testbed.Docker(t), "save", testbed.Image(t))
	load := exec.Command("docker", "-H", e.host, "load")
	pipe, err := save.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	load.Stdin = pipe
	if err := save.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("load the image: %v\n%s", err, out)
	}
	if err := save.Wait(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("docker", "-H", e.host, "tag", testbed.Image(t), e.image).CombinedOutput(); err != nil {
		t.Fatalf("tag the image: %v\n%s", err, out)
	}
	return e
}

// start starts the engine in its own network namespace: two engines in one would
// take each other's bridge away.
func (e *engine) start() {
	e.t.Helper()
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	// Unlike `ip netns exec`, nsenter leaves /sys with its cgroups as it is.
	e.cmd = exec.Command("nsenter", "--net=/run/netns/"+e.where.Name, "dockerd",
		"--host", e.host, "--data-root", filepath.Join(e.dir, "data"),
		"--exec-root", filepath.Join(e.dir, "exec"), "--pidfile", filepath.Join(e.dir, "pid"))
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for exec.Command("docker", "-H", e.host, "version").Run() != nil {
		if time.Now().After(deadline) {
			data, _ := os.ReadFile(filepath.Join(e.dir, "log"))
			e.t.Fatalf("the engine does not answer:\n%s", tailOf(string(data), 20))
		}
		<-tick.C
	}
}

// stop ends the engine, which takes its containers down with it.
func (e *engine) stop() {
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	_ = e.cmd.Wait()
	e.cmd = nil
}

func TestHostKeyIsChanged(t *testing.T) {
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	r := b.newRemote(nil, "127.0.0.1", nil)
	b.add("build1", r)
	b.run("workspace", "create", "w", "--provider", "native")
	port := r.sshd.Port
	r.sshd.Stop()
	// Another machine, or somebody in between, answers at the address.
	impostor := b.newRemoteAt(nil, "127.0.0.1", port, nil)
	b.await("the refusal", 60*time.Second, func() bool {
		return strings.Contains(b.run("node", "status", "build1"), "key")
	})
	b.refuse([]string{"build1"}, "workspace", "exec", "w", "--", "true")
	if log := impostor.sshd.Log(); strings.Contains(log, "Accepted") {
		t.Error("the impostor got a login")
	}
	impostor.sshd.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.sshd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	b.await("the real machine", 60*time.Second, func() bool {
		return b.try("workspace", "exec", "w", "--", "true").code == 0
	})
}

func TestWrongKey(t *testing.T) {
	b := newBed(t, nil)
	r := b.newRemote(nil, "127.0.0.1", nil)
	if err := os.WriteFile(r.sshd.AuthorizedKeys, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.refuse([]string{"127.0.0.1", "next:"}, "node", "add", "build1", r.sshd.User+"@127.0.0.1", "--port", fmt.Sprint(r.sshd.Port), "--host-key", r.sshd.Fingerprint)
	b.refuse(nil, "node", "status", "build1")
	b.refuse([]string{r.sshd.Fingerprint, "not accepted", "next:"}, "node", "add", "build1", r.sshd.User+"@127.0.0.1", "--port", fmt.Sprint(r.sshd.Port),
		"--host-key", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
}

func TestNodeIsUnreachable(t *testing.T) {
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	r := b.newRemote(nil, "127.0.0.1", nil)
	b.add("build1", r)
	b.run("workspace", "create", "w", "--provider", "native")
	r.sshd.Stop()
	b.await("lost", 60*time.Second, func() bool { return strings.Contains(b.run("node", "list"), "lost") })
	if got := b.run("workspace", "list"); !strings.Contains(got, "unknown") {
		t.Errorf("the workspace of a lost node:\n%s", got)
	}
	b.refuse([]string{"build1", "next:"}, "workspace", "exec", "w", "--", "true")
	b.refuse([]string{"build1"}, "workspace", "create", "x", "--node", "build1")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.sshd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	b.await("back", 60*time.Second, func() bool { return b.try("workspace", "exec", "w", "--", "true").code == 0 })
}

func TestDockerDoesNotRunOnTheNode(t *testing.T) {
	b := newBed(t, nil)
	r := b.newRemote(nil, "127.0.0.1", map[string]string{"DOCKER_HOST": "unix:///nonexistent/docker.sock"})
	b.add("build1", r)
	b.refuse([]string{"docker", "next:"}, "workspace", "create", "w", "--provider", "docker", "--image", "debian:12")
	b.refuse(nil, "workspace", "status", "w")
	if got := b.run("node", "status", "build1"); !strings.Contains(got, "fix:") {
		t.Errorf("the node's status names no fix:\n%s", got)
	}
}

// The node's disk is full: a small file system that the test fills.
func TestDiskIsFullOnTheNode(t *testing.T) {
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	disk, err := os.MkdirTemp("", "vf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(disk) })
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=192m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	r := b.newRemote(nil, "127.0.0.1", map[string]string{"VENDETTA_STATE_DIR": filepath.Join(disk, "s")})
	r.state = filepath.Join(disk, "s")
	b.add("build1", r)
	b.run("workspace", "create", "w", "--provider", "native")
	o := b.try("workspace", "exec", "w", "--", "dd", "if=/dev/zero", "of=/workspace/big", "bs=1M")
	if o.code != 1 {
		t.Fatalf("the disk is not full: code %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	big := filepath.Join(b.home, "big")
	if err := os.WriteFile(big, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b.refuse([]string{"disk is full", "next:"}, "workspace", "cp", big, "w:copied")
	b.refuse(nil, "workspace", "exec", "w", "--", "test", "-e", "/workspace/copied")
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 192<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	b.refuse([]string{"x", "no space left", "next:"}, "workspace", "create", "x", "--provider", "native")
	b.run("workspace", "rm", "x", "--force")
	if got := b.run("workspace", "list", "-q"); got != "w\n" {
		t.Errorf("left behind:\n%s", got)
	}
	// A command can make room, and then everything works again.
	b.run("workspace", "exec", "w", "--", "rm", "/workspace/big")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b.run("workspace", "cp", big, "w:copied")
}

// A reader stops reading 1 GiB of output: no process of ours grows by more than
// 64 MiB, and everything arrives when it reads on.
func TestReaderStopsAtOneGiB(t *testing.T) {
	onEach(t, func(t *testing.T, b *bed, r *remote) {
		ours := func() map[int]int64 {
			rss := map[int]int64{}
			supervisor, agent := agentPIDs(t, r.state)
			for _, pid := range append(guestPIDs(t), supervisor, agent, serverPID(t, b)) {
				rss[pid] = residentBytes(pid)
			}
			return rss
		}
		before := ours()
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		cmd := b.command(ctx, "workspace", "exec", "w", "--", "sh", "-c", "head -c 1073741824 /dev/zero; echo end >/workspace/end")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Nobody reads; the command goes on into the spool until it has ended.
		b.await("the command's end", 3*time.Minute, func() bool {
			return b.try("workspace", "exec", "w", "--", "test", "-e", "/workspace/end").code == 0
		})
		for pid, now := range ours() {
			grown := now - before[pid]
			t.Logf("pid %d grew by %d MiB", pid, grown>>20)
			if grown > 64<<20 {
				t.Errorf("pid %d grew by %d MiB", pid, grown>>20)
			}
		}
		if rss := residentBytes(cmd.Process.Pid); rss > 96<<20 {
			t.Errorf("the client has %d MiB resident", rss>>20)
		}
		var total int64
		buffer := make([]byte, 1<<20)
		for {
			n, err := pipe.Read(buffer)
			total += int64(n)
			if err != nil {
				break
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if total != 1<<30 {
			t.Errorf("%d bytes arrived", total)
		}
	})
}

func guestPIDs(t *testing.T) []int {
	var pids []int
	for _, p := range processes(t) {
		if strings.Contains(p.args, "vendetta-guest\x00") {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func residentBytes(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}
