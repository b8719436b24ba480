package testbed

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/client"
)

// recorder stands for a test that is skipped or fails.
type recorder struct {
	testing.TB
	skipped string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, _ ...any) { r.skipped = format }

func TestWants(t *testing.T) {
	t.Setenv(providersVariable, "docker,native")
	for provider, skips := range map[string]bool{"docker": false, "native": false, "lxc": true, "": true} {
		r := &recorder{TB: t}
		Wants(r, provider)
		if (r.skipped != "") != skips {
			t.Errorf("%q: skipped %q", provider, r.skipped)
		}
	}
}

func TestGuestIsStatic(t *testing.T) {
	path := Guest(t)
	if again := Guest(t); again != path {
		t.Errorf("built %s, then %s", path, again)
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CGO_ENABLED=0") {
		t.Errorf("%v\n%s", err, out)
	}
	// It runs, and says what it wants.
	out, err = exec.CommandContext(t.Context(), path).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "usage") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestBuildFailures(t *testing.T) {
	dir := t.TempDir()
	if _, err := buildStatic("github.com/vendetta-dev/vendetta/cmd/absent", dir); err == nil || !strings.Contains(err.Error(), "cmd/absent") {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := buildStatic(guestPackage, file); err == nil {
		t.Error("built into a file")
	}
}

func TestEngineOfOurOwn(t *testing.T) {
	Wants(t, "docker")
	ctx, cancel := context.WithTimeout(t.Context(), dockerdPatience)
	defer cancel()
	host, err := startDockerd(ctx)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	if err := importImage(ctx, engine, BaseImage); err != nil {
		t.Error(err)
	}
	if err := importImage(ctx, engine, BaseImage); err != nil { // it is there
		t.Error(err)
	}
	if err := importImage(ctx, engine, "Bad Name"); err == nil {
		t.Error("imported a bad name")
	}
	// The end of the process closes this end of the keeper's pipe.
	if err := keepers[len(keepers)-1].Close(); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Dir(strings.TrimPrefix(host, "unix://"))
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
			break
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("%s is still there", folder)
		}
	}
	if err := ping(t.Context(), host); err == nil {
		t.Error("the engine answers")
	}
}

func TestEngineThatDoesNotStart(t *testing.T) {
	Wants(t, "docker")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if host, err := startDockerd(ctx); err == nil {
		t.Errorf("started %s within no time", host)
	}
}

func TestImages(t *testing.T) {
	Wants(t, "docker")
	engine, err := client.NewClientWithOpts(client.WithHost(Docker(t)), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	for name, user := range map[string]string{Image(t): "", UserImage(t): ImageUser} {
		found, err := engine.ImageInspect(t.Context(), name)
		if err != nil || found.Config.User != user {
			t.Errorf("%s: %+v, %v", name, found.Config, err)
		}
	}
}

func TestPingOfNothing(t *testing.T) {
	for _, host := range []string{"nonsense", "unix:///absent/docker.sock"} {
		if err := ping(t.Context(), host); err == nil {
			t.Errorf("%s answers", host)
		}
	}
}
