package nodeagent

import "golang.org/x/sys/unix"

// diskSpace returns the size of path's disk and what of it is free to us.
func diskSpace(path string) (total, free uint64) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, 0
	}
	return s.Blocks * uint64(s.Bsize), s.Bavail * uint64(s.Bsize)
}
