package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

type execOptions struct {
	workspace string
	argv      []string
	env       []string
	dir       string
	user      string
	stdin     bool
	tty       bool
	detach    bool
}

func newWorkspaceExec(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec NAME -- COMMAND [ARG ...]",
		Short: "Run a command in a workspace",
		Long: `Runs a command in /workspace and passes on its output, its input where that is
no terminal (or with -i), its signals and its exit code. Exit code 125 means that
vendetta itself failed. The command belongs to the workspace: when the link is
lost it goes on, and so does this program once the link is back.`,
		Example: `  vendetta workspace exec fix-login -- go test ./...
  tar c . | vendetta workspace exec fix-login -- tar x`,
		Args:              minArgs(2),
		ValidArgsFunction: a.completeWorkspaces,
		Annotations:       map[string]string{annotationPassesExitCode: "true"},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.workspace, o.argv = args[0], afterDash(args[1:])
			if strings.HasPrefix(args[1], "-") && args[1] != "--" {
				return usageError(cmd, "flags come before the workspace, and %q stands after it", args[1])
			}
			if len(o.argv) == 0 {
				return usageError(cmd, "names no command to run")
			}
			return runExec(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable, NAME=VALUE; NAME alone passes yours on")
	f.StringVarP(&o.dir, "workdir", "w", "", "directory to run in (default /workspace)")
	f.StringVarP(&o.user, "user", "u", "", "user to run as (default the image's)")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "pass on standard input even from a terminal")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "print the process id and leave the command running")
	return cmd
}

