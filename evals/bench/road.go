//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	mcpclient "github.com/mark3labs/mcp-go/client"
	mcptransport "github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/transport/ssh"
	"github.com/vendetta-dev/vendetta/transport/ssh/keys"
)

// roads are the ways into a workspace: all of vendetta, without MCP, and without
// MCP and server.
type roads struct {
	bed    *bed
	mcp    *mcpclient.Client
	way    *ssh.Transport
	direct guestv1connect.ProcessServiceClient
}

func newRoads(ctx context.Context, b *bed) (*roads, error) {
	r := &roads{bed: b}
	if err := r.startMCP(ctx); err != nil {
		return r, err
	}
	return r, r.startDirect(ctx)
}

func (r *roads) close() {
	if r.mcp != nil {
		_ = r.mcp.Close()
	}
	if r.way != nil {
		_ = r.way.Close()
	}
}

func (r *roads) startMCP(ctx context.Context) (err error) {
	r.mcp, err = mcpclient.NewStdioMCPClientWithOptions(r.bed.program, r.bed.env, []string{"mcp"},
		mcptransport.WithCommandFunc(func(ctx context.Context, command string, env, args []string) (*exec.Cmd, error) {
			cmd := exec.CommandContext(ctx, command, args...)
			cmd.Env = env
			return cmd, nil
		}))
	if err != nil {
		return fmt.Errorf("start the gateway: %w", err)
	}
	hello := mcp.InitializeRequest{}
	hello.Params.ProtocolVersion = mcp.LATEST_PROTOCOL_VERSION
	hello.Params.ClientInfo = mcp.Implementation{Name: "bench", Version: "1"}
	if _, err := r.mcp.Initialize(ctx, hello); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	return nil
}

// whole runs `true` the way an AI's client does: the MCP tool exec.
func (r *roads) whole(ctx context.Context, workspace string) error {
	req := mcp.CallToolRequest{}
	req.Params.Name = "exec"
	req.Params.Arguments = map[string]any{"workspace": workspace, "argv": []string{"true"}}
	result, err := r.mcp.CallTool(ctx, req)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, c := range result.Content {
		if t, ok := c.(mcp.TextContent); ok {
			text.WriteString(t.Text)
		}
	}
	if result.IsError || !strings.Contains(text.String(), "exit_code: 0") {
		return fmt.Errorf("exec answered: %s", text.String())
	}
	return nil
}

func processID() string { return "b" + strings.ToLower(rand.Text()[:12]) }

// server runs a command by the server's API.
func (r *roads) server(ctx context.Context, workspace string, argv ...string) error {
	return r.start(ctx, r.bed.client.Guest(workspace).Processes, argv...)
}

// agent runs a command by the node agent's API, over an SSH connection of its own.
func (r *roads) agent(ctx context.Context, argv ...string) error {
	return r.start(ctx, r.direct, argv...)
}

// start starts a command and reads its events to the end.
func (r *roads) start(ctx context.Context, processes guestv1connect.ProcessServiceClient, argv ...string) error {
	s, err := processes.Start(ctx, &guestv1.StartRequest{ProcessId: processID(), Argv: argv})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	var last *guestv1.Process
	for s.Receive() {
		if e := s.Msg().GetEnded(); e != nil {
			last = e
		}
	}
	if err := s.Err(); err != nil {
		return err
	}
	if last.GetState() != guestv1.ProcessState_PROCESS_STATE_EXITED || last.GetExitCode() != 0 {
		return errors.New("the command did not end as it should: " + last.String())
	}
	return nil
}

// startDirect reaches the node agent as the server does, with the server's key.
func (r *roads) startDirect(ctx context.Context) error {
	w, err := r.bed.client.Workspaces.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: near})
	if err != nil {
		return err
	}
	key, err := keys.Find(filepath.Join(r.bed.state, "server", "id_ed25519"), "")
	if err != nil {
		return err
	}
	m := r.bed.nodes[near]
	r.way, err = ssh.New(ssh.Options{
		Name: near, Host: m.sshd.Host, User: m.sshd.User, Port: m.sshd.Port, LocalUser: m.sshd.User,
		Socket: filepath.Join(m.state, "agent", "agent.sock"), HostKeys: []string{m.sshd.Fingerprint}, Key: key,
	})
	if err != nil {
		return err
	}
	kept := wire.NewTransport(func(ctx context.Context) (net.Conn, error) { return r.way.Dial(ctx) })
	r.direct = guestv1connect.NewProcessServiceClient(
		&http.Client{Transport: asServer{kept, r.bed.serverID}},
		wire.BaseURL+"/workspaces/"+w.GetId()+"/guest",
		connect.WithAcceptCompression("gzip", nil, nil))
	return nil
}

// asServer names the server on whose behalf the node agent is asked.
type asServer struct {
	next http.RoundTripper
	id   string
}

func (t asServer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(api.ServerHeader, t.id)
	return t.next.RoundTrip(r)
}

// fork is the floor below everything: this machine starting `true`.
func fork(ctx context.Context) error { return exec.CommandContext(ctx, "/bin/true").Run() }
