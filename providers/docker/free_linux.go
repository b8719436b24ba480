package docker

import "golang.org/x/sys/unix"

// freeBytes is what an ordinary user may still write to the file system of path.
func freeBytes(path string) (int64, bool) {
	var s unix.Statfs_t
	if path == "" || unix.Statfs(path, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * s.Bsize, true
}
