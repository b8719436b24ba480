//go:build linux

package native

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

const patience = 30 * time.Second

// TestMain lets this binary be what a provider needs two programs for: the init
// stage and a guest. The guest here runs shell scripts, one a line.
func TestMain(m *testing.M) {
	switch {
	case IsInit():
		os.Exit(Init())
	case len(os.Args) > 1 && os.Args[1] == "--link":
		os.Exit(standIn(os.Args[2]))
	}
	os.Exit(m.Run())
}

// standIn serves scripts on the link until SIGTERM.
func standIn(socket string) int {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		for range time.Tick(5 * time.Millisecond) {
			conn, err := net.Dial("unix", socket)
			if err == nil {
				serve(conn)
			}
		}
	}()
	<-end
	return 0
}

func serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if line == "ignore-term\n" {
			signal.Ignore(syscall.SIGTERM)
			fmt.Fprintf(conn, "0 0\n")
			continue
		}
		if to, ok := strings.CutPrefix(strings.TrimSpace(line), "dial "); ok {
			out, code := dial(to)
			fmt.Fprintf(conn, "%d %d\n%s", code, len(out), out)
			continue
		}
		cmd := exec.Command("sh", "-c", line)
		out, _ := cmd.CombinedOutput()
		fmt.Fprintf(conn, "%d %d\n%s", cmd.ProcessState.ExitCode(), len(out), out)
	}
}

// dial reads what a listener sends.
func dial(to string) (string, int) {
	conn, err := net.DialTimeout("tcp", to, 2*time.Second)
	if err != nil {
		return err.Error(), 1
	}
	defer func() { _ = conn.Close() }()
	out, err := io.ReadAll(conn)
	if err != nil {
		return err.Error(), 1
	}
	return string(out), 0
}

// usable goes on when a sandbox can be made here, or when this machine was said to
// be one where it can, which makes everything else a failure.
func usable(t *testing.T) {
	t.Helper()
	if s := probed(); !s.Usable {
		testbed.Wants(t, Name)
		t.Fatalf("%s\n%s", s.Reason, s.Fix)
	}
}

var probed = sync.OnceValue(func() providers.Status {
	self, err := os.Executable()
	if err != nil {
		return providers.Status{Reason: err.Error()}
	}
	p := New(Options{ServerID: "probe", GuestProgram: self, InitCommand: []string{self, "native-init"}})
	defer func() { _ = p.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.Probe(ctx)
})

// rig is a provider on a folder of its own.
type rig struct {
	*Provider
	t     *testing.T
	dir   string
	conns map[string]net.Conn
}

func newRig(t *testing.T) *rig {
	t.Helper()
	usable(t)
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir}
	r.renew()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		all, err := r.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, i := range all {
			if err := r.Destroy(ctx, i.Workspace, true); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := r.trash.Empty(ctx); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// renew makes a provider as a restarted agent would.
func (r *rig) renew() {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	if r.Provider != nil {
		if err := r.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	r.conns = map[string]net.Conn{}
	r.Provider = New(Options{
		ServerID: "s1", StateDir: r.dir, GuestProgram: self, InitCommand: []string{self, "native-init"},
		Logger: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
	})
}

func (r *rig) up(spec providers.Spec) {
	r.t.Helper()
	if spec.Name == "" {
		spec.Name = "box-" + spec.Workspace
	}
	if _, err := r.Create(r.t.Context(), spec); err != nil {
		r.t.Fatalf("%v: %v", err, errors.Unwrap(err))
	}
	if err := r.Start(r.t.Context(), spec.Workspace); err != nil {
		log, _ := os.ReadFile(filepath.Join(r.instanceDir(spec.Workspace), "guest.log"))
		r.t.Fatalf("%v\n%s", err, log)
	}
}

// sh runs a script inside and returns its output and exit code.
func (r *rig) sh(ws, script string) (string, int) {
	r.t.Helper()
	conn := r.conns[ws]
	if conn == nil {
		ctx, cancel := context.WithTimeout(r.t.Context(), patience)
		defer cancel()
		var err error
		if conn, err = r.Connect(ctx, ws); err != nil {
			log, _ := os.ReadFile(filepath.Join(r.instanceDir(ws), "guest.log"))
			r.t.Fatalf("%v\n%s", err, log)
		}
		r.conns[ws] = conn
		r.t.Cleanup(func() { _ = conn.Close() })
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := fmt.Fprintln(conn, strings.ReplaceAll(script, "\n", ";")); err != nil {
		r.t.Fatal(err)
	}
	var code, size int
	if _, err := fmt.Fscanf(conn, "%d %d\n", &code, &size); err != nil {
		r.t.Fatalf("%s: %v", script, err)
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(conn, out); err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), code
}

// want runs a script that must succeed with just this output.
func (r *rig) want(ws, script, out string) {
	r.t.Helper()
	if got, code := r.sh(ws, script); code != 0 || got != out {
		r.t.Errorf("%s: %q, exit %d; want %q", script, got, code, out)
	}
}

// refused runs a script that must fail.
func (r *rig) refused(ws, script string) {
	r.t.Helper()
	if got, code := r.sh(ws, script); code == 0 {
		r.t.Errorf("%s succeeded: %q", script, got)
	}
}

func (r *rig) state(ws string) providers.State {
	r.t.Helper()
	i, err := r.Inspect(r.t.Context(), ws)
	if err != nil {
		r.t.Fatal(err)
	}
	return i.State
}

func spec(ws string) providers.Spec { return providers.Spec{Workspace: ws} }

// quiet is a provider of a benchmark.
func quiet(b *testing.B) (*Provider, error) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		return nil, err
	}
	p := New(Options{ServerID: "s1", StateDir: dir, GuestProgram: self, InitCommand: []string{self, "native-init"}})
	b.Cleanup(func() {
		p.trash.Wait()
		if err := errors.Join(p.Close(), os.RemoveAll(dir)); err != nil {
			b.Error(err)
		}
	})
	return p, nil
}
