//go:build linux

package native

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
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

func TestContract(t *testing.T) { providertest.Run(t, harness(t, nil)) }

func TestContractWithImage(t *testing.T) { providertest.Run(t, withImage(t)) }

func TestCyclesLeaveNothing(t *testing.T) { providertest.RunCycles(t, harness(t, nil)) }

func TestCyclesWithImageLeaveNothing(t *testing.T) { providertest.RunCycles(t, withImage(t)) }

// withImage joins the suite on images of a registry.
func withImage(t *testing.T) providertest.Harness {
	t.Helper()
	dir, store := newStore(t)
	h := harness(t, store)
	h.Image = testbed.RegistryImage(t)
	h.MissingImage = testbed.Registry(t) + "/vendetta-test/absent:1"
	h.ImageVariable = testbed.ImageVariable
	if os.Geteuid() == 0 { // an ordinary user's workspace has but root
		h.UserImage, h.UserImageUID = testbed.RegistryUserImage(t), strconv.Itoa(testbed.ImageUserID)
	}
	left := h.Leftovers
	h.Leftovers = func(t *testing.T, workspace string) []string {
		return append(left(t, workspace), holds(t, dir, workspace)...)
	}
	return h
}

// newStore is a store of images of its own.
func newStore(t *testing.T) (dir string, store *image.Store) {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	return dir, image.New(image.Options{Dir: dir})
}

// holds are what a store of images keeps for a workspace.
func holds(t *testing.T, dir, workspace string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "holders", "*", "*"+workspace+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// harness joins the suite, on the machine's own system.
func harness(t *testing.T, images Images) providertest.Harness {
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
				GuestProgram: guest, InitCommand: []string{self, "native-init"}, Images: images,
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
		LimitsMemory: true,
		LimitsCPU:    thisMachine().limits()["cpu"],
		Networks:     true,
	}
}
