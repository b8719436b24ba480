package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testbed.RemovePrograms()
	os.Exit(code)
}

// TestScripts runs every script with a server and a node of its own.
func TestScripts(t *testing.T) {
	program := testbed.Programs(t)
	params := testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			if strings.HasPrefix(filepath.Base(env.WorkDir), "script-docker") {
				env.Setenv("IMAGE", testbed.Image(t))
				env.Setenv("DOCKER_HOST", testbed.Docker(t))
				env.Setenv("ARCHIVE", testbed.Archive(t))
			}
			if strings.HasPrefix(filepath.Base(env.WorkDir), "script-images") {
				env.Setenv("REGISTRY_IMAGE", testbed.RegistryImage(t))
				env.Setenv("ARCHIVE", testbed.Archive(t))
				env.Setenv("LAYOUT", testbed.Layout(t))
			}
			return prepare(t, program, env)
		},
		Condition: func(name string) (bool, error) {
			provider, ok := strings.CutPrefix(name, "provider:")
			if !ok {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return slices.Contains(strings.Split(os.Getenv("VENDETTA_TEST_PROVIDERS"), ","), provider), nil
		},
	}
	testscript.Run(t, params)
}

// prepare gives a script a state folder, a home and the programs of its own.
func prepare(t *testing.T, program string, env *testscript.Env) error {
	state, err := os.MkdirTemp("", "v")
	if err != nil {
		return err
	}
	env.Defer(func() { cleanUp(t, program, state) })
	env.Setenv("VENDETTA_STATE_DIR", state)
	env.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(env.WorkDir, "gitconfig"))
	env.Setenv("GOCOVERDIR", testbed.CoverDir(t))
	return os.WriteFile(filepath.Join(env.WorkDir, "gitconfig"),
		[]byte("[user]\nname = Tester\nemail = tester@example.com\n[init]\ndefaultBranch = main\n"), 0o600)
}

// cleanUp removes every workspace and node that a script left, so that nothing of
// it goes on, and then its state.
func cleanUp(t *testing.T, program, state string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vendetta := func(args ...string) string {
		cmd := exec.CommandContext(ctx, program, append(args, "--state-dir", state)...)
		cmd.Env = append(os.Environ(), "GOCOVERDIR="+testbed.CoverDir(t))
		out, err := cmd.Output()
		if err != nil {
			t.Logf("clean up: vendetta %v: %v", args, err)
		}
		return string(out)
	}
	if _, err := os.Stat(filepath.Join(state, "server", "server.sock")); err == nil {
		for _, name := range strings.Fields(vendetta("workspace", "list", "-q")) {
			vendetta("workspace", "rm", name, "--force")
		}
		for _, name := range strings.Fields(vendetta("node", "list", "-q")) {
			vendetta("node", "rm", name)
		}
		vendetta("server", "stop")
	}
	if err := os.RemoveAll(state); err != nil {
		t.Errorf("clean up: %v", err)
	}
}
