//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A fresh project becomes the image's user's; one that is somebody's stays theirs.
func TestGiveProject(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	etc := t.TempDir()
	accounts := accounts{etc: etc}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nbad:x:one:2::/:/bin/sh\ndev:x:1000:1001::/home/dev:/bin/sh\n", "group": "dev:x:1001:\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	owner := func(dir string) [2]uint32 {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Lstat(dir, &st); err != nil {
			t.Fatal(err)
		}
		return [2]uint32{st.Uid, st.Gid}
	}
	for what, c := range map[string]struct {
		user string
		used bool
		want [2]uint32
	}{
		"fresh": {"dev", false, [2]uint32{1000, 1001}}, "used": {"dev", true, [2]uint32{0, 0}},
		"root's": {"root", false, [2]uint32{0, 0}}, "nobody's": {"absent", false, [2]uint32{0, 0}}, "a bad entry's": {"bad", false, [2]uint32{0, 0}},
	} {
		dir := t.TempDir()
		if c.used {
			if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := giveProject(dir, c.user, accounts); err != nil || owner(dir) != c.want {
			t.Errorf("%s: %v, %v", what, owner(dir), err)
		}
		if err := giveProject(dir, "root", accounts); err != nil || owner(dir) != c.want {
			t.Errorf("%s, given again: %v, %v", what, owner(dir), err)
		}
	}
	if err := giveProject(filepath.Join(etc, "absent"), "dev", accounts); err == nil {
		t.Error("gave what is absent")
	}
}
