package mcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

const (
	// execWait is how long exec waits unless told otherwise, in seconds.
	execWait = 30
	// inputMost is the most input that one call carries.
	inputMost = 1 << 20
)

func processTools() []*tool {
	return []*tool{
		{
			name: "exec", title: "Run a command", set: setProcesses, destructive: true, openWorld: true,
			description: "Run a command in a workspace and return its exit code and output. Give argv (no shell) or script (run by sh -c). " +
				"A command that takes longer than wait_seconds goes on; wait for it with process_output.",
			params: []param{
				paramWorkspace,
				{name: "argv", kind: list, description: `Program and arguments, e.g. ["go","test","./..."].`},
				{name: "script", kind: text, description: "Shell script, instead of argv."},
				{name: "dir", kind: text, description: "Working directory; /workspace unless given."},
				{name: "env", kind: strmap, description: "Variables added to the environment."},
				{name: "user", kind: text, description: "User to run as; the image's unless given."},
				{name: "stdin", kind: text, description: "Standard input."},
				{name: "stdin_open", kind: boolean, description: "Keep standard input open for process_input."},
				waitSeconds("30"),
			},
			run: runExec,
		},
		{
			name: "process_output", title: "Read a command's output", set: setProcesses, readOnly: true, idempotent: true,
			description: "Read what a command printed, from an offset or its last part, and how it stands. With wait_seconds: wait for its end first.",
			params: []param{
				paramWorkspace, paramProcess,
				{name: "offset", kind: integer, description: "First byte to read; the last part unless given."},
				waitSeconds("0"),
			},
			run: runProcessOutput,
		},
		{
			name: "process_input", title: "Send input to a command", set: setProcesses, openWorld: true,
			description: "Write to the standard input of a running command that exec started with stdin_open.",
			params: []param{
				paramWorkspace, paramProcess,
				{name: "text", kind: text, description: `What to send; end a line with \n.`},
				{name: "close", kind: boolean, description: "End the input after it."},
			},
			run: runProcessInput,
		},
		{
			name: "process_signal", title: "Send a signal to a command", set: setProcesses, destructive: true,
			description: "Send a signal to a command and its children.",
			params: []param{
				paramWorkspace, paramProcess,
				{name: "signal", kind: text, required: true, enum: []string{"INT", "TERM", "KILL", "HUP", "QUIT", "USR1", "USR2", "STOP", "CONT"}, description: "TERM asks it to end, KILL ends it."},
			},
			run: runProcessSignal,
		},
		{
			name: "process_list", title: "List commands", set: setProcesses, readOnly: true, idempotent: true,
			description: "List the commands of a workspace, newest first.",
			params:      []param{paramWorkspace, {name: "running", kind: boolean, description: "Only those that run."}},
			run:         runProcessList,
		},
	}
}

func runExec(ctx context.Context, g *Gateway, c *call) (string, error) {
	argv, err := command(c)
	if err != nil {
		return "", err
	}
	if n := len(c.text("stdin")); n > inputMost {
		return "", api.Errorf(api.InvalidArgument, "exec: stdin has %d bytes, %d are the most", n, inputMost).
			WithNext("write it to a file with file_write and let the command read that")
	}
	req := &guestv1.StartRequest{
		ProcessId: "p" + strings.ToLower(rand.Text()[:11]), Argv: argv, Env: c.table("env"), Dir: c.text("dir"), User: c.text("user"),
		Stdin: []byte(c.text("stdin")), StdinOpen: c.flag("stdin_open"),
	}
	wait := c.number("wait_seconds", execWait)
	req.Detach = wait == 0
	return g.follow(ctx, c, wait, &collector{}, req.GetProcessId(), func(ctx context.Context, o client.RunOptions) (*guestv1.Process, error) {
		return c.workspace(g).Run(ctx, req, o)
	})
}

func command(c *call) ([]string, error) {
	argv, script := c.list("argv"), c.text("script")
	switch {
	case len(argv) > 0 && script != "":
		return nil, c.tool.refuse("argv and script exclude each other")
	case script != "":
		return []string{"sh", "-c", script}, nil
	case len(argv) == 0:
		return nil, c.tool.refuse("argv or script is missing")
	}
	return argv, nil
}

// follow stays with a command for so many seconds, counted from when it is known
// to run, and answers with how it stands and what came.
func (g *Gateway) follow(ctx context.Context, c *call, wait int64, out *collector, id string,
	run func(context.Context, client.RunOptions) (*guestv1.Process, error),
) (string, error) {
	workspace := c.text("workspace")
	c.say(func() string { return fmt.Sprintf("the command runs, %d bytes of output", out.position()) })
	followed, cancel := context.WithCancel(ctx)
	started := make(chan struct{})
	var owner conc.WaitGroup
	if wait > 0 {
		owner.Go(func() {
			defer cancel()
			over := time.NewTimer(waitFor(ctx, wait))
			defer over.Stop()
			select {
			case <-over.C:
			case <-followed.Done():
			}
			select {
			case <-started:
			case <-followed.Done():
			}
		})
	}
	p, err := run(followed, client.RunOptions{
		Stdout: out.writer(stdout), Stderr: out.writer(stderr), OnGap: out.dropped,
		OnStarted: func(*guestv1.Process) { close(started) },
	})
	cancel()
	owner.Wait()
	if err != nil && (p == nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)) {
		return "", err
	}
	read := func(offset uint64, more ...any) string {
		return asCall("process_output", append([]any{"workspace", workspace, "process_id", id, "offset", offset}, more...)...)
	}
	facts := describe(p)
	next := out.position()
	if p.GetState() == guestv1.ProcessState_PROCESS_STATE_RUNNING {
		facts += "wait for it: " + read(next, "wait_seconds", execWait) + "\n"
	}
	return fmt.Sprintf("%soutput: %d bytes\n---\n%s", facts, max(next, p.GetOutputBytes()), out.render(func(o uint64) string { return read(o) })), nil
}

