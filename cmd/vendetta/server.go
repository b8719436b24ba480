package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

func newServer(a *app) *cobra.Command {
	return group("server", "The coordination server of this machine", newServerStart(a), newServerStatus(a), newServerStop(a))
}

func newServerStart(a *app) *cobra.Command {
	var foreground bool
	cmd := &cobra.Command{
		Use: "start", Short: "Start the server; any other command does so too when none runs", Args: exactArgs(0),
		Long: `Starts the coordination server as a background daemon. It listens on a unix
socket that only you can open, and on nothing else.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if foreground {
				return a.serve(cmd.Context())
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			status, err := c.Server.ServerStatus(cmd.Context(), &vendettav1.ServerStatusRequest{Protocol: api.Protocol})
			if err != nil {
				return err
			}
			return a.print(a.serverTable(status))
		},
	}
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in the foreground and log to stderr")
	return cmd
}

func newServerStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the server", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.runningServer(cmd.Context())
			if err != nil {
				return err
			}
			status, err := c.Server.ServerStatus(cmd.Context(), &vendettav1.ServerStatusRequest{Protocol: api.Protocol})
			if err != nil {
				return err
			}
			return a.print(a.serverTable(status))
		},
	}
}

func (a *app) serverTable(s *vendettav1.ServerStatusResponse) table {
	return table{
		header: []string{"FIELD", "VALUE"},
		rows: [][]string{
			{"state", "running"},
			{"version", s.GetVersion()},
			{"protocol", strconv.Itoa(int(s.GetProtocol()))},
			{"pid", strconv.Itoa(int(s.GetPid()))},
			{"started", age(time.Now(), s.GetStartedAt()) + " ago"},
			{"socket", a.serverSocket()},
			{"log", a.serverLog()},
			{"nodes", strconv.Itoa(int(s.GetNodes()))},
			{"workspaces", strconv.Itoa(int(s.GetWorkspaces()))},
		},
		message: s,
	}
}

func newServerStop(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "Stop the server; node agents, workspaces and commands go on", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.runningServer(cmd.Context())
			if err != nil {
				if api.CodeOf(err) == api.Unavailable {
					a.note("the server does not run")
					return nil
				}
				return err
			}
			if _, err := c.Server.Shutdown(cmd.Context(), &vendettav1.ShutdownRequest{}); err != nil {
				return err
			}
			return a.awaitServer(cmd.Context(), false)
		},
	}
}

func (a *app) serverLog() string { return filepath.Join(a.serverDir(), "server.log") }

// runningServer is a client of the server if one runs.
func (a *app) runningServer(ctx context.Context) (*client.Client, error) {
	conn, err := a.dialServer(ctx)
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "server: none runs (%w)", err).WithNext("vendetta server start")
	}
	_ = conn.Close()
	return client.New(a.dialServer), nil
}

// connectForCompletion never starts a server: pressing Tab must change nothing.
func (a *app) connectForCompletion() (*client.Client, error) {
	if err := a.prepare(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(a.serverSocket()); err != nil {
		return nil, err
	}
	return client.New(a.dialServer), nil
}

// connectServer is a client of the server, which is started when none runs.
func (a *app) connectServer(ctx context.Context) (*client.Client, error) {
	c, err := a.runningServer(ctx)
	if err == nil {
		return c, nil
	}
	if err := a.startServer(ctx); err != nil {
		return nil, err
	}
	return client.New(a.dialServer), nil
}

const serverStartCeiling = 15 * time.Second

// startServer starts this program once more as a daemon and waits for its socket.
func (a *app) startServer(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return api.Errorf(api.Internal, "start the server: %w", err)
	}
	if err := os.MkdirAll(a.serverDir(), 0o700); err != nil {
		return api.Errorf(api.FailedPrecondition, "start the server: %w", err).WithNext("choose another folder with --state-dir")
	}
	log, err := os.OpenFile(a.serverLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return api.Errorf(api.FailedPrecondition, "start the server: %w", err)
	}
	defer func() { _ = log.Close() }()
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return api.Errorf(api.Internal, "start the server: %w", err)
	}
	// The server must outlive this command, so ctx does not reach it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "server", "start", "--foreground", "--state-dir", a.stateDir)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = detached()
	if err := cmd.Start(); err != nil {
		return api.Errorf(api.Internal, "start the server: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with the server or with this program
	wait, cancel := context.WithTimeout(ctx, serverStartCeiling)
	defer cancel()
	answered := make(chan error, 1)
	go func() { answered <- a.awaitServer(wait, true) }()
	select {
	case err := <-answered:
		return err
	case <-exited:
		// Another start may have won the race for the lock; then its server answers.
		cancel()
		_ = <-answered
		if _, err := a.runningServer(ctx); err == nil {
			return nil
		}
		return api.Errorf(api.FailedPrecondition, "start the server: it ended at once: %s", a.lastLogLine(begin)).
			WithNext("read %s", a.serverLog())
	}
}

// lastLogLine is what the server said last since the offset.
func (a *app) lastLogLine(since int64) string {
	data, err := os.ReadFile(a.serverLog())
	if err != nil || int64(len(data)) <= since {
		return "it left no message"
	}
	lines := strings.Split(strings.TrimSpace(string(data[since:])), "\n")
	for i := len(lines) - 1; i > 0; i-- {
		if strings.HasPrefix(lines[i], "vendetta: ") {
			return strings.TrimPrefix(lines[i], "vendetta: ")
		}
	}
	return lines[len(lines)-1]
}

// awaitServer returns when the server's socket answers, or no longer does.
func (a *app) awaitServer(ctx context.Context, running bool) error {
	ctx, cancel := context.WithTimeout(ctx, serverStartCeiling)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := a.dialServer(ctx)
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) == running {
			return nil
		}
		select {
		case <-ctx.Done():
			word := "start"
			if !running {
				word = "stop"
			}
			return api.Errorf(api.DeadlineExceeded, "%s the server: nothing happened in %s", word, serverStartCeiling).WithNext("read %s", a.serverLog())
		case <-tick.C:
		}
	}
}

// listenServer makes the server's socket. The caller holds the store's lock, so
// a socket that lies there is a dead server's.
func (a *app) listenServer(ctx context.Context) (net.Listener, error) {
	path := a.serverSocket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The folder is 0700, so nobody else can open the socket before the chmod.
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), listener.Close())
	}
	return listener, nil
}
