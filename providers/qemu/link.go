//go:build linux

package qemu

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Connect dials the port on which the guest serves. Bytes wait there until the
// guest has opened it.
func (p *Provider) Connect(ctx context.Context, ws string) (net.Conn, error) {
	if _, _, err := p.running("connect", ws); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, failed("connect", ws, err)
	}
	p.hangUp(ws) // QEMU takes one holder at a time
	conn, err := p.dial(ctx, ws, linkSocket)
	if err != nil {
		return nil, failed("connect", ws, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if earlier := p.links[ws]; earlier != nil { // one that came between
		_ = earlier.Close()
	}
	p.links[ws] = conn
	return conn, nil
}

// hangUp closes the stream to a guest, if one is held.
func (p *Provider) hangUp(ws string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn := p.links[ws]; conn != nil {
		_ = conn.Close() // its holder may have closed it
		delete(p.links, ws)
	}
}

// dial dials one of the machine's sockets, whatever the length of its path.
func (p *Provider) dial(ctx context.Context, ws, socket string) (net.Conn, error) {
	folder, err := os.Open(p.instanceDir(ws))
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }() // only a name for the socket
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), socket))
}

// say writes words to the machine's control port. They are read for as long as
// what it returns stays open.
func (p *Provider) say(ctx context.Context, ws, words string) (io.Closer, error) {
	conn, err := p.dial(ctx, ws, controlSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, words); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// consoleKept is how much of a console is kept on disk, consoleTold what people get.
const (
	consoleKept = 64 << 10
	consoleTold = 4 << 10
)

// Console returns the last lines of the machine's serial console.
func (p *Provider) Console(ctx context.Context, ws string) string {
	if checkID("console", ws) != nil {
		return ""
	}
	path := filepath.Join(p.instanceDir(ws), consoleFile)
	kept, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	// Reading takes it out of QEMU's memory, so it is added to what was read before.
	if fresh := p.readConsole(ctx, ws); len(fresh) > 0 {
		kept = last(append(kept, fresh...), consoleKept)
		if err := os.WriteFile(path, kept, 0o600); err != nil {
			p.log.Warn("keep the console", "workspace", ws, "error", err)
		}
	}
	return string(last(kept, consoleTold))
}

func last(b []byte, most int) []byte { return b[max(0, len(b)-most):] }

func (p *Provider) readConsole(ctx context.Context, ws string) []byte {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	var said string
	err := p.command(ctx, ws, "ringbuf-read", map[string]any{"device": "console", "size": consoleBytes, "format": "base64"}, &said)
	if err != nil {
		return nil // it has ended
	}
	raw, err := base64.StdEncoding.DecodeString(said)
	if err != nil {
		return nil
	}
	return raw
}
