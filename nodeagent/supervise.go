package nodeagent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

const (
	// alivePath answers without a server's id, to those who ask whether an agent runs.
	alivePath = "/alive"
	// lockName is held by the supervisor, so that there is one; it contains its pid.
	lockName = "lock"
	// programName holds the checksum of the program that the supervisor runs.
	programName = "program.sha256"
	// callerName is in place of a server's id in calls from this machine.
	callerName = "local"
)

// Pauses before an agent that ended is started again; one that ran for
// crashStable begins with the first.
const (
	crashPause    = time.Second
	crashPauseMax = 30 * time.Second
	crashStable   = time.Minute
)

// SuperviseOptions say what a supervisor runs.
type SuperviseOptions struct {
	// Program is the absolute path of this program.
	Program string
	// Args make it run the agent on StateDir: nodeagent run --state-dir DIR.
	Args     []string
	StateDir string
	Logger   *slog.Logger

	pause, pauseMax time.Duration
}

// ErrSupervised says that another supervisor holds the state directory.
var ErrSupervised = errors.New("a node agent is supervised there already")

// Supervise runs the agent as a child and starts it again when it crashed. It
// returns when the child ended well, as after Shutdown, or when ctx ended; the
// child is then told to end and waited for. An agent that an earlier, killed
// supervisor left behind is replaced.
func Supervise(ctx context.Context, o SuperviseOptions) error {
	if o.pause == 0 {
		o.pause, o.pauseMax = crashPause, crashPauseMax
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("supervise node agent: %w", err)
	}
	lock, err := takeLock(filepath.Join(o.StateDir, lockName))
	for tries := 0; errors.Is(err, ErrSupervised) && tries < 10 && wait(ctx, 20*time.Millisecond); tries++ {
		// Who asks whether there is a supervisor holds the lock for a moment.
		lock, err = takeLock(filepath.Join(o.StateDir, lockName))
	}
	if err != nil {
		return fmt.Errorf("supervise node agent in %s: %w", o.StateDir, err)
	}
	defer func() { _ = lock.Close() }()
	if Alive(ctx, SocketPath(o.StateDir)) {
		o.Logger.Warn("an agent without a supervisor is replaced")
		if err := Stop(ctx, o.StateDir); err != nil {
			return err
		}
	}
	sum, err := checksum(o.Program)
	if err != nil {
		return fmt.Errorf("supervise node agent: %w", err)
	}
	if err := replaceFile(filepath.Join(o.StateDir, programName), []byte(sum)); err != nil {
		return fmt.Errorf("supervise node agent: %w", err)
	}
	for failures := 0; ; {
		begun := time.Now()
		err := runChild(ctx, o)
		if err == nil || ctx.Err() != nil {
			o.Logger.Info("node agent ended")
			return nil
		}
		if time.Since(begun) > crashStable {
			failures = 0
		}
		failures++
		pause := backoff(failures, o.pause, o.pauseMax)
		o.Logger.Error("node agent crashed and is started again", "error", err, "pause", pause)
		if !wait(ctx, pause) {
			return nil
		}
	}
}

// runChild runs the agent once. Its output is the supervisor's, which is the log.
func runChild(ctx context.Context, o SuperviseOptions) error {
	child := exec.CommandContext(ctx, o.Program, o.Args...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 30 * time.Second
	return child.Run()
}

// takeLock opens path, writes our pid into it and holds it until it is closed.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := tryLock(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// supervised reports whether a supervisor holds the state directory.
func supervised(stateDir string) bool {
	f, err := os.Open(filepath.Join(stateDir, lockName))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return errors.Is(tryLock(f), ErrSupervised)
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// dialer makes streams to an agent's socket.
func dialer(socket string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
}

// Alive reports whether an agent answers on socket.
func Alive(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	client := wire.Client(dialer(socket))
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, wire.BaseURL+alivePath, nil)
	if err != nil {
		return false
	}
	res, err := client.Do(r)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusNoContent
}

// Stop ends the agent of a state directory and its supervisor, and returns when
// both have gone. Instances go on. Nothing there is success.
func Stop(ctx context.Context, stateDir string) error {
	socket := SocketPath(stateDir)
	pid := os.Getpid()
	if Alive(ctx, socket) {
		client := wire.Client(dialer(socket))
		defer client.CloseIdleConnections()
		agent := nodeagentv1connect.NewNodeAgentServiceClient(&http.Client{Transport: caller{client.Transport}}, wire.BaseURL)
		if _, err := agent.Shutdown(ctx, &nodeagentv1.ShutdownRequest{}); err != nil {
			return api.From(err)
		}
	}
	for Alive(ctx, socket) || supervised(stateDir) && holder(stateDir) != pid {
		if !wait(ctx, 20*time.Millisecond) {
			return &api.Error{Code: api.DeadlineExceeded, Message: "stop the node agent: it has not ended yet", Next: "the end of " + filepath.Join(stateDir, logName) + " says what it does"}
		}
	}
	return nil
}

// holder is the pid in the lock file, 0 when there is none.
func holder(stateDir string) int {
	data, err := os.ReadFile(filepath.Join(stateDir, lockName))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(string(data[:max(0, len(data)-1)]))
	return pid
}

// caller names this machine in place of a server.
type caller struct{ next http.RoundTripper }

func (c caller) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(api.ServerHeader, callerName)
	return c.next.RoundTrip(r)
}
