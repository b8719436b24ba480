//go:build linux

package qemu

import (
	"log/slog"
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
	images := image.New(image.Options{Dir: filepath.Join(state, "images")})
	guest, kernel := testbed.Guest(t), testbed.Kernel(t)
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("V") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return providertest.Harness{
		New: func(_ *testing.T, server string) providers.Provider {
			return New(Options{
				ServerID: server, StateDir: filepath.Join(state, server), GuestProgram: guest, Images: images, Kernel: kernel, Logger: log,
			})
		},
		Leftovers: func(t *testing.T, workspace string) []string {
			var left []string
			for _, pattern := range []string{
				filepath.Join(state, "*", "*", workspace), "/sys/fs/cgroup/*/vendetta/qemu-" + workspace,
				"/sys/fs/cgroup/vendetta/qemu-" + workspace,
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
		Image: testbed.RegistryImage(t), MissingImage: "127.0.0.1:1/nobody:1", ImageVariable: testbed.ImageVariable,
		UserImage: testbed.RegistryUserImage(t), UserImageUID: strconv.Itoa(testbed.ImageUserID),
		Isolated: true, LimitsPIDs: true, LimitsMemory: true, Networks: true,
	}
}