func runProcessOutput(ctx context.Context, g *Gateway, c *call) (string, error) {
	id := c.text("process_id")
	wait := c.number("wait_seconds", 0)
	offset := uint64(c.number("offset", 0))
	guest := c.workspace(g)
	p, err := guest.Processes.GetProcess(ctx, &guestv1.GetProcessRequest{ProcessId: id})
	if err != nil {
		return "", hint(err, asCall("process_list", "workspace", c.text("workspace"))+" shows the processes; workspace_list the workspaces")
	}
	if !c.has("offset") {
		offset = p.GetOutputBytes() - min(p.GetOutputBytes(), tailMost)
	}
	if wait == 0 {
		return g.page(ctx, c, p, offset)
	}
	return g.follow(ctx, c, wait, &collector{next: offset}, id, func(ctx context.Context, o client.RunOptions) (*guestv1.Process, error) {
		return guest.Attach(ctx, &guestv1.AttachRequest{ProcessId: id, Offset: offset, Follow: true}, o)
	})
}

// page reads what is there from an offset on, without a hole.
func (g *Gateway) page(ctx context.Context, c *call, p *guestv1.Process, offset uint64) (string, error) {
	var whole span
	add := func(stream byte) writerFunc {
		return func(b []byte) (int, error) { whole.add(stream, b); return len(b), nil }
	}
	from := max(offset, p.GetOutputKeptFrom())
	_, err := c.workspace(g).Attach(ctx, &guestv1.AttachRequest{ProcessId: p.GetId(), Offset: from, LimitBytes: pageMost},
		client.RunOptions{Stdout: add(stdout), Stderr: add(stderr)})
	if err != nil {
		return "", err
	}
	data := whole.data
	if from+uint64(len(data)) < p.GetOutputBytes() {
		data = wholeRunes(data)
	}
	_, used, _ := escapeHead(data, pageMost)
	var r renderer
	r.show(whole.slice(0, used))
	end := from + uint64(used)
	facts := describe(p)
	if from > offset {
		facts += fmt.Sprintf("dropped: bytes %d to %d are no longer kept\n", offset, from)
	}
	total := max(p.GetOutputBytes(), end)
	facts += fmt.Sprintf("output: bytes %d to %d of %d\n", from, end, total)
	call := []any{"workspace", c.text("workspace"), "process_id", p.GetId(), "offset", end}
	switch {
	case end < total:
		facts += "read on: " + asCall("process_output", call...) + "\n"
	case p.GetState() == guestv1.ProcessState_PROCESS_STATE_RUNNING:
		facts += "wait for it: " + asCall("process_output", append(call, "wait_seconds", execWait)...) + "\n"
	}
	return facts + "---\n" + r.text(), nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func runProcessInput(ctx context.Context, g *Gateway, c *call) (string, error) {
	id, input := c.text("process_id"), c.text("text")
	if len(input) > inputMost {
		return "", api.Errorf(api.InvalidArgument, "process_input: text has %d bytes, %d are the most", len(input), inputMost).WithNext("send it in parts")
	}
	processes := c.workspace(g).Processes
	p, err := processes.GetProcess(ctx, &guestv1.GetProcessRequest{ProcessId: id})
	if err != nil {
		return "", hint(err, asCall("process_list", "workspace", c.text("workspace"))+" shows the processes; workspace_list the workspaces")
	}
	r, err := processes.Input(ctx, &guestv1.InputRequest{ProcessId: id, Offset: p.GetInputBytes(), Data: []byte(input), Close: c.flag("close")})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("sent: %d bytes, %d in all\nnext: %s\n", len(input), r.GetInputBytes(),
		asCall("process_output", "workspace", c.text("workspace"), "process_id", id, "offset", p.GetOutputBytes(), "wait_seconds", 5)), nil
}

func runProcessSignal(ctx context.Context, g *Gateway, c *call) (string, error) {
	id := c.text("process_id")
	_, err := c.workspace(g).Processes.Signal(ctx, &guestv1.SignalRequest{ProcessId: id, Signal: c.text("signal")})
	if err != nil {
		return "", hint(err, asCall("process_list", "workspace", c.text("workspace"))+" shows the processes; workspace_list the workspaces")
	}
	return fmt.Sprintf("sent %s to %s\nnext: %s\n", c.text("signal"), id,
		asCall("process_output", "workspace", c.text("workspace"), "process_id", id, "wait_seconds", 5)), nil
}

func runProcessList(ctx context.Context, g *Gateway, c *call) (string, error) {
	r, err := c.workspace(g).Processes.ListProcesses(ctx, &guestv1.ListProcessesRequest{Running: c.flag("running")})
	if err != nil {
		return "", hint(err, "workspace_list shows the workspaces")
	}
	var l lines
	if len(r.GetProcesses()) == 0 {
		l.add("no commands; exec runs one")
	}
	for _, p := range r.GetProcesses() {
		how := state(p.GetState(), "PROCESS_STATE_")
		if s := p.GetState(); s == guestv1.ProcessState_PROCESS_STATE_EXITED || s == guestv1.ProcessState_PROCESS_STATE_SIGNALLED {
			how += fmt.Sprintf(" with code %d", p.GetExitCode())
		}
		l.add("%s: %s, started %s, %d bytes of output: %s", p.GetId(), how, stamp(p.GetStartedAt()), p.GetOutputBytes(), printable(encode(p.GetArgv()), 300))
	}
	return l.text("ask for those that run with running"), nil
}
