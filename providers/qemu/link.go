//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Connect dials the port on which the guest serves. Bytes wait there until the
// guest has opened it.
func (p *Provider) Connect(ctx context.Context, ws string) (net.Conn, error) {
	if _, err := p.running("connect", ws); err != nil {
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

// say writes a word to the machine's control port. It is read for as long as what
// say returns stays open.
func (p *Provider) say(ctx context.Context, ws, word string, more ...string) (*words, error) {
	conn, err := p.dial(ctx, ws, controlSocket)
	if err != nil {
		return nil, err
	}
	w := &words{Conn: conn, number: strconv.FormatUint(uint64(rand.Uint32()), 10)} //nolint:gosec // it only has to be another one
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	line := strings.Join(append([]string{word, w.number}, more...), " ") + "\n"
	if _, err := io.WriteString(conn, line); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return w, nil
}

// words are said to a machine, which answers with their number.
type words struct {
	net.Conn
	number string
}

// answer waits for the machine's answer. What is left of an earlier conversation
// is skipped.
func (w *words) answer(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = w.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	lines := bufio.NewScanner(w)
	lines.Buffer(make([]byte, 0, 4096), 4096)
	for lines.Scan() {
		verdict, rest, _ := strings.Cut(lines.Text(), " ")
		number, why, _ := strings.Cut(rest, " ")
		switch {
		case number != w.number:
		case verdict == "done":
			return nil
		case verdict == "failed":
			return fmt.Errorf("the guest says: %q", why)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the guest does not answer: %w", lines.Err())
}

// tell says a word and waits for the answer.
func (p *Provider) tell(ctx context.Context, ws, word string, more ...string) error {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	w, err := p.say(ctx, ws, word, more...)
	if err != nil {
		return err
	}
	return errors.Join(w.answer(ctx), w.Close())
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
