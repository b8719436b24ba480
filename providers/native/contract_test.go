//go:build linux

package native

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/providertest"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

// guestVariable hands the guest's program to the run without root, which could
// not build it.
const guestVariable = "VENDETTA_NATIVE_TEST_GUEST"

func realGuest(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(guestVariable); path != "" {
		return path
	}
	return testbed.Guest(t)
}

func TestContract(t *testing.T) { providertest.Run(t, harness(t)) }

func TestCyclesLeaveNothing(t *testing.T) { providertest.RunCycles(t, harness(t)) }

// harness joins the suite, on the machine's own system.
func harness(t *testing.T) providertest.Harness {
	t.Helper()
	usable(t)
	state, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = tree.Remove(t.Context(), state)
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	guest := realGuest(t)
	return providertest.Harness{
		New: func(_ *testing.T, server string) providers.Provider {
			return New(Options{
				ServerID: server, StateDir: filepath.Join(state, server),
				GuestProgram: guest, InitCommand: []string{self, "native-init"},
			})
		},
		Leftovers: func(t *testing.T, workspace string) []string {
			var left []string
			for _, pattern := range []string{
				filepath.Join(state, "*", "*", workspace), "/sys/fs/cgroup/*/vendetta/" + workspace,
				"/sys/fs/cgroup/vendetta/" + workspace, "/sys/class/net/" + vethName(workspace),
			} {
				found, err := filepath.Glob(pattern)
				if err != nil {
					t.Fatal(err)
				}
				left = append(left, found...)
			}
			return left
		},
		Objects: func(t *testing.T) []string {
			var folders []string
			for _, pattern := range []string{"*/*", "*/*/*"} {
				found, err := filepath.Glob(filepath.Join(state, pattern))
				if err != nil {
					t.Fatal(err)
				}
				folders = append(folders, found...)
			}
			return folders
		},
		Kill: func(t *testing.T, p providers.Provider, workspace string) {
			last, err := p.(*Provider).run(workspace)
			if err != nil {
				t.Fatal(err)
			}
			if err := last.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Isolated:     true,
		Hardened:     true,
		LimitsPIDs:   true,
		LimitsMemory: thisMachine().limits()["memory"],
		LimitsCPU:    thisMachine().limits()["cpu"],
		Networks:     true,
	}
}
