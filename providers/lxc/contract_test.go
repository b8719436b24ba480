//go:build linux

package lxc

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

func TestContract(t *testing.T) { providertest.Run(t, harness(t)) }

func TestCyclesLeaveNothing(t *testing.T) { providertest.RunCycles(t, harness(t)) }

// harness joins the suite.
func harness(t *testing.T) providertest.Harness {
	t.Helper()
	testbed.Wants(t, Name)
	state, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	store := image.New(image.Options{Dir: filepath.Join(state, "images")})
	guest, helper := testbed.Guest(t), testbed.LXCHelper(t)
	return providertest.Harness{
		New: func(_ *testing.T, server string) providers.Provider {
			return New(Options{ServerID: server, StateDir: filepath.Join(state, server), GuestProgram: guest, Helper: helper, Images: store})
		},
		Leftovers: leftovers(state),
		Objects: func(t *testing.T) []string {
			var found []string
			for _, pattern := range []string{filepath.Join(state, "*", "*"), filepath.Join(state, "*", "*", "*"), "/run/lxc/lock/*/*", "/run/lxc/lock/*/.*", "/var/lib/lxc/*"} {
				some, err := filepath.Glob(pattern)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, some...)
			}
			return found
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
		Image:        testbed.RegistryImage(t),
		MissingImage: testbed.Registry(t) + "/no/such:1",
		UserImage:    testbed.RegistryUserImage(t),
		UserImageUID: strconv.Itoa(testbed.ImageUserID),
		Isolated:     true,
		Hardened:     true,
		Privileged:   true,
		LimitsPIDs:   true,
		LimitsMemory: true,
		LimitsCPU:    true,
		Networks:     true,
	}
}

// leftovers of a workspace: folders, links, groups in every hierarchy and what
// liblxc keeps beside them. Mounts there are none on the machine at any time.
func leftovers(state string) func(*testing.T, string) []string {
	return func(t *testing.T, workspace string) []string {
		t.Helper()
		var left []string
		for _, pattern := range []string{
			filepath.Join(state, "*", "*", workspace),
			"/sys/fs/cgroup/*/vendetta-lxc*." + workspace, "/sys/fs/cgroup/vendetta-lxc*." + workspace,
			"/sys/class/net/" + vethName(workspace), "/sys/class/net/" + peerName(vethName(workspace)),
			"/run/lxc/lock/run/." + instanceName(workspace),
		} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		return left
	}
}
