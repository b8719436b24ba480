//go:build linux

package guest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

func TestCommandThatCannotRun(t *testing.T) {
	r := newRig(t)
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(r.opts.ProjectDir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("plain", "text", 0o644)
	write("noshebang", "\x01\x02", 0o755)
	write("badshebang", "#!/no/such/interpreter\n", 0o755)
	cases := map[string]int32{
		"no-such-tool": 127, "./missing": 127, "./plain": 126, "./noshebang": 126, "./badshebang": 127, "/": 126, "plain/x": 127,
	}
	for name, code := range cases {
		got := r.exec(&guestv1.StartRequest{Argv: []string{name}})
		if got.ended.GetExitCode() != code || !strings.HasPrefix(got.ended.GetMessage(), name+": ") || got.ended.GetPid() != 0 {
			t.Errorf("%s: ended %v, want code %d", name, got.ended, code)
		}
	}
	got := r.exec(&guestv1.StartRequest{Argv: []string{"plain"}, Env: map[string]string{"PATH": ".:/nowhere"}})
	if got.ended.GetExitCode() != 126 {
		t.Errorf("not executable in PATH: %v", got.ended)
	}
}

func TestStartRefuses(t *testing.T) {
	r := newRig(t)
	long := strings.Repeat("x", argumentBytesMost+1)
	many := make([]string, argumentsMost+1)
	for i := range many {
		many[i] = "x"
	}
	ok := []string{"true"}
	cases := []struct {
		name string
		req  *guestv1.StartRequest
		code api.Code
	}{
		{"no id", &guestv1.StartRequest{Argv: ok}, api.InvalidArgument},
		{"path as id", &guestv1.StartRequest{ProcessId: "../x", Argv: ok}, api.InvalidArgument},
		{"no argv", &guestv1.StartRequest{ProcessId: "a"}, api.InvalidArgument},
		{"nul", &guestv1.StartRequest{ProcessId: "a", Argv: []string{"a\x00b"}}, api.InvalidArgument},
		{"many", &guestv1.StartRequest{ProcessId: "a", Argv: many}, api.InvalidArgument},
		{"long", &guestv1.StartRequest{ProcessId: "a", Argv: []string{"true", long}}, api.InvalidArgument},
		{"longer than the kernel takes", &guestv1.StartRequest{ProcessId: "a", Argv: []string{"true", long[:200<<10]}}, api.InvalidArgument},
		{"env", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Env: map[string]string{"A=B": "c"}}, api.InvalidArgument},
		{"stdin", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Stdin: []byte(long)}, api.InvalidArgument},
		{"dir", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Dir: "/no/such/dir"}, api.NotFound},
		{"dir nul", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Dir: "\x00"}, api.InvalidArgument},
		{"dir is a file", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Dir: "/etc/passwd"}, api.FailedPrecondition},
		{"user", &guestv1.StartRequest{ProcessId: "a", Argv: ok, User: "no-such-user"}, api.InvalidArgument},
		{"group", &guestv1.StartRequest{ProcessId: "a", Argv: ok, User: "root:no-such-group"}, api.InvalidArgument},
		{"half a user", &guestv1.StartRequest{ProcessId: "a", Argv: ok, User: "root:"}, api.InvalidArgument},
		{"terminal", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Terminal: &guestv1.Terminal{Rows: 1 << 20}}, api.InvalidArgument},
		{"terminal type", &guestv1.StartRequest{ProcessId: "a", Argv: ok, Terminal: &guestv1.Terminal{Term: "a\nb"}}, api.InvalidArgument},
	}
	for _, c := range cases {
		if err := r.refused(c.req); err.Code != c.code {
			t.Errorf("%s: got %s: %s, want %s", c.name, err.Code, err.Message, c.code)
		}
	}
	// Nothing of it took the id.
	if got := r.exec(&guestv1.StartRequest{ProcessId: "a", Argv: ok}); got.ended.GetExitCode() != 0 {
		t.Errorf("ended %v", got.ended)
	}
}