func newWorkspaceShell(a *app) *cobra.Command {
	var o execOptions
	var attach string
	cmd := &cobra.Command{
		Use:   "shell NAME [-- COMMAND [ARG ...]]",
		Short: "Open a terminal in a workspace",
		Long: `Opens a shell with a terminal. It survives a dropped link; after closing your
terminal, come back with --attach and the id that ps shows.`,
		Args:              minArgs(1),
		ValidArgsFunction: a.completeWorkspaces,
		Annotations:       map[string]string{annotationPassesExitCode: "true"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 && cmd.ArgsLenAtDash() != 1 {
				return usageError(cmd, "a command comes after --")
			}
			o.workspace, o.argv, o.tty, o.stdin = args[0], args[1:], true, true
			if attach != "" && len(o.argv) > 0 {
				return usageError(cmd, "--attach goes on with a process that runs already, so it takes no command")
			}
			if attach != "" {
				return runAttach(cmd.Context(), a, o.workspace, attach)
			}
			if len(o.argv) == 0 {
				o.argv = []string{"/bin/sh", "-c", "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"}
			}
			return runExec(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.user, "user", "u", "", "user to run as (default the image's)")
	f.StringVarP(&o.dir, "workdir", "w", "", "directory to start in (default /workspace)")
	f.StringVar(&attach, "attach", "", "go on with the terminal of this process")
	return cmd
}

// afterDash drops the -- between the workspace and the command. Flags end at the
// workspace's name, so it is not needed, and it is what people know.
func afterDash(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

// environment reads NAME=VALUE, and NAME alone from the caller's own.
func (a *app) environment(pairs []string) (map[string]string, error) {
	env := map[string]string{}
	for _, pair := range pairs {
		name, value, found := strings.Cut(pair, "=")
		if name == "" {
			return nil, api.Errorf(api.InvalidArgument, "env %q: the name is empty", pair).WithNext("write it as NAME=VALUE")
		}
		if !found {
			value = a.getenv(name)
		}
		env[name] = value
	}
	return env, nil
}

func runExec(ctx context.Context, a *app, o execOptions) error {
	env, err := a.environment(o.env)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	req := &guestv1.StartRequest{ProcessId: newID(), Argv: o.argv, Env: env, Dir: o.dir, User: o.user, Detach: o.detach}
	guest := c.Guest(o.workspace)
	if o.detach {
		if _, err := guest.Run(ctx, req, client.RunOptions{}); err != nil {
			return err
		}
		_, err := fmt.Fprintln(a.out, req.GetProcessId())
		return err
	}
	call, session, err := a.openSession(ctx, o.workspace, req.GetProcessId(), o.tty, o.stdin)
	if err != nil {
		return err
	}
	if o.tty {
		req.Terminal = &guestv1.Terminal{Rows: session.size.Rows, Columns: session.size.Columns, Term: a.getenv("TERM")}
	}
	p, err := guest.Run(call, req, session.options)
	return a.ended(call, session, p, err)
}

func runAttach(ctx context.Context, a *app, workspace, process string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	call, session, err := a.openSession(ctx, workspace, process, true, true)
	if err != nil {
		return err
	}
	p, err := c.Guest(workspace).Attach(call,
		&guestv1.AttachRequest{ProcessId: process, TailBytes: 4096, Follow: true}, session.options)
	return a.ended(call, session, p, err)
}

// ended closes the session and turns the end of its command into this program's own.
func (a *app) ended(ctx context.Context, s *session, p *guestv1.Process, err error) error {
	left := context.Cause(ctx)
	s.close()
	if err != nil {
		if left != nil {
			return left
		}
		return err
	}
	if p.GetMessage() != "" {
		_, _ = fmt.Fprintf(a.err, "vendetta: %s\n", printable(p.GetMessage()))
	}
	if p.GetState() == guestv1.ProcessState_PROCESS_STATE_LOST {
		return api.Errorf(api.Unavailable, "process %s: lost: its instance went away under it", p.GetId()).
			WithNext("read what it wrote with: vendetta workspace logs %s %s", s.workspace, p.GetId())
	}
	if p.GetExitCode() != 0 {
		return exitStatus(p.GetExitCode())
	}
	return nil
}

// session joins this program's streams, terminal and signals to a command.
type session struct {
	workspace, process string
	// leave ends the command's call and says why we left a command that goes on.
	leave   context.CancelCauseFunc
	options client.RunOptions
	size    client.Size
	cleanup []func()
}

func (s *session) close() {
	for i := len(s.cleanup) - 1; i >= 0; i-- {
		s.cleanup[i]()
	}
	s.leave(nil)
}

// openSession also returns the context for the command's call.
func (a *app) openSession(ctx context.Context, workspace, process string, tty, stdin bool) (context.Context, *session, error) {
	s := &session{workspace: workspace, process: process, options: client.RunOptions{
		Stdout: a.out, Stderr: a.err,
		OnLinkLost: func(error) {
			a.note("\rvendetta: lost the link to %s; the command goes on; connecting again\r", workspace)
		},
		OnRestored: func() { a.note("\rvendetta: the link to %s is back\r", workspace) },
		OnGap: func(_, bytes uint64) {
			a.note("\rvendetta: %d bytes of output were dropped; there was no room to keep them until they were read\r", bytes)
		},
	}}
	in, inTerminal := terminal(a.in)
	if stdin || !inTerminal {
		s.options.Stdin = a.in
	}
	if tty && inTerminal {
		s.options.Stdin = &terminalInput{in: in, session: s}
	}
	// A signal to us is one for the command, so it does not end our own call.
	call, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	s.leave = leave
	if !tty {
		s.forwardSignals(a)
		return call, s, nil
	}
	if !inTerminal {
		s.leave(nil)
		return nil, nil, api.Errorf(api.InvalidArgument, "terminal for %s: standard input is no terminal", workspace).
			WithNext("vendetta workspace exec %s -- COMMAND", workspace)
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		s.leave(nil)
		return nil, nil, api.Errorf(api.Internal, "terminal: %w", err)
	}
	s.cleanup = append(s.cleanup, func() { _ = term.Restore(int(in.Fd()), old) })
	// With a terminal Ctrl-C is a byte for the command; a signal is for us alone.
	stop := context.AfterFunc(ctx, func() { s.abandon("this program was told to end") })
	s.cleanup = append(s.cleanup, func() { stop() })
	s.options.OnStarted = func(*guestv1.Process) {
		a.note("process %s; after closing this terminal come back with: vendetta workspace shell %s --attach %s\r", process, workspace, process)
	}
	s.size = terminalSize(in)
	resized := make(chan client.Size, 1)
	resized <- s.size
	s.options.Resize = resized
	s.cleanup = append(s.cleanup, watchSize(in, resized))
	return call, s, nil
}

// abandon leaves a terminal's command running and says how to come back.
func (s *session) abandon(why string) {
	s.leave(api.Errorf(api.Unavailable, "terminal of %s: %s; process %s goes on", s.workspace, why, s.process).
		WithNext("vendetta workspace shell %s --attach %s", s.workspace, s.process))
}

// terminalInput reads what is typed. A terminal's end is its window that was
// closed, and not an end of input for the command: a shell would log out.
type terminalInput struct {
	in      *os.File
	session *session
}

func (t *terminalInput) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	if n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.session.abandon("it was closed")
	}
	return n, err
}

// SetReadDeadline interrupts a pending Read where the system can.
func (t *terminalInput) SetReadDeadline(at time.Time) error { return t.in.SetReadDeadline(at) }

func terminalSize(f *os.File) client.Size {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return client.Size{Rows: 24, Columns: 80}
	}
	return client.Size{Rows: uint32(rows), Columns: uint32(columns)}
}

