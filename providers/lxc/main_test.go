//go:build linux

package lxc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

const patience = 30 * time.Second

// Workspaces of the tests. Ids are unique over all servers, and so over all test
// processes of a machine too.
var w1, w2, w3 = id(), id(), id()

func id() string { return strings.ToLower(rand.Text()[:10]) }

// TestMain removes the image that all tests share.
func TestMain(m *testing.M) {
	code := m.Run()
	if unpacked != "" {
		_ = os.RemoveAll(unpacked)
	}
	os.Exit(code)
}

var unpacked string

// base is the folder of an image with a shell. Nobody writes to it.
func base(t *testing.T) string {
	t.Helper()
	if unpacked == "" {
		dir, err := os.MkdirTemp("", "v")
		if err != nil {
			t.Fatal(err)
		}
		unpacked = dir
		testbed.Busybox(t, filepath.Join(dir, "image"))
	}
	return filepath.Join(unpacked, "image")
}

// folder is a store with one image, which lies in a folder.
type folder struct {
	image.Image
	mu    sync.Mutex
	holds map[string]bool
	fail  error
}

func (f *folder) Get(_ context.Context, ref, digest, holder string) (image.Image, error) {
	if f.fail != nil {
		return image.Image{}, f.fail
	}
	if ref == "missing" {
		return image.Image{}, &providers.Error{Kind: providers.ErrImage, Message: "there is no such image"}
	}
	return f.Image, f.Hold(f.Digest, holder)
}

func (f *folder) Held(string) (image.Image, error) { return f.Image, f.fail }

func (f *folder) Hold(_, holder string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.holds[holder] = true
	}
	return f.fail
}

func (f *folder) Release(holder string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.holds, holder)
	return nil
}

// rig is a provider on a folder of its own.
type rig struct {
	*Provider
	t     *testing.T
	dir   string
	store *folder
	conns map[string]net.Conn
}

func newRig(t *testing.T) *rig {
	t.Helper()
	testbed.Wants(t, Name)
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, store: &folder{
		Image: image.Image{Digest: "sha256:0", Root: base(t), Env: []string{"FROM_IMAGE=a b\nc", "nonsense"}},
		holds: map[string]bool{},
	}}
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
		r.trash.Wait()
		if err := errors.Join(r.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		if len(r.store.holds) > 0 {
			t.Errorf("images are held by %v", r.store.holds)
		}
	})
	return r
}

// renew makes a provider as a restarted agent would.
func (r *rig) renew() {
	r.t.Helper()
	if r.Provider != nil {
		if err := r.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	r.conns = map[string]net.Conn{}
	r.Provider = New(Options{
		ServerID: "s1", StateDir: filepath.Join(r.dir, "s"), GuestProgram: testbed.StandIn(r.t), Helper: testbed.LXCHelper(r.t), Images: r.store,
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
		r.t.Fatal(err)
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
			r.t.Fatalf("%v\n%s", err, r.console(ws))
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

func (r *rig) inspect(ws string) providers.Instance {
	r.t.Helper()
	i, err := r.Inspect(r.t.Context(), ws)
	if err != nil {
		r.t.Fatal(err)
	}
	return i
}

func spec(ws string) providers.Spec { return providers.Spec{Workspace: ws} }
