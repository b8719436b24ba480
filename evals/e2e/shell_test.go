//go:build linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// screen is a terminal window with a vendetta command in it.
type screen struct {
	t   *testing.T
	b   *bed
	pty *os.File
	tty *os.File
	cmd *exec.Cmd
	// ended is closed when the command was waited for, read when nothing more can
	// appear on the screen.
	ended, read chan struct{}

	mu    sync.Mutex
	shown []byte
	seen  int
}

// open opens a window of 30 rows and 100 columns. The test keeps the window's
// inner end open as a person's own shell does, so that its settings can be looked
// at afterwards.
func (b *bed) open(args ...string) *screen {
	b.t.Helper()
	outer, inner, err := pty.Open()
	if err != nil {
		b.t.Fatal(err)
	}
	s := &screen{t: b.t, b: b, pty: outer, tty: inner, ended: make(chan struct{}), read: make(chan struct{})}
	s.resize(30, 100)
	s.cmd = b.command(context.Background(), args...)
	s.cmd.Env = append(s.cmd.Env, "TERM=xterm-256color")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = inner, inner, inner
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	go s.watch()
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the screen:\n%q", s.text())
		}
		_ = s.cmd.Process.Kill()
		<-s.ended
		_ = inner.Close()
		_ = outer.Close()
		<-s.read
	})
	return s
}

func (s *screen) watch() {
	defer close(s.read)
	buffer := make([]byte, 4096)
	for {
		n, err := s.pty.Read(buffer)
		s.mu.Lock()
		s.shown = append(s.shown, buffer[:n]...)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.shown)
}

func (s *screen) resize(rows, columns uint16) {
	s.t.Helper()
	if err := pty.Setsize(s.pty, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screen) keys(typed string) {
	s.t.Helper()
	if _, err := s.pty.WriteString(typed); err != nil {
		s.t.Fatal(err)
	}
}

// sees waits until the pattern appears behind all that was seen before.
func (s *screen) sees(pattern string) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	s.b.await(fmt.Sprintf("%q on the screen", pattern), 40*time.Second, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		at := re.FindSubmatchIndex(s.shown[s.seen:])
		if at == nil {
			return false
		}
		for _, part := range re.FindSubmatch(s.shown[s.seen:]) {
			found = append(found, string(part))
		}
		s.seen += at[1]
		return true
	})
	return found
}

// code waits for the end of the command.
func (s *screen) code() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatal("the command does not end")
	}
	return s.cmd.ProcessState.ExitCode()
}

// Each prompt of the shells of these tests. What is typed is echoed, so answers
// are computed by the shell: $((40+2)) is typed, 42 is seen.
const prompt = `[#$] $`

func (s *screen) says(line, pattern string) []string {
	s.t.Helper()
	s.keys(line + "\r")
	return s.sees(pattern)
}

func shellBed(t *testing.T) *bed {
	t.Helper()
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	b.run("node", "add", "local", "--local")
	b.run("workspace", "create", "w", "--provider", "native")
	return b
}

func TestShellIsATerminal(t *testing.T) {
	b := shellBed(t)
	s := b.open("workspace", "shell", "w")
	before, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	s.sees(`shell w --attach [a-z0-9]+`)
	s.sees(prompt)
	s.says("echo $((40+2)) in $PWD with $TERM", `42 in /workspace with xterm-256color`)
	s.says("stty size", `30 100`)
	s.resize(50, 132)
	// The new size travels beside the keys, so the shell is asked until it has it.
	s.says(`until [ "$(stty size)" = "50 132" ]; do :; done; echo now $((6*7))`, `now 42`)
	s.says(`printf '\033[3%dmred\033[0m\n' 1`, "\x1b\\[31mred\x1b\\[0m")

	// Job control: Ctrl-C ends the command and not the shell; Ctrl-Z and fg.
	s.says("echo go$((1+1)); sleep 300", `go2\r\n`)
	s.keys("\x03")
	s.sees(prompt)
	s.says("echo code $?", `code 130`)
	s.says("echo go$((1+2)); sleep 301", `go3\r\n`)
	s.keys("\x1a")
	s.sees(`Stopped.*sleep 301`)
	s.says("jobs", `Stopped.*sleep 301`)
	s.says("fg", `sleep 301`)
	s.keys("\x03")
	s.sees(prompt)
	s.says("jobs; echo none$((1+3))", `\rnone4`)

	s.keys("exit 7\r")
	if code := s.code(); code != 7 {
		t.Errorf("exit code %d, the shell's own is 7", code)
	}
	after, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if !sameTerminal(before, after) {
		t.Errorf("the terminal is not as before:\n%+v\n%+v", before, after)
	}
}

func sameTerminal(a, b *term.State) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// Whatever dies in between, the shell is the same one afterwards, with its
// variables, and what was typed meanwhile arrives once.
func TestShellSurvivesADroppedLink(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(t *testing.T, b *bed)
	}{
		{"server", func(t *testing.T, b *bed) { kill(t, serverPID(t, b)) }},
		{"node agent", func(t *testing.T, b *bed) {
			_, agent := agentPIDs(t, b.state)
			kill(t, agent)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := shellBed(t)
			s := b.open("workspace", "shell", "w")
			s.sees(prompt)
			s.says("kept=$((40+2)); echo set $kept", `set 42`)
			c.cut(t, b)
			s.says("echo still $kept >>/workspace/once; cat /workspace/once", `still 42\r\n`)
			s.says("wc -l </workspace/once", `\r1\r\n`)
			s.resize(41, 90)
			s.says(`until [ "$(stty size)" = "41 90" ]; do :; done; echo sized $((6*7))`, `sized 42`)
			s.keys("exit 3\r")
			if code := s.code(); code != 3 {
				t.Errorf("exit code %d, the shell's own is 3", code)
			}
		})
	}
}