// interruptsInARow are those that follow one another within this time.
const interruptsInARow = 3 * time.Second

// forwardSignals sends Ctrl-C and its kin to the command. The third Ctrl-C in a row
// gives up and ends this program, for a command that does not listen.
func (s *session) forwardSignals(a *app) {
	incoming := make(chan os.Signal, 4)
	names := make(chan string, 4)
	signal.Notify(incoming, forwardedSignals...)
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		interrupts, latest := 0, time.Time{}
		for {
			select {
			case <-done:
				return
			case sig := <-incoming:
				name := signalName(sig)
				if name == "INT" {
					if time.Since(latest) > interruptsInARow {
						interrupts = 0
					}
					interrupts, latest = interrupts+1, time.Now()
				}
				if interrupts >= 3 {
					a.note("vendetta: interrupted three times; the command is left to itself: vendetta workspace kill %s %s", s.workspace, s.process)
					s.leave(exitStatus(130))
					return
				}
				select {
				case names <- name:
				case <-done:
					return
				}
			}
		}
	}()
	s.options.Signals = names
	s.cleanup = append(s.cleanup, func() {
		signal.Stop(incoming)
		close(done)
		<-finished
	})
}

func newWorkspacePS(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ps NAME", Short: "List the processes started in a workspace", Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.Guest(args[0]).Processes.ListProcesses(cmd.Context(), &guestv1.ListProcessesRequest{Running: !all})
			if err != nil {
				return err
			}
			t := table{
				header:  []string{"PROCESS", "STATE", "EXIT", "STARTED", "OUTPUT", "COMMAND"},
				message: list, empty: "no process runs; --all shows the ended ones too",
			}
			for _, p := range list.GetProcesses() {
				code := "-"
				if s := p.GetState(); s == guestv1.ProcessState_PROCESS_STATE_EXITED || s == guestv1.ProcessState_PROCESS_STATE_SIGNALLED {
					code = strconv.Itoa(int(p.GetExitCode()))
				}
				t.rows = append(t.rows, []string{
					p.GetId(), enumWord(p.GetState(), "PROCESS_STATE_"), code,
					age(time.Now(), p.GetStartedAt()), size(p.GetOutputBytes()), commandText(p.GetArgv()),
				})
			}
			return a.print(t)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "ended processes too")
	return cmd
}

// commandText shows an argv in one line, quoted where words would run together.
func commandText(argv []string) string {
	words := make([]string, len(argv))
	for i, arg := range argv {
		words[i] = arg
		if arg == "" || strings.ContainsAny(arg, " \t\n\"'") {
			words[i] = strconv.Quote(arg)
		}
	}
	text := strings.Join(words, " ")
	if runes := []rune(text); len(runes) > 60 {
		text = string(runes[:57]) + "..."
	}
	return text
}

func newWorkspaceLogs(a *app) *cobra.Command {
	var follow bool
	var tail uint64
	cmd := &cobra.Command{
		Use: "logs NAME PROCESS", Short: "Show what a process wrote", Args: exactArgs(2), ValidArgsFunction: a.completeProcesses,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			_, err = c.Guest(args[0]).Attach(cmd.Context(),
				&guestv1.AttachRequest{ProcessId: args[1], TailBytes: tail, Follow: follow},
				client.RunOptions{Stdout: a.out, Stderr: a.err, OnGap: func(_, bytes uint64) {
					a.note("vendetta: %d bytes of output were dropped here; there was no room to keep them until they were read", bytes)
				}})
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the process ends")
	cmd.Flags().Uint64Var(&tail, "tail", 0, "only the last so many bytes (default all)")
	return cmd
}

func newWorkspaceKill(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "kill NAME PROCESS", Short: "Send a signal to a process", Args: exactArgs(2), ValidArgsFunction: a.completeProcesses,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			done, err := c.Guest(args[0]).Processes.Signal(cmd.Context(), &guestv1.SignalRequest{
				ProcessId: args[1], Signal: strings.TrimPrefix(strings.ToUpper(name), "SIG"),
			})
			if err != nil {
				return err
			}
			return a.result(args[1], done)
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "TERM", "signal to send, e.g. INT, TERM, KILL")
	return cmd
}

func (a *app) completeProcesses(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeWorkspaces(cmd, args, toComplete)
	}
	c, err := a.connectForCompletion()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := c.Guest(args[0]).Processes.ListProcesses(cmd.Context(), &guestv1.ListProcessesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, p := range list.GetProcesses() {
		ids = append(ids, p.GetId()+"\t"+commandText(p.GetArgv()))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
