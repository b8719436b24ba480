package image

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Idmapped says whether Overlay can show files of dir's file system under other
// ids, and if not, why. A dir that is missing stands for the one above it. It
// changes nothing.
func Idmapped(dir string, base, count uint32) error {
	for {
		if _, err := os.Lstat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	fd, err := OverlayOptions{Lower: dir, IDBase: base, IDCount: count}.base()
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
