//go:build linux

package boot

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// The kernel's own; tests have others.
var (
	sync   = unix.Sync
	reboot = unix.Reboot
	kill   = unix.Kill
)

// Off writes what is unwritten and switches the machine off.
func Off(log *slog.Logger) {
	sync()
	for _, dir := range []string{ProjectDir, StateDir, "/"} {
		// Busy, or busy with deleted files: what was written is on the disk already.
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			log.Debug("mount read-only", "path", dir, "error", err)
		}
	}
	if err := reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		log.Error("switch the machine off", "error", err)
	}
}
