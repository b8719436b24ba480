package keys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/vendetta-dev/vendetta/transport"
)

func TestFind(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "server", "id_ed25519")
	first, err := Find(file, "vendetta-server-abc")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	second, err := Find(file, "other")
	if err != nil || !bytes.Equal(first.PublicKey().Marshal(), second.PublicKey().Marshal()) {
		t.Errorf("the key changed: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(left) != 1 {
		t.Errorf("%v lies beside the key", left)
	}
	line := PublicLine(first.PublicKey(), "vendetta-server-abc")
	key, comment, _, _, err := gossh.ParseAuthorizedKey([]byte(line))
	if err != nil || comment != "vendetta-server-abc" || key.Type() != gossh.KeyAlgoED25519 || strings.Contains(line, "\n") {
		t.Errorf("line %q: %v", line, err)
	}
	if bare := PublicLine(first.PublicKey(), ""); len(strings.Fields(bare)) != 2 {
		t.Errorf("line %q", bare)
	}
}

// Many at once agree on one key.
func TestFindTogether(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	keys := make([]string, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			signer, err := Find(file, "")
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = string(signer.PublicKey().Marshal())
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two keys were made")
		}
	}
}

func TestFindRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	loose := filepath.Join(dir, "loose")
	if _, err := Find(loose, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(loose, 0o640); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{loose: "chmod 600 " + loose, damaged: "backup"} {
		_, err := Find(file, "")
		var te *transport.Error
		if !errors.As(err, &te) || !strings.Contains(te.Next, want) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if got, err := os.ReadFile(damaged); err != nil || string(got) != "not a key" {
		t.Errorf("a damaged key was overwritten: %q, %v", got, err)
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(folder, ""); err == nil {
		t.Error("a folder is no key")
	}
	if _, err := Find(filepath.Join(damaged, "key"), ""); err == nil {
		t.Error("a key below a file")
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(filepath.Join(dir, "dangling"), ""); err == nil {
		t.Error("a dangling link is no key")
	}
	// No place for the key.
	if err := generate("/proc/self/key", ""); err == nil {
		t.Error("a key was made in /proc")
	}
	if err := generate(filepath.Join(damaged, "x", "key"), ""); err == nil {
		t.Error("a key was made below a file")
	}
}
