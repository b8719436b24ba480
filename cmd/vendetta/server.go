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
	"syscall"
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
			status, err := a.startedServer(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(a.serverTable(status))
		},
	}
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in the foreground and log to stderr")
	return cmd
}

// startTries bounds how many servers may end under a start.
const startTries = 5

// startedServer starts the server where none runs. One that was there a moment
// ago and is ending, or was killed, is taken for none: asking it changes nothing.
func (a *app) startedServer(ctx context.Context) (status *vendettav1.ServerStatusResponse, err error) {
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for range startTries {
		var c *client.Client
		if c, err = a.connect(ctx); err != nil {
			return nil, err
		}
		status, err = c.Server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{Protocol: api.Protocol})
		if api.CodeOf(err) != api.Unavailable {
			return status, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, err
		}
	}
	return nil, err
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
		message: s, name: "running",
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
			status, err := c.Server.ServerStatus(cmd.Context(), &vendettav1.ServerStatusRequest{Protocol: api.Protocol})
			if err != nil {
				return err
			}
			if _, err := c.Server.Shutdown(cmd.Context(), &vendettav1.ShutdownRequest{}); err != nil {
				return err
			}
			// Only when its process is gone is its state free to be used or removed.
			return a.await(cmd.Context(), "stop", func(ctx context.Context) bool {
				return !a.serverAnswers(ctx) && processEnded(int(status.GetPid()))
			})
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
	if !a.serverAnswers(ctx) {
		if err := a.startServer(ctx); err != nil {
			return nil, err
		}
	}
	return client.New(a.dialCrashed), nil
}

// dialCrashed opens one stream to the server, and starts the server when it has
// crashed, so that an open shell or gateway goes on. A server that was stopped
// took its socket with it and stays stopped.
func (a *app) dialCrashed(ctx context.Context) (net.Conn, error) {
	conn, err := a.dialServer(ctx)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return conn, err
	}
	a.starting.Lock()
	defer a.starting.Unlock()
	if !a.serverAnswers(ctx) {
		if err := a.startServer(ctx); err != nil {
			return nil, err
		}
	}
	return a.dialServer(ctx)
}

const (
	serverCeiling = 15 * time.Second
	// storeCeiling is how long another server may hold the store without answering:
	// one that is just starting, or just ending.
	storeCeiling = 5 * time.Second
)

// startServer starts the daemon until one answers, this one or that of another
// start that came first.
func (a *app) startServer(ctx context.Context) error {
	deadline := time.Now().Add(storeCeiling)
	for {
		err := a.launchServer(ctx)
		var ended *serverEndedError
		if !errors.As(err, &ended) || ended.code != exitCodes[api.FailedPrecondition] || time.Now().After(deadline) {
			return err
		}
	}
}

// serverEndedError says that the daemon ended instead of answering.
type serverEndedError struct{ code int }

func (e *serverEndedError) Error() string {
	return fmt.Sprintf("the server ended with exit code %d", e.code)
}

// launchServer starts this program once more as a daemon and waits for its socket.
func (a *app) launchServer(ctx context.Context) error {
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
	exited := make(chan struct{})
	go func() { // ends with the server or with this program
		_ = cmd.Wait()
		close(exited)
	}()
	ended := func() bool {
		select {
		case <-exited:
			return true
		default:
			return false
		}
	}
	// Another start may have won the race for the store; then its server answers.
	answers := false
	err = a.await(ctx, "start", func(ctx context.Context) bool {
		over := ended()
		answers = a.serverAnswers(ctx)
		return answers || over
	})
	if err != nil || answers {
		return err
	}
	e := api.Errorf(api.FailedPrecondition, "start the server: it ended at once: %s", a.lastLogLine(begin)).WithNext("read %s", a.serverLog())
	e.Cause = &serverEndedError{code: cmd.ProcessState.ExitCode()}
	return e
}

// lastLogLine is what the server said last since the offset.
func (a *app) lastLogLine(since int64) string {
	data, err := os.ReadFile(a.serverLog())
	if err != nil || int64(len(data)) <= since {
		return "it left no message"
	}
	lines := strings.Split(strings.TrimSpace(string(data[since:])), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.HasPrefix(lines[i], "vendetta: ") {
			return strings.TrimPrefix(lines[i], "vendetta: ")
		}
	}
	return lines[len(lines)-1]
}

// serverAnswers tells whether somebody listens on the server's socket.
func (a *app) serverAnswers(ctx context.Context) bool {
	conn, err := a.dialServer(ctx)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// await asks until what is to happen to the server has.
func (a *app) await(ctx context.Context, verb string, happened func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, serverCeiling)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !happened(ctx) {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return api.Errorf(api.Unavailable, "%s the server: not waited for to the end", verb).WithNext("vendetta server status")
			}
			return api.Errorf(api.DeadlineExceeded, "%s the server: nothing happened in %s", verb, serverCeiling).WithNext("read %s", a.serverLog())
		case <-tick.C:
		}
	}
	return nil
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
