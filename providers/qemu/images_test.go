//go:build linux

package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// folderImages is a store of trees that lie unpacked already.
type folderImages struct {
	dir   string
	trees map[string]image.Image
	mu    sync.Mutex
	held  map[string]string
}

func newFolderImages(dir string) *folderImages {
	return &folderImages{dir: dir, trees: map[string]image.Image{}, held: map[string]string{}}
}

func (f *folderImages) Get(_ context.Context, ref, digest, holder string) (image.Image, error) {
	i, ok := f.trees[ref]
	if !ok {
		return i, &providers.Error{Kind: providers.ErrImage, Message: "there is no image " + ref, Next: "name another"}
	}
	_ = digest
	return i, f.Hold(i.Digest, holder)
}

func (f *folderImages) Held(digest string) (image.Image, error) {
	for _, i := range f.trees {
		if i.Digest == digest {
			return i, nil
		}
	}
	return image.Image{}, os.ErrNotExist
}

func (f *folderImages) GetDisk(context.Context, string, string, string, string) (image.Disk, error) {
	return image.Disk{}, os.ErrNotExist
}
func (f *folderImages) HeldDisk(string) (image.Disk, error) { return image.Disk{}, os.ErrNotExist }

func (f *folderImages) Derived(ctx context.Context, digest, name string, make func(ctx context.Context, path string) error) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := filepath.Join(f.dir, digest+"-"+name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, make(ctx, path)
}

func (f *folderImages) Hold(digest, holder string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[holder] = digest
	return nil
}

func (f *folderImages) Release(holder string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, holder)
	return nil
}

// busyboxTree makes a root file system of this machine's static busybox.
func busyboxTree(dir string) error {
	for _, d := range []string{"bin", "etc", "home/dev", "root", "tmp", "usr/bin", "var", "sbin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	raw, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), raw, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000::/home/dev:/bin/sh\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\ndev:x:1000:\n"), 0o644); err != nil {
		return err
	}
	if said, err := exec.Command("/bin/busybox", "--install", "-s", filepath.Join(dir, "bin")).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	found, err := filepath.Glob(filepath.Join(dir, "bin/*"))
	if err != nil {
		return err
	}
	for _, path := range found {
		if filepath.Base(path) == "busybox" {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if err := os.Symlink("/bin/busybox", path); err != nil {
			return err
		}
	}
	return nil
}
