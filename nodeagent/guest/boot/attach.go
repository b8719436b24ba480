//go:build linux

package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// attachedVolume is where the volume is mounted in a machine with an init system.
const attachedVolume = "/run/vendetta/volume"

// Attach mounts the volume into a machine that has booted by itself. Repeated, as
// after the guest's restart, it leaves what is mounted.
func Attach(ctx context.Context) error {
	device, err := find(ctx, "the disk "+serialVolume, func() (string, error) { return thisMachine.disk(serialVolume) })
	if err != nil {
		return err
	}
	mounted, err := isMounted(attachedVolume)
	if err != nil {
		return err
	}
	if !mounted {
		m := mount{source: device, target: attachedVolume, kind: "ext4", flags: unix.MS_RELATIME, data: "noinit_itable,discard"}
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := thisMachine.grow(attachedVolume, device); err != nil {
		return err
	}
	for part, target := range map[string]string{"workspace": ProjectDir, "state": StateDir} {
		source := filepath.Join(attachedVolume, part)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		mounted, err := isMounted(target)
		if err != nil {
			return err
		}
		if mounted {
			continue
		}
		if err := (mount{source: source, target: target, flags: unix.MS_BIND}).mount(); err != nil {
			return err
		}
	}
	return nil
}

// isMounted says whether something is mounted at dir; a folder that is missing
// has nothing.
func isMounted(dir string) (bool, error) {
	var at, above unix.Stat_t
	err := unix.Stat(dir, &at)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err == nil {
		err = unix.Stat(filepath.Dir(dir), &above)
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return at.Dev != above.Dev, nil
}

// poweroff is what systemd(1) takes as the wish to power off: SIGRTMIN+4.
const poweroff = unix.Signal(34 + 4)

// ObeyAttached is Obey in a machine with an init system: that is asked to end it.
func ObeyAttached(ctx context.Context, log *slog.Logger) {
	stop := func() {
		if err := kill(1, poweroff); err != nil {
			log.Error("ask the init system to power off", "error", err)
		}
	}
	follow(ctx, deeds{stop: stop, off: func() { Off(log) }, clock: setClock, grow: func() error { return thisMachine.growVolume(ctx) }}, log)
}
