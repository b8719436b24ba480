package nodeagent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
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
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen for servers: a node agent is running on %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("listen for servers: %w", err)
	}
	return listener, nil
}
