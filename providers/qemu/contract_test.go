//go:build linux

package qemu

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

func TestContract(t *testing.T) {
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
	images := newFolderImages(state)
	root := filepath.Join(state, "tree")
	if err := busyboxTree(root); err != nil {
		t.Fatal(err)
	}
	images.trees["box"] = image.Image{Ref: "box", Digest: "box", Root: root, Env: []string{"TEST_IMAGE=box"}}
	images.trees["dev"] = image.Image{Ref: "dev", Digest: "dev", Root: root, User: "dev"}
	guest, kernel := testbed.Guest(t), testbed.Kernel(t)
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("V") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	providertest.Run(t, providertest.Harness{
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
		Kill: func(t *testing.T, p providers.Provider, workspace string) {
			last, err := p.(*Provider).run(workspace)
			if err != nil {
				t.Fatal(err)
			}
			if err := last.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Image: "box", MissingImage: "nobody", ImageVariable: "TEST_IMAGE", UserImage: "dev", UserImageUID: "1000",
		Isolated: true, LimitsPIDs: true, LimitsMemory: true, Networks: true,
	})
}
