package mcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/vendetta-dev/vendetta/coordination/client"
)

// Calls that run at once; mcp-go's own limit is 100. A waiting exec occupies one.
const (
	workers = 64
	queue   = 1000
)

// instructions are shown to the model before any tool; clients may cut them, so
// what matters stands within the first 512 characters.
const instructions = `vendetta runs commands and edits files in isolated workspaces on the user's machines. ` +
	`workspace_create makes one (from: an absolute path of a git repository here). Use exec for commands, file_* for files; the project is at /workspace. ` +
	`A command that takes longer than wait_seconds goes on: exec then returns a process_id, and process_output waits for it. ` +
	`Calling workspace_create again with the same arguments waits on. workspace_rm deletes for good.`

// Options of a gateway.
type Options struct {
	Client *client.Client
	// Version is told to clients.
	Version string
	// Toolsets and Tools name what is offered; both empty offers everything.
	// A tool is offered when its set or its name is given.
	Toolsets []string
	Tools    []string
	// ReadOnly leaves out every tool that changes something, whatever else is named.
	ReadOnly bool
	// Logger must not write to the stream that carries the protocol.
	Logger *slog.Logger
}

// Gateway serves tools to MCP clients.
type Gateway struct {
	client  *client.Client
	log     *slog.Logger
	server  *server.MCPServer
	imports *imports
	// every is the pause between two progress messages.
	every time.Duration
}

// New makes a gateway. It fails when Options names a tool or set that is not there.
func New(o Options) (*Gateway, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	chosen, err := choose(tools(), o)
	if err != nil {
		return nil, err
	}
	g := &Gateway{client: o.Client, log: o.Logger, imports: newImports(), every: progressEvery}
	g.server = server.NewMCPServer("vendetta", o.Version,
		server.WithTitle("vendetta"),
		server.WithToolCapabilities(false),
		server.WithInstructions(instructions),
	)
	for _, t := range chosen {
		g.server.AddTool(t.definition(), func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return g.call(ctx, t, r), nil
		})
	}
	return g, nil
}

// choose applies the options to the table.
func choose(all []*tool, o Options) ([]*tool, error) {
	var sets, names []string
	for _, t := range all {
		names = append(names, t.name)
		if !slices.Contains(sets, t.set) {
			sets = append(sets, t.set)
		}
	}
	if err := known("toolset", o.Toolsets, sets); err != nil {
		return nil, err
	}
	if err := known("tool", o.Tools, names); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(t *tool) bool {
		named := slices.Contains(o.Toolsets, t.set) || slices.Contains(o.Tools, t.name)
		return len(o.Toolsets)+len(o.Tools) > 0 && !named || o.ReadOnly && !t.readOnly
	}), nil
}

func known(kind string, given, valid []string) error {
	for _, name := range given {
		if !slices.Contains(valid, name) {
			return fmt.Errorf("unknown %s %q: there are %s", kind, name, strings.Join(valid, ", "))
		}
	}
	return nil
}

// ServeStdio answers one client until in ends or ctx is done, and writes nothing
// but the protocol to out. After the end of in, calls that run get a few seconds to
// answer. It returns nil in both cases; commands in workspaces go on.
func (g *Gateway) ServeStdio(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer g.imports.wait()
	defer cancel()
	g.imports.begin(ctx)
	pending := newPending()
	s := server.NewStdioServer(g.server)
	for _, option := range []server.StdioOption{
		server.WithErrorLogger(slog.NewLogLogger(g.log.Handler(), slog.LevelWarn)),
		server.WithWorkerPoolSize(workers),
		server.WithQueueSize(queue),
	} {
		option(s)
	}
	err := s.Listen(ctx, pending.input(ctx, in), pending.output(out))
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