// The window is closed, here by kill -9; the shell goes on and another window
// takes it over.
func TestShellIsTakenOverAfterTheWindowWasClosed(t *testing.T) {
	b := shellBed(t)
	first := b.open("workspace", "shell", "w")
	id := first.sees(`--attach ([a-z0-9]+)`)[1]
	first.sees(prompt)
	first.says("kept=$((40+2)); echo set $kept", `set 42`)
	kill(t, first.cmd.Process.Pid)
	first.code()

	second := b.open("workspace", "shell", "w", "--attach", id)
	second.sees(`set 42`) // the last of what the first window showed
	second.says("echo here $((kept+1))", `here 43`)
	second.says(`until [ "$(stty size)" = "30 100" ]; do :; done; echo sized $((6*7))`, `sized 42`)
	second.keys("exit 4\r")
	if code := second.code(); code != 4 {
		t.Errorf("exit code %d, the shell's own is 4", code)
	}
	b.refuse([]string{"terminal"}, "workspace", "shell", "w", "--attach", id)
	b.refuse([]string{"nothere1"}, "workspace", "logs", "w", "nothere1")
}

// A signal to the program ends it, restores the terminal and says how to come
// back; the shell goes on.
func TestShellIsToldToEnd(t *testing.T) {
	b := shellBed(t)
	s := b.open("workspace", "shell", "w")
	before, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	id := s.sees(`--attach ([a-z0-9]+)`)[1]
	s.sees(prompt)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.code(); code != 125 {
		t.Errorf("exit code %d, our own failure is 125", code)
	}
	s.sees(`next: vendetta workspace shell w --attach ` + id)
	after, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if !sameTerminal(before, after) {
		t.Errorf("the terminal is not as before:\n%+v\n%+v", before, after)
	}
	if got := b.run("workspace", "ps", "w"); !strings.Contains(got, id) {
		t.Errorf("the shell is gone:\n%s", got)
	}
}

// Ctrl-C on exec is a signal to the command, and the command's end is ours.
func TestInterruptOfExecReachesTheCommand(t *testing.T) {
	b := shellBed(t)
	for _, c := range []struct {
		name, script, want string
		signal             syscall.Signal
		code               int
	}{
		{"ends it", "echo ready; sleep 300", "ready\n", syscall.SIGINT, 130},
		{"is caught", "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done", "ready\ncaught\n", syscall.SIGINT, 9},
		{"of another kind", "trap 'echo hup; exit 8' HUP; echo ready; while :; do sleep 0.1; done", "ready\nhup\n", syscall.SIGHUP, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := newLineLog()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := b.command(ctx, "workspace", "exec", "w", "--", "sh", "-c", c.script)
			cmd.Stdout = out
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b.await("the command", 20*time.Second, func() bool { return out.count() > 0 })
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d; stderr: %s", code, c.code, stderr.String())
			}
			if out.String() != c.want {
				t.Errorf("output %q", out.String())
			}
		})
	}
}

// A command that does not listen to Ctrl-C is left to itself at the third.
func TestThirdInterruptLeavesTheCommand(t *testing.T) {
	b := shellBed(t)
	s := b.open("workspace", "exec", "w", "--", "sh", "-c", "trap 'echo no' INT; echo ready$((1+1)); while :; do sleep 0.1; done")
	s.sees(`ready2`)
	for range 2 {
		s.keys("\x03")
		s.sees(`\^Cno\r\n`)
	}
	s.keys("\x03")
	if code := s.code(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	s.sees(`left to itself: vendetta workspace kill w [a-z0-9]+`)
	if got := b.run("workspace", "ps", "w"); !strings.Contains(got, "running") {
		t.Errorf("the command is gone:\n%s", got)
	}
}

// The question for a host key: no is no, Ctrl-C ends it, yes goes on.
func TestHostKeyIsAskedForOnATerminal(t *testing.T) {
	testbed.Wants(t, "native")
	b := newBed(t, nil)
	r := b.newRemote(nil, "127.0.0.1", nil)
	add := []string{"node", "add", "build1", r.sshd.User + "@" + r.sshd.Host, "--port", fmt.Sprint(r.sshd.Port)}
	ask := func() *screen {
		s := b.open(add...)
		s.sees(regexp.QuoteMeta(r.sshd.Fingerprint))
		s.sees(`accept it\? \(yes/no\) `)
		return s
	}
	s := ask()
	s.keys("no\r")
	if code := s.code(); code != 5 {
		t.Errorf("exit code %d after no", code)
	}
	s.sees(`not accepted`)
	s = ask()
	s.keys("\x03")
	if code := s.code(); code == 0 {
		t.Error("Ctrl-C accepted the key")
	}
	b.refuse(nil, "node", "status", "build1")
	s = ask()
	s.keys("yes\r")
	if code := s.code(); code != 0 {
		t.Errorf("exit code %d after yes", code)
	}
	b.run("node", "status", "build1")
}