func TestAnIDStartsOnce(t *testing.T) {
	r := newRig(t)
	req := &guestv1.StartRequest{ProcessId: "once", Argv: []string{"sh", "-c", "echo x >> count"}}
	r.exec(req)
	wantCode(t, r.refused(req), api.AlreadyExists)
	r.stop()
	r.start()
	wantCode(t, r.refused(req), api.AlreadyExists)
	if data, err := os.ReadFile(filepath.Join(r.opts.ProjectDir, "count")); err != nil || string(data) != "x\n" {
		t.Errorf("ran as %q, %v", data, err)
	}
}

func TestRestartFindsProcesses(t *testing.T) {
	r := newRig(t)
	r.exec(&guestv1.StartRequest{ProcessId: "ended", Argv: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}})
	stream, err := r.process.Start(t.Context(), &guestv1.StartRequest{ProcessId: "lost", Argv: []string{"sh", "-c", "echo so far; exec sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() && stream.Msg().GetOutput() == nil {
	}
	if err := os.Mkdir(filepath.Join(r.opts.StateDir, "processes", "torn"), 0o700); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(r.opts.StateDir, "processes")
	r.stop()
	// As if the guest had been killed: no end was recorded.
	if err := os.Remove(filepath.Join(state, "lost", endedFile)); err != nil {
		t.Fatal(err)
	}
	r.start()
	list, err := r.process.ListProcesses(t.Context(), &guestv1.ListProcessesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]guestv1.ProcessState{}
	for _, p := range list.GetProcesses() {
		states[p.GetId()] = p.GetState()
	}
	if len(states) != 3 || states["ended"] != guestv1.ProcessState_PROCESS_STATE_EXITED || states["lost"] != guestv1.ProcessState_PROCESS_STATE_LOST || states["torn"] != guestv1.ProcessState_PROCESS_STATE_LOST {
		t.Errorf("states %v", states)
	}
	got := r.attach(&guestv1.AttachRequest{ProcessId: "lost", Follow: true})
	if string(got.out) != "so far\n" || got.ended.GetState() != guestv1.ProcessState_PROCESS_STATE_LOST {
		t.Errorf("lost: %q %v", got.out, got.ended)
	}
	got = r.attach(&guestv1.AttachRequest{ProcessId: "ended"})
	if string(got.out) != "out\n" || string(got.err) != "err\n" || got.ended.GetExitCode() != 3 {
		t.Errorf("ended: %q %q %v", got.out, got.err, got.ended)
	}
}

func (r *rig) attach(req *guestv1.AttachRequest) result {
	r.t.Helper()
	stream, err := r.process.Attach(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return collect(r.t, stream, req.GetOffset())
}

func TestAttachRanges(t *testing.T) {
	r := newRig(t)
	r.exec(&guestv1.StartRequest{ProcessId: "p", Argv: []string{"printf", "0123456789"}})
	if got := r.attach(&guestv1.AttachRequest{ProcessId: "p", Offset: 3, LimitBytes: 4}); string(got.out) != "3456" || got.ended != nil {
		t.Errorf("limited: %q %v", got.out, got.ended)
	}
	if got := r.attach(&guestv1.AttachRequest{ProcessId: "p", Offset: 3}); string(got.out) != "3456789" || got.ended == nil {
		t.Errorf("from 3: %q %v", got.out, got.ended)
	}
	stream, err := r.process.Attach(t.Context(), &guestv1.AttachRequest{ProcessId: "p", TailBytes: 2})
	if err != nil {
		t.Fatal(err)
	}
	if got := collect(t, stream, 8); string(got.out) != "89" {
		t.Errorf("tail: %q", got.out)
	}
	if got := r.attach(&guestv1.AttachRequest{ProcessId: "p", Offset: 99, Follow: true}); got.ended == nil {
		t.Error("beyond the end of an ended process: no end")
	}
	missing, err := r.process.Attach(t.Context(), &guestv1.AttachRequest{ProcessId: "missing"})
	if err != nil {
		t.Fatal(err)
	}
	for missing.Receive() {
	}
	wantCode(t, missing.Err(), api.NotFound)
}

func (r *rig) detach(req *guestv1.StartRequest) string {
	r.t.Helper()
	if req.GetProcessId() == "" {
		req.ProcessId = newID()
	}
	req.Detach = true
	if got := r.exec(req); got.started == nil || got.ended != nil || got.out != nil {
		r.t.Fatalf("detached start: %v", got)
	}
	return req.GetProcessId()
}

func TestSignals(t *testing.T) {
	r := newRig(t)
	id := r.detach(&guestv1.StartRequest{Argv: []string{"sh", "-c", "sleep 1000 & echo up; wait"}})
	running, err := r.process.ListProcesses(t.Context(), &guestv1.ListProcessesRequest{Running: true})
	if err != nil || len(running.GetProcesses()) != 1 || running.GetProcesses()[0].GetId() != id {
		t.Fatalf("running %v, %v", running, err)
	}
	_, err = r.process.Signal(t.Context(), &guestv1.SignalRequest{ProcessId: id, Signal: "NOPE"})
	wantCode(t, err, api.InvalidArgument)
	if _, err = r.process.Signal(t.Context(), &guestv1.SignalRequest{ProcessId: id, Signal: "KILL"}); err != nil {
		t.Fatal(err)
	}
	got := r.attach(&guestv1.AttachRequest{ProcessId: id, Follow: true})
	if got.ended.GetExitCode() != 137 || got.ended.GetSignal() != 9 || got.ended.GetState() != guestv1.ProcessState_PROCESS_STATE_SIGNALLED {
		t.Errorf("ended %v", got.ended)
	}
	_, err = r.process.Signal(t.Context(), &guestv1.SignalRequest{ProcessId: id, Signal: "TERM"})
	wantCode(t, err, api.FailedPrecondition)
	for _, id := range []string{"missing", "../../x"} {
		_, err = r.process.Signal(t.Context(), &guestv1.SignalRequest{ProcessId: id, Signal: "TERM"})
		if err == nil {
			t.Error("signalled a process that does not exist")
		}
		_, err = r.process.GetProcess(t.Context(), &guestv1.GetProcessRequest{ProcessId: id})
		if err == nil {
			t.Error("got a process that does not exist")
		}
	}
}

func TestInputOffsets(t *testing.T) {
	r := newRig(t)
	id := r.detach(&guestv1.StartRequest{Argv: []string{"cat"}, Stdin: []byte("ab"), StdinOpen: true})
	put := func(offset uint64, data string, end bool) (uint64, error) {
		resp, err := r.process.Input(t.Context(), &guestv1.InputRequest{ProcessId: id, Offset: offset, Data: []byte(data), Close: end})
		return resp.GetInputBytes(), err
	}
	for _, c := range []struct {
		offset uint64
		data   string
		end    bool
		taken  uint64
		code   api.Code
	}{
		{2, "cd", false, 4, ""}, {2, "cd", false, 4, ""}, {3, "de", false, 5, ""}, {9, "x", false, 0, api.Conflict},
		{5, "f", true, 6, ""}, {5, "f", true, 6, ""}, {6, "g", false, 0, api.FailedPrecondition},
	} {
		taken, err := put(c.offset, c.data, c.end)
		if taken != c.taken || api.CodeOf(err) != c.code {
			t.Errorf("input %d %q: %d, %v", c.offset, c.data, taken, err)
		}
	}
	if got := r.attach(&guestv1.AttachRequest{ProcessId: id, Follow: true}); string(got.out) != "abcdef" || got.ended.GetInputBytes() != 6 {
		t.Errorf("out %q, %v", got.out, got.ended)
	}
	if _, err := put(4, "ef", true); err != nil {
		t.Errorf("a repeat after the end: %v", err)
	}
	_, err := r.process.Input(t.Context(), &guestv1.InputRequest{ProcessId: id, Data: make([]byte, inputMessageMost+1)})
	wantCode(t, err, api.InvalidArgument)
	_, err = r.process.Input(t.Context(), &guestv1.InputRequest{ProcessId: "missing"})
	wantCode(t, err, api.NotFound)
}

// Input that nobody reads is bounded: the call waits, and what was taken stays taken.
func TestInputBackPressure(t *testing.T) {
	r := newRig(t)
	gate := filepath.Join(r.opts.ProjectDir, "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	id := r.detach(&guestv1.StartRequest{Argv: []string{"sh", "-c", "read go < gate; wc -c"}, StdinOpen: true})
	const total = 3 << 20
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	_, err := r.process.Input(ctx, &guestv1.InputRequest{ProcessId: id, Data: make([]byte, total)})
	cancel()
	wantCode(t, err, api.DeadlineExceeded)
	p, err := r.process.GetProcess(t.Context(), &guestv1.GetProcessRequest{ProcessId: id})
	if err != nil || p.GetInputBytes() < inputMost || p.GetInputBytes() > inputMost+256<<10 {
		t.Fatalf("took %d of %d, %v", p.GetInputBytes(), total, err)
	}
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.process.Input(t.Context(), &guestv1.InputRequest{ProcessId: id, Data: make([]byte, total), Close: true}); err != nil {
		t.Fatal(err)
	}
	if got := r.attach(&guestv1.AttachRequest{ProcessId: id, Follow: true}); strings.TrimSpace(string(got.out)) != "3145728" {
		t.Errorf("the process read %q", got.out)
	}
}

// A process that does not read its input does not keep it from ending.
func TestInputNobodyReads(t *testing.T) {
	r := newRig(t)
	got := r.exec(&guestv1.StartRequest{Argv: []string{"true"}, Stdin: make([]byte, stdinMost), StdinOpen: true})
	if got.ended.GetExitCode() != 0 || got.ended.GetInputOpen() {
		t.Errorf("ended %v", got.ended)
	}
}

func TestTerminal(t *testing.T) {
	r := newRig(t)
	stream, err := r.process.Start(t.Context(), &guestv1.StartRequest{
		ProcessId: "tty", StdinOpen: true, Terminal: &guestv1.Terminal{Rows: 30, Columns: 100, Term: "dumb"},
		Argv: []string{"sh", "-c", `stty size; tty; echo "$TERM"; read x; stty size; trap 'echo got INT' INT; sh -c "echo ready; exec sleep 1000"; echo after; cat`},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	var got result
	await := func(text string) {
		t.Helper()
		for !bytes.Contains(got.out, []byte(text)) {
			if !stream.Receive() {
				t.Fatalf("waiting for %q: %q, %v", text, got.out, stream.Err())
			}
			got.take(t, stream.Msg())
		}
	}
	input := func(data string, end bool) {
		t.Helper()
		p, err := r.process.GetProcess(t.Context(), &guestv1.GetProcessRequest{ProcessId: "tty"})
		if err == nil {
			_, err = r.process.Input(t.Context(), &guestv1.InputRequest{ProcessId: "tty", Offset: p.GetInputBytes(), Data: []byte(data), Close: end})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	await("30 100\r\n/dev/pts/")
	await("dumb\r\n")
	if _, err := r.process.Resize(t.Context(), &guestv1.ResizeRequest{ProcessId: "tty", Rows: 50, Columns: 132}); err != nil {
		t.Fatal(err)
	}
	input("go\n", false)
	await("50 132")
	await("ready")
	input("\x03", false) // Ctrl-C reaches sleep and the shell's trap
	await("got INT")
	await("after")
	input("typed", true)
	for stream.Receive() {
		got.take(t, stream.Msg())
	}
	if !strings.HasSuffix(string(got.out), "typed") && !strings.Contains(string(got.out), "typedtyped") || got.ended.GetExitCode() != 0 {
		t.Errorf("out %q, ended %v", got.out, got.ended)
	}
	for code, req := range map[api.Code]*guestv1.ResizeRequest{
		api.FailedPrecondition: {ProcessId: "tty", Rows: 1, Columns: 1},
		api.InvalidArgument:    {ProcessId: "tty"},
		api.NotFound:           {ProcessId: "missing", Rows: 1, Columns: 1},
	} {
		_, err := r.process.Resize(t.Context(), req)
		wantCode(t, err, code)
	}
	_, err = r.process.Resize(t.Context(), &guestv1.ResizeRequest{ProcessId: "tty", Rows: 1 << 20, Columns: 1})
	wantCode(t, err, api.InvalidArgument)
	pipes := r.detach(&guestv1.StartRequest{Argv: []string{"sleep", "1000"}})
	_, err = r.process.Resize(t.Context(), &guestv1.ResizeRequest{ProcessId: pipes, Rows: 1, Columns: 1})
	wantCode(t, err, api.FailedPrecondition)
}

// A signal goes to the job in the terminal's foreground and spares the shell.
func TestTerminalForeground(t *testing.T) {
	r := newRig(t)
	id := r.detach(&guestv1.StartRequest{
		Terminal: &guestv1.Terminal{}, StdinOpen: true,
		Argv: []string{"sh", "-c", `set -m; sh -c 'echo job; exec sleep 1000'; echo status $?`},
	})
	eventually(t, "the job runs", func() bool {
		return strings.Contains(string(r.attach(&guestv1.AttachRequest{ProcessId: id}).out), "job")
	})
	if _, err := r.process.Signal(t.Context(), &guestv1.SignalRequest{ProcessId: id, Signal: "TERM"}); err != nil {
		t.Fatal(err)
	}
	got := r.attach(&guestv1.AttachRequest{ProcessId: id, Follow: true})
	if !strings.Contains(string(got.out), "status 143") || got.ended.GetExitCode() != 0 {
		t.Errorf("out %q, ended %v", got.out, got.ended)
	}
}

// A child in the background that keeps the output open does not hold up the end,
// and does not die of writing later.
func TestBackgroundChild(t *testing.T) {
	r := newRig(t)
	got := r.sh(`mkfifo gate; (read go < gate; echo late; echo late; echo done > result) & echo now`)
	if string(got.out) != "now\n" || got.ended.GetExitCode() != 0 {
		t.Errorf("got %q %v", got.out, got.ended)
	}
	if err := os.WriteFile(filepath.Join(r.opts.ProjectDir, "gate"), []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child wrote and went on", func() bool {
		_, err := os.Stat(filepath.Join(r.opts.ProjectDir, "result"))
		return err == nil
	})
	r.sh(`sleep 1000 & true`)
	got = r.exec(&guestv1.StartRequest{Terminal: &guestv1.Terminal{}, Argv: []string{"sh", "-c", "trap '' HUP; sleep 1000 & echo tty"}})
	if !strings.Contains(string(got.out), "tty") || got.ended.GetExitCode() != 0 {
		t.Errorf("terminal: got %q %v", got.out, got.ended)
	}
}

func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		r := newRig(t)
		wantCode(t, r.refused(&guestv1.StartRequest{ProcessId: "a", Argv: []string{"id"}, User: "12345"}), api.FailedPrecondition)
		return
	}
	etc := t.TempDir()
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nbroken\nbad:x:a:b::/:\ndev:x:4242:4243:Dev:/home/dev:/bin/bash\n",
		"group":  "root:x:0:\ndev:x:4243:\nextra:x:4300:other,dev\nagain:x:4300:dev\nbad:x:q:dev\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, func(o *Options) { o.Etc, o.DefaultUser = etc, "dev" })
	script := `echo $(id -u) $(id -g) $(id -G) $HOME $USER $LOGNAME $SHELL; echo x > /dev/stdout`
	for user, want := range map[string]string{
		"":             "4242 4243 4243 4300 /home/dev dev dev /bin/bash",
		"4242":         "4242 4243 4243 4300 /home/dev dev dev /bin/bash",
		"dev:extra":    "4242 4300 4300 /home/dev dev dev /bin/bash",
		"777:888":      "777 888 888 / 777 777",
		"root":         "0 0 0 /root root root /bin/sh",
		"777:no-group": "",
	} {
		req := &guestv1.StartRequest{ProcessId: newID(), Argv: []string{"sh", "-c", script}, User: user}
		if want == "" {
			wantCode(t, r.refused(req), api.InvalidArgument)
			continue
		}
		got := r.exec(req)
		if string(got.out) != want+"\nx\n" {
			t.Errorf("%q: got %q %q, want %q", user, got.out, got.err, want)
		}
	}
	// The terminal belongs to the user.
	got := r.exec(&guestv1.StartRequest{Terminal: &guestv1.Terminal{}, Argv: []string{"sh", "-c", `echo open > "$(tty)"`}})
	if string(got.out) != "open\r\n" {
		t.Errorf("terminal: %q", got.out)
	}
	if got := r.exec(&guestv1.StartRequest{Argv: []string{"true"}, Dir: "/root"}); got.ended.GetExitCode() != 126 {
		t.Errorf("a folder that is closed to the user: %v", got.ended)
	}
}

func TestLimitsOfProcesses(t *testing.T) {
	r := newRig(t, func(o *Options) { o.KeepEnded, o.MostRunning = 2, 1 })
	id := r.detach(&guestv1.StartRequest{Argv: []string{"sleep", "1000"}})
	wantCode(t, r.refused(&guestv1.StartRequest{ProcessId: "more", Argv: []string{"true"}}), api.ResourceExhausted)
	if _, err := r.process.Signal(t.Context(), &guestv1.SignalRequest{ProcessId: id, Signal: "TERM"}); err != nil {
		t.Fatal(err)
	}
	r.attach(&guestv1.AttachRequest{ProcessId: id, Follow: true})
	for _, id := range []string{"a", "b", "c"} {
		eventually(t, "the place is free", func() bool {
			r.guest.processes.mu.Lock()
			defer r.guest.processes.mu.Unlock()
			return r.guest.processes.running == 0
		})
		r.exec(&guestv1.StartRequest{ProcessId: id, Argv: []string{"true"}})
	}
	eventually(t, "old ones are dropped", func() bool {
		list, err := r.process.ListProcesses(t.Context(), &guestv1.ListProcessesRequest{})
		return err == nil && len(list.GetProcesses()) <= 3
	})
	r.stop()
	r.start()
	list, err := r.process.ListProcesses(t.Context(), &guestv1.ListProcessesRequest{})
	if err != nil || len(list.GetProcesses()) != 2 || list.GetProcesses()[0].GetId() != "c" {
		t.Errorf("kept %v, %v", list, err)
	}
	wantCode(t, r.refused(&guestv1.StartRequest{ProcessId: id, Argv: []string{"true"}}), api.AlreadyExists)
	_, err = r.process.GetProcess(t.Context(), &guestv1.GetProcessRequest{ProcessId: id})
	wantCode(t, err, api.NotFound)
}

func TestCloseEndsProcesses(t *testing.T) {
	r := newRig(t)
	r.detach(&guestv1.StartRequest{ProcessId: "kind", Argv: []string{"sleep", "1000"}})
	r.detach(&guestv1.StartRequest{ProcessId: "tty", Argv: []string{"sh", "-i"}, Terminal: &guestv1.Terminal{}, StdinOpen: true})
	r.exec(&guestv1.StartRequest{ProcessId: "stubborn", Argv: []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1000; done"}, Detach: true})
	eventually(t, "the trap is set", func() bool {
		return len(r.attach(&guestv1.AttachRequest{ProcessId: "stubborn"}).out) > 0
	})
	r.guest.Close(100 * time.Millisecond)
	wantCode(t, r.refused(&guestv1.StartRequest{ProcessId: "late", Argv: []string{"true"}}), api.Unavailable)
	for id, signal := range map[string]syscall.Signal{"kind": syscall.SIGTERM, "stubborn": syscall.SIGKILL} {
		p := loadRecord(filepath.Join(r.opts.StateDir, "processes", id), id)
		if p.GetSignal() != int32(signal) || p.GetState() != guestv1.ProcessState_PROCESS_STATE_LOST {
			t.Errorf("%s ended as %v", id, p)
		}
	}
}

// The first process of an instance reaps what nobody else does, and does not
// take the ends of its own children.
func TestReapsOrphans(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	r := newRig(t, func(o *Options) { o.ReapOrphans = true })
	for range 20 {
		got := r.sh(`(setsid sh -c 'echo $$ > pid; exit 5' > /dev/null 2>&1 &) ; while ! test -s pid; do :; done; exit 4`)
		if got.ended.GetExitCode() != 4 {
			t.Fatalf("ended %v", got.ended)
		}
		data, err := os.ReadFile(filepath.Join(r.opts.ProjectDir, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the orphan is reaped", func() bool {
			_, err := os.Stat("/proc/" + strings.TrimSpace(string(data)))
			return os.IsNotExist(err)
		})
		_ = os.Remove(filepath.Join(r.opts.ProjectDir, "pid"))
	}
}

// A reader that stops reading holds the process back: memory stays bounded, and
// all of the output arrives once it reads on.
func TestStalledReader(t *testing.T) {
	total, spool := uint64(64<<20), uint64(8<<20)
	if !testing.Short() {
		total, spool = 1<<30, 64<<20
	}
	r := newRig(t)
	stream, err := r.process.Start(t.Context(), &guestv1.StartRequest{
		ProcessId: "big", SpoolBytes: spool, Argv: []string{"head", "-c", strconv.FormatUint(total, 10), "/dev/zero"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := r.guest.processes.get("big")
	if err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for stalled := false; !stalled; <-ticker.C {
		_, end := p.spool.bounds()
		stalled, last = end == last && end > 0, end
	}
	if last >= total {
		t.Fatal("the writer did not wait for the reader")
	}
	runtime.GC()
	runtime.ReadMemStats(&now)
	if now.HeapAlloc > before.HeapAlloc+64<<20 {
		t.Errorf("heap grew from %d to %d", before.HeapAlloc, now.HeapAlloc)
	}
	read := uint64(0)
	var ended *guestv1.Process
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *guestv1.ProcessEvent_Output:
			read += uint64(len(e.Output.GetData()))
		case *guestv1.ProcessEvent_Gap:
			t.Fatalf("gap %v", e.Gap)
		case *guestv1.ProcessEvent_Ended:
			ended = e.Ended
		}
	}
	if read != total || ended.GetExitCode() != 0 || ended.GetOutputBytes() != total {
		t.Errorf("read %d of %d, ended %v, %v", read, total, ended, stream.Err())
	}
}

// Nobody reads: the oldest bytes go, and a later reader is told of the gap.
func TestSpoolCapLeavesGap(t *testing.T) {
	r := newRig(t)
	id := r.detach(&guestv1.StartRequest{SpoolBytes: 1, Argv: []string{"sh", "-c", "head -c 1000000 /dev/zero; echo; echo end"}})
	eventually(t, "it has ended", func() bool {
		p, err := r.process.GetProcess(t.Context(), &guestv1.GetProcessRequest{ProcessId: id})
		return err == nil && p.GetState() == guestv1.ProcessState_PROCESS_STATE_EXITED
	})
	got := r.attach(&guestv1.AttachRequest{ProcessId: id, Follow: true})
	if len(got.gaps) != 1 || got.next != 1000005 || !strings.HasSuffix(string(got.out), "end\n") || len(got.out) > spoolLeast {
		t.Errorf("gaps %v, next %d, %d bytes, err %q", got.gaps, got.next, len(got.out), got.err)
	}
	if got.ended.GetOutputKeptFrom() != got.gaps[0].GetBytes() {
		t.Errorf("kept from %d, gap %v", got.ended.GetOutputKeptFrom(), got.gaps)
	}
}
