//go:build linux

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// standIn answers on a machine's monitor in a QEMU's place, by command.
func standIn(t *testing.T, answers map[string]string) *Provider {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	p := New(Options{ServerID: "s", StateDir: dir})
	if err := os.MkdirAll(p.instanceDir("abc"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(p.instanceDir("abc"), monitorSocket))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serveMonitor(conn, answers)
		}
	}()
	t.Cleanup(func() {
		err := l.Close()
		<-ended
		if err = errors.Join(err, p.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return p
}

func serveMonitor(conn net.Conn, answers map[string]string) {
	defer func() { _ = conn.Close() }()
	if answers["greeting"] == "none" {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}`)
	lines := json.NewDecoder(conn)
	for {
		var c struct{ Execute string }
		if lines.Decode(&c) != nil {
			return
		}
		answer, known := answers[c.Execute]
		switch {
		case answer == "silence":
		case known:
			fmt.Fprintln(conn, answer)
		default:
			fmt.Fprintln(conn, `{"return": {}}`)
		}
	}
}

func TestMonitorFails(t *testing.T) {
	ctx := t.Context()
	if _, err := New(Options{StateDir: t.TempDir()}).status(ctx, "abc"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a machine: %v", err)
	}
	p := standIn(t, map[string]string{
		"query-status":  `{"return": {"status": "running"}}`,
		"stop":          `{"error": {"class": "GenericError", "desc": "no way"}}`,
		"ringbuf-read":  `{"return": "!"}`,
		"cont":          "silence",
		"query-jobs":    `{"return": [{"id": "snapshot-save", "status": "concluded", "error": "no room"}, {"id": "other"}]}`,
		"query-migrate": `{"return": {"status": "failed", "error-desc": "no peer"}}`,
	})
	if s, err := p.status(ctx, "abc"); err != nil || s != "running" {
		t.Errorf("%s, %v", s, err)
	}
	if err := p.command(ctx, "abc", "stop", nil, nil); err == nil || !strings.Contains(err.Error(), "no way") {
		t.Error(err)
	}
	var number int
	if err := p.command(ctx, "abc", "query-status", nil, &number); err == nil {
		t.Error("a number was read from a status")
	}
	if err := p.command(ctx, "abc", "x", make(chan int), nil); err == nil {
		t.Error("a channel was sent")
	}
	if raw := p.readConsole(ctx, "abc"); raw != nil {
		t.Errorf("a console of %q", raw)
	}
	if err := p.job(ctx, "abc", "snapshot-save", map[string]any{}); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
	if err := p.sent(ctx, "abc"); err == nil || !strings.Contains(err.Error(), "no peer") {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := p.command(short, "abc", "cont", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that is not answered: %v", err)
	}
	waiting, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := p.await(waiting, "abc", func(string) (bool, error) { return false, nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := p.cont(ctx, "abc"); err != nil { // it runs already
		t.Error(err)
	}
	if err := p.tell(short, "abc", "grow"); err == nil {
		t.Error("told a machine without a control port")
	}
}

func TestMonitorThatDoesNotGreet(t *testing.T) {
	p := standIn(t, map[string]string{"greeting": "none"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.status(ctx, "abc"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestCommandsAreJSON(t *testing.T) {
	if got := node(map[string]any{"driver": "raw"}); !json.Valid([]byte(got)) {
		t.Error(got)
	}
}
