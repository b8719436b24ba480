package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// SocketPath is where the agent of a state directory listens.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, "agent.sock") }

// Listen opens the agent's socket, for its user alone. A socket that nobody
// listens on any more is replaced; one that somebody does is an error.
func Listen(stateDir string) (net.Listener, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	path := SocketPath(stateDir)
	address := &net.UnixAddr{Name: path, Net: "unix"}
	if conn, err := net.DialUnix("unix", nil, address); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen for servers: a node agent is running on %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	listener, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	return listener, nil
}

// startCeilingDaemon bounds the time until a started agent answers.
const startCeilingDaemon = 15 * time.Second

// StartOptions say what Start runs.
type StartOptions struct {
	// Program is the absolute path of this program.
	Program string
	// Args make it supervise an agent on StateDir; empty means
	// nodeagent supervise --state-dir STATEDIR.
	Args     []string
	StateDir string
}

// Start sees to it that a supervised agent of this very program runs, and
// returns its socket. An agent of another program, of an earlier version say, is
// ended and replaced; instances go on meanwhile. The supervisor has a session of
// its own and writes to agent.log.
func Start(ctx context.Context, o StartOptions) (socket string, err error) {
	socket = SocketPath(o.StateDir)
	ctx, cancel := context.WithTimeout(ctx, startCeilingDaemon)
	defer cancel()
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return "", fmt.Errorf("start node agent: %w", err)
	}
	// One Start at a time: two would end each other's agents.
	turn, err := awaitTurn(ctx, filepath.Join(o.StateDir, "start.lock"))
	if err != nil {
		return "", fmt.Errorf("start node agent: %w", err)
	}
	defer func() { _ = turn.Close() }()
	sum, err := checksum(o.Program)
	if err != nil {
		return "", fmt.Errorf("start node agent: %w", err)
	}
	had, _ := os.ReadFile(filepath.Join(o.StateDir, programName))
	if supervised(o.StateDir) {
		if string(had) == sum {
			return socket, awaitAlive(ctx, o.StateDir, nil)
		}
		if err := endSupervised(ctx, o.StateDir); err != nil {
			return "", err
		}
	}
	supervisor, err := spawn(o)
	if err != nil {
		return "", fmt.Errorf("start node agent: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- supervisor.Wait() }()
	return socket, awaitAlive(ctx, o.StateDir, exited)
}

// endSupervised ends an agent of another program, once it answers at all.
func endSupervised(ctx context.Context, stateDir string) error {
	if err := awaitAlive(ctx, stateDir, nil); err != nil {
		return err
	}
	return Stop(ctx, stateDir)
}

func awaitTurn(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := takeLock(path)
		if !errors.Is(err, ErrSupervised) {
			return f, err
		}
		if !wait(ctx, 20*time.Millisecond) {
			return nil, errors.New("another start is under way and does not end")
		}
	}
}

// lastLines of the log are searched for why an agent does not start.
const lastLines = 5

// spawn starts the supervisor apart from this process.
func spawn(o StartOptions) (*exec.Cmd, error) {
	args := o.Args
	if len(args) == 0 {
		args = []string{"nodeagent", "supervise", "--state-dir", o.StateDir}
	}
	log, err := os.OpenFile(filepath.Join(o.StateDir, logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	supervisor := exec.Command(o.Program, args...) //nolint:noctx // it outlives every context of this process
	supervisor.Stdout, supervisor.Stderr = log, log
	supervisor.Dir = o.StateDir
	detach(supervisor)
	return supervisor, supervisor.Start()
}

// awaitAlive waits until the agent answers or its supervisor has ended.
func awaitAlive(ctx context.Context, stateDir string, exited <-chan error) error {
	for !Alive(ctx, SocketPath(stateDir)) {
		next, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		select {
		case err := <-exited:
			cancel()
			return &api.Error{
				Code:    api.Unavailable,
				Message: "start node agent: its supervisor ended: " + lastLine(ctx, stateDir),
				Next:    "the whole story is in " + filepath.Join(stateDir, logName),
				Cause:   err,
			}
		case <-next.Done():
			cancel()
		}
		if ctx.Err() != nil {
			return &api.Error{
				Code:    api.DeadlineExceeded,
				Message: "start node agent: it does not answer: " + lastLine(ctx, stateDir),
				Next:    "the whole story is in " + filepath.Join(stateDir, logName),
				Cause:   ctx.Err(),
			}
		}
	}
	return nil
}

// lastLine is the end of the log, for a message.
func lastLine(ctx context.Context, stateDir string) string {
	var tail []byte
	err := readLog(context.WithoutCancel(ctx), stateDir, lastLines, false, 0, func(data []byte) error {
		tail = append(tail, data...)
		return nil
	})
	lines := strings.Split(strings.TrimSpace(string(tail)), "\n")
	if err != nil || lines[len(lines)-1] == "" {
		return "its log is empty"
	}
	// A program that gave up said why in a line of its own; the supervisor's words
	// and the next step may stand behind it.
	for i := len(lines) - 1; i >= 0; i-- {
		if why, found := strings.CutPrefix(lines[i], "vendetta: "); found {
			return why
		}
	}
	return lines[len(lines)-1]
}
