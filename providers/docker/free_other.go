//go:build !linux

package docker

// freeBytes is not known where the engine runs in a machine of its own.
func freeBytes(string) (int64, bool) { return 0, false }
