package transporttest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// agent stands in for a node agent: it serves each connection on a socket.
type agent struct {
	listener *net.UnixListener
	serve    func(*net.UnixConn)

	mu    sync.Mutex
	conns []*net.UnixConn
	wg    sync.WaitGroup
}

// listen starts an agent that ends with the test.
func listen(t *testing.T, path string, serve func(*net.UnixConn)) *agent {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(t, "listen", err)
	a := &agent{listener: l, serve: serve}
	a.wg.Go(a.accept)
	t.Cleanup(a.stop)
	return a
}

func (a *agent) accept() {
	for {
		conn, err := a.listener.AcceptUnix()
		if err != nil {
			return
		}
		a.mu.Lock()
		a.conns = append(a.conns, conn)
		a.mu.Unlock()
		a.wg.Go(func() {
			defer func() { _ = conn.Close() }()
			a.serve(conn)
		})
	}
}

// stop ends the agent and its connections.
func (a *agent) stop() {
	_ = a.listener.Close()
	a.mu.Lock()
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

// echo sends back what comes, then ends.
func echo(conn *net.UnixConn) {
	_, _ = io.Copy(conn, conn)
}
