//go:build linux

package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestOwner(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	err := errors.Join(
		os.Mkdir(etc, 0o755),
		os.WriteFile(filepath.Join(etc, "passwd"), []byte("root:x:0:0::/:\nshort\ndev:x:7:8::/:\nbad:x:y:z::/:\nbig:x:70000:1::/:\n"), 0o644),
		// Links lead to files of the image, wherever they claim to lead.
		os.WriteFile(filepath.Join(root, "groups"), []byte("staff:x:50:\nbad:x:y:\n"), 0o644),
		os.Symlink("/../../groups", filepath.Join(etc, "group")),
	)
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string][2]uint32{
		"": {0, 0}, "root": {0, 0}, "dev": {7, 8}, "7": {7, 8}, "9": {9, 0}, "9:10": {9, 10}, "dev:staff": {7, 50}, "dev:3": {7, 3}, "5:staff": {5, 50},
	} {
		uid, gid, err := Image{Root: root, User: user}.Owner()
		if err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%q: %d:%d, %v", user, uid, gid, err)
		}
	}
	for _, user := range []string{"nobody", "bad", "big", "70000", "dev:nobody", "dev:bad", "-1", "dev:70000"} {
		if _, _, err := (Image{Root: root, User: user}).Owner(); !errors.Is(err, providers.ErrImage) {
			t.Errorf("%q: %v", user, err)
		}
	}
	// What is no plain file tells nothing, and nobody waits for it.
	err = errors.Join(os.Remove(filepath.Join(etc, "passwd")), unix.Mkfifo(filepath.Join(etc, "passwd"), 0o644), os.RemoveAll(filepath.Join(root, "groups")))
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"dev", "5:staff"} {
		if _, _, err := (Image{Root: root, User: user}).Owner(); !errors.Is(err, providers.ErrImage) {
			t.Errorf("%q: %v", user, err)
		}
	}
	if _, _, err := (Image{Root: filepath.Join(root, "absent"), User: "dev"}).Owner(); err == nil {
		t.Error("resolved in nothing")
	}
}
