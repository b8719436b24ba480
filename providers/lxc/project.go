//go:build linux

package lxc

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers/image"
)

// giveProject makes an empty /workspace that is still root's the image user's
// own. One with anything in it is left as it is.
func (p *Provider) giveProject(ws string, base image.Image, v volume) error {
	if name, _, _ := strings.Cut(base.User, ":"); name == "" || name == "root" || name == "0" {
		return nil
	}
	dir := filepath.Join(p.volumeDir(ws), "workspace")
	fresh, err := untouched(dir, v)
	if err != nil || !fresh {
		return err
	}
	uid, gid, err := base.Owner()
	if err != nil {
		return err
	}
	return os.Lchown(dir, int(v.IDBase+uid), int(v.IDBase+gid))
}

// untouched says whether a folder is root's and empty.
func untouched(dir string, v volume) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return false, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Uid != v.IDBase || st.Gid != v.IDBase {
		return false, nil
	}
	entries, err := os.ReadDir(dir)
	return len(entries) == 0, err
}
