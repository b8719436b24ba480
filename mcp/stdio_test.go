package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func gateway(t testing.TB, s *clienttest.Server, o Options) *Gateway {
	t.Helper()
	o.Client, o.Version = client.New(s.Dial), "1.0.0"
	t.Cleanup(o.Client.Close)
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// session is an MCP client at the other end of a gateway's stdio.
type session struct {
	t     testing.TB
	in    *io.PipeWriter
	out   chan string
	ended chan error
}

func dial(t testing.TB, g *Gateway) *session {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	s := &session{t: t, in: inW, out: make(chan string, 10_000), ended: make(chan error, 1)}
	go func() {
		defer close(s.out)
		lines := bufio.NewScanner(outR)
		lines.Buffer(nil, 1<<24)
		for lines.Scan() {
			s.out <- lines.Text()
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		err := g.ServeStdio(ctx, inR, outW)
		_ = outW.Close()
		s.ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		_ = inW.Close()
		_ = outR.Close()
	})
	return s
}

func (s *session) send(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) receive() string {
	s.t.Helper()
	select {
	case line, ok := <-s.out:
		if !ok {
			s.t.Fatal("no more output")
		}
		return line
	case <-time.After(20 * time.Second):
		s.t.Fatal("no answer within 20 seconds")
	}
	return ""
}

var processID = regexp.MustCompile(`\bp[a-z2-7]{11}\b`)

// TestTranscripts plays conversations with clients of both eras. Lines that begin
// with -> are sent, lines with <- must come back.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/conformance/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			s := clienttest.New(t)
			s.AddNode("build1").LastHeartbeat = nil
			guest := s.AddWorkspace(t, "ws")
			if err := os.WriteFile(filepath.Join(guest.Dir, "a.txt"), []byte("a < b && c > d\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			c := dial(t, gateway(t, s, Options{Tools: []string{"node_list", "exec", "file_read"}}))
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for line := range strings.Lines(string(text)) {
				request, isRequest := strings.CutPrefix(line, "-> ")
				if !strings.HasPrefix(line, "<- ") {
					got.WriteString(line)
				}
				if !isRequest {
					continue
				}
				c.send(strings.TrimSpace(request))
				var m message
				if json.Unmarshal([]byte(request), &m) != nil || m.requestID() != "" {
					got.WriteString("<- " + processID.ReplaceAllString(c.receive(), "PROCESS") + "\n")
				}
			}
			_ = c.in.Close()
			if err := <-c.ended; err != nil {
				t.Errorf("end: %v", err)
			}
			golden(t, file, got.String())
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; if that is meant, run with -update\n got: %s\nwant: %s", file, got, want)
	}
}

// Nothing but JSON-RPC may appear on stdout, whatever goes wrong.
func TestStdoutIsPure(t *testing.T) {
	s := clienttest.New(t)
	var log bytes.Buffer
	g := gateway(t, s, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	tool := g.server.GetTool("node_list")
	if tool == nil {
		t.Fatal("no node_list")
	}
	c := dial(t, g)
	lines := []string{
		`not json`, `{}`, `[]`, `{"jsonrpc":"2.0","id":1}`, `{"jsonrpc":"2.0","id":2,"method":"no/such"}`,
		`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"no_such"}}`,
		`{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"exec","arguments":{"workspace":"none","argv":["ls"]}}}`,
		`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"exec","arguments":[1]}}`,
		`{"jsonrpc":"2.0","id":6,"method":"tools/call","params":5}`,
		"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\r",
	}
	for _, line := range lines {
		c.send(line)
	}
	_ = c.in.Close()
	answers := 0
	for line := range c.out {
		var m struct {
			JSONRPC string `json:"jsonrpc"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil || m.JSONRPC != "2.0" {
			t.Errorf("not JSON-RPC: %q", line)
		}
		if strings.Contains(line, "-32603") {
			t.Errorf("an internal error: %s", line)
		}
		answers++
	}
	if answers < len(lines)-3 {
		t.Errorf("%d answers to %d lines", answers, len(lines))
	}
}

// A request that was read before the end of the input is answered, and the end
// comes soon even when one cannot be.
func TestEndOfInput(t *testing.T) {
	s := clienttest.New(t)
	guest := s.AddWorkspace(t, "ws")
	c := dial(t, gateway(t, s, Options{}))
	c.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"exec","arguments":{"workspace":"ws","argv":["echo","hi"]}}}`)
	_ = c.in.Close()
	if line := c.receive(); !strings.Contains(line, "hi") {
		t.Errorf("answer = %s", line)
	}
	if err := <-c.ended; err != nil {
		t.Errorf("end: %v", err)
	}
	// A lost client kills no command.
	c = dial(t, gateway(t, s, Options{}))
	c.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"exec","arguments":{"workspace":"ws","argv":["wait"]}}}`)
	clienttest.Wait(t, func() bool { return guest.Starts() == 2 })
	began := time.Now()
	_ = c.in.Close()
	for line := range c.out {
		t.Logf("late answer: %s", line)
	}
	if err := <-c.ended; err != nil {
		t.Errorf("end: %v", err)
	}
	if took := time.Since(began); took > 2*afterEnd {
		t.Errorf("the end took %v", took)
	}
	if out := ok(t, gateway(t, s, Options{}), "process_list", map[string]any{"workspace": "ws", "running": true}); !strings.Contains(out, `["wait"]`) {
		t.Errorf("the command does not run: %s", out)
	}
}

// Sixty calls that wait must not keep the next from being answered.
func TestManyCallsWaitAtOnce(t *testing.T) {
	s := clienttest.New(t)
	guest := s.AddWorkspace(t, "ws")
	c := dial(t, gateway(t, s, Options{}))
	for i := range 60 {
		c.send(`{"jsonrpc":"2.0","id":` + string(encode(i)) + `,"method":"tools/call","params":{"name":"exec","arguments":{"workspace":"ws","argv":["wait"],"wait_seconds":45}}}`)
	}
	clienttest.Wait(t, func() bool { return guest.Starts() == 60 })
	c.send(`{"jsonrpc":"2.0","id":"last","method":"tools/call","params":{"name":"file_list","arguments":{"workspace":"ws"}}}`)
	if line := c.receive(); !strings.Contains(line, `"last"`) {
		t.Errorf("answer = %s", line)
	}
}

// Every progress message arrives, and before the answer of its call, in both eras.
func TestProgressComesBeforeTheAnswer(t *testing.T) {
	for era, meta := range map[string]string{
		"2025-11-25": `{"progressToken":"tok"}`,
		"2026-07-28": `{"progressToken":"tok","io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`,
	} {
		t.Run(era, func(t *testing.T) {
			s := clienttest.New(t)
			s.AddWorkspace(t, "ws")
			step := make(chan struct{})
			s.Lock()
			s.Programs["slow"] = func(p *clienttest.Proc) int32 { <-step; return 0 }
			s.Unlock()
			g := gateway(t, s, Options{})
			g.every = 5 * time.Millisecond
			c := dial(t, g)
			if era == "2025-11-25" {
				c.send(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
				c.receive()
				c.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
			}
			c.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"exec","arguments":{"workspace":"ws","argv":["slow"]},"_meta":` + meta + `}}`)
			for range 3 {
				line := c.receive()
				if !strings.Contains(line, `"notifications/progress"`) || !strings.Contains(line, `"tok"`) || !strings.Contains(line, "the command runs") {
					t.Fatalf("instead of progress: %s", line)
				}
			}
			close(step)
			for {
				line := c.receive()
				if strings.Contains(line, `"notifications/progress"`) {
					continue
				}
				if !strings.Contains(line, "exit_code: 0") {
					t.Errorf("answer = %s", line)
				}
				break
			}
			c.send(`{"jsonrpc":"2.0","id":2,"method":"no/such"}`)
			if line := c.receive(); strings.Contains(line, "progress") {
				t.Errorf("after the answer: %s", line)
			}
		})
	}
}
