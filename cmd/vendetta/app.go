package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

// app is what every command shares: the streams, the environment, and where
// the server is found.
type app struct {
	in     io.Reader
	out    io.Writer
	err    io.Writer
	getenv func(string) string

	stateDir string
	format   string
	json     bool
	quiet    bool
	verbose  bool

	// starting is held while a crashed server is started again.
	starting sync.Mutex

	// connect returns a client of the server, which is started when none runs.
	connect func(context.Context) (*client.Client, error)
}

func newApp(in io.Reader, out, errOut io.Writer, getenv func(string) string) *app {
	a := &app{in: in, out: out, err: errOut, getenv: getenv}
	a.connect = a.connectServer
	return a
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, a *app, args []string) int {
	root := newRoot(a) //nolint:contextcheck // cobra hands ctx to each command
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	a.printError(err)
	code := exitCode(err)
	if cmd != nil && cmd.Annotations[annotationPassesExitCode] != "" {
		return exitOwnFailure
	}
	return code
}

// exitStatus is the exit code of a command that ran in a workspace; it is passed
// on as it is and nothing is printed.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// exitOwnFailure is the exit code of exec and shell when vendetta itself failed,
// as docker has it, so that it is not taken for the command's.
const exitOwnFailure = 125

const annotationPassesExitCode = "passes-exit-code"

// exitCodes is the table from error codes to exit codes; what is not listed is 1.
var exitCodes = map[api.Code]int{
	api.InvalidArgument:    2,
	api.NotFound:           3,
	api.AlreadyExists:      4,
	api.Conflict:           4,
	api.FailedPrecondition: 5,
	api.Unavailable:        6,
	api.DeadlineExceeded:   6,
	api.PermissionDenied:   7,
	api.Unauthenticated:    7,
	api.ResourceExhausted:  8,
}

func exitCode(err error) int {
	if code, ok := exitCodes[api.CodeOf(err)]; ok {
		return code
	}
	return 1
}

func (a *app) printError(err error) {
	e := api.From(err)
	_, _ = fmt.Fprintf(a.err, "vendetta: %s\n", printableLines(e.Message))
	if e.Next != "" {
		_, _ = fmt.Fprintf(a.err, "  next: %s\n", printable(e.Next))
	}
}

// note tells a person something on stderr, unless asked to be quiet.
func (a *app) note(format string, args ...any) {
	if a.quiet {
		return
	}
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = printable(text)
		}
	}
	_, _ = fmt.Fprintf(a.err, format+"\n", args...)
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "vendetta",
		Short: "Isolated workspaces on your own machines, for AI agents and people",
		Long: `vendetta runs the work of an AI agent in isolated workspaces on machines that
you own. The agent stays where you are and reaches the workspaces over MCP
(vendetta mcp); you reach the same workspaces with the commands below.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       api.Version,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.prepare()
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.stateDir, "state-dir", "", "folder for all state (default $VENDETTA_STATE_DIR, else ~/.local/state/vendetta)")
	flags.StringVarP(&a.format, "output", "o", "table", "output format: table, json or yaml")
	flags.BoolVar(&a.json, "json", false, "same as -o json")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print names only, and no notes")
	flags.BoolVar(&a.verbose, "verbose", false, "log debug messages to stderr")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return api.Errorf(api.InvalidArgument, "%s: %w", cmd.CommandPath(), err).WithNext("%s --help", cmd.CommandPath())
	})
	holdCommands(root,
		newServer(a), newNode(a), newWorkspace(a), newImage(a), newMCP(a), newDoctor(a), newNodeAgent(a),
	)
	return root
}

func (a *app) prepare() error {
	if a.json {
		a.format = "json"
	}
	switch a.format {
	case "table", "json", "yaml":
	default:
		return api.Errorf(api.InvalidArgument, "output format %q: use table, json or yaml", a.format)
	}
	if a.stateDir == "" {
		a.stateDir = a.getenv("VENDETTA_STATE_DIR")
	}
	if a.stateDir == "" {
		base := a.getenv("XDG_STATE_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return api.Errorf(api.FailedPrecondition, "state folder: %w", err).WithNext("set VENDETTA_STATE_DIR")
			}
			base = filepath.Join(home, ".local", "state")
		}
		a.stateDir = filepath.Join(base, "vendetta")
	}
	abs, err := filepath.Abs(a.stateDir)
	if err != nil {
		return api.Errorf(api.InvalidArgument, "state folder %s: %w", a.stateDir, err)
	}
	a.stateDir = abs
	if n := len(a.serverSocket()); n > maxSocketPath {
		return api.Errorf(api.InvalidArgument, "state folder %s: its socket path has %d bytes, the system allows %d", abs, n, maxSocketPath).
			WithNext("use a shorter folder with --state-dir")
	}
	return nil
}

// maxSocketPath is sun_path of unix(7) without its final zero.
const maxSocketPath = 107

func (a *app) serverDir() string    { return filepath.Join(a.stateDir, "server") }
func (a *app) serverSocket() string { return filepath.Join(a.serverDir(), "server.sock") }
func (a *app) agentDir() string     { return filepath.Join(a.stateDir, "agent") }

func (a *app) logger(w io.Writer) *slog.Logger {
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// dialServer opens one stream to the running server.
func (a *app) dialServer(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", a.serverSocket())
}

// terminal returns the file behind a stream when it is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// exactArgs is cobra.ExactArgs with a sentence that shows the usage.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return usageError(cmd, "takes %d argument(s), got %d", n, len(args))
	}
}

func minArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return usageError(cmd, "takes at least %d argument(s), got %d", n, len(args))
	}
}

func usageError(cmd *cobra.Command, format string, args ...any) error {
	return api.Errorf(api.InvalidArgument, "%s: %s", cmd.CommandPath(), fmt.Sprintf(format, args...)).
		WithNext("%s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	holdCommands(cmd, commands...)
	return cmd
}

// holdCommands makes cmd a command that shows its help and names what it takes
// for an unknown one.
func holdCommands(cmd *cobra.Command, commands ...*cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		e := api.Errorf(api.InvalidArgument, "%s: there is no command %q", cmd.CommandPath(), args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return e.WithNext("%s %s", cmd.CommandPath(), near[0])
		}
		return e.WithNext("%s --help", cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(commands...)
}
