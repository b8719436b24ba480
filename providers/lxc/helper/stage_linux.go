package helper

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// StageOf is the folder where the trees of a container lie while it starts, in a
// mount namespace that only the helper, its monitor and the container have. So
// nothing of it is ever mounted on the machine itself, whatever is killed, and the
// folder of containers, dir, stays closed to the container's root, who has to reach
// them. It is one that every machine has and that dir is not in.
func StageOf(dir string) string {
	for _, stage := range []string{"/mnt", "/media", "/srv", "/opt"} {
		if info, err := os.Lstat(stage); err == nil && info.IsDir() && !within(dir, stage) {
			return stage
		}
	}
	return "/tmp"
}

// Prepare attaches the request's mounts. The caller is in a mount namespace of
// its own already.
func Prepare(r Request) error {
	// What the machine unmounts later goes here too; what is done here stays here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("leave the machine's mounts: %w", err)
	}
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, at := range needless(string(raw), r.Keep) {
		_ = unix.Unmount(at, unix.MNT_DETACH) // one that stays does no harm to this start
	}
	if err := unix.Mount("tmpfs", r.Stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711,size=64k"); err != nil {
		return fmt.Errorf("mount %s: %w", r.Stage, err)
	}
	for _, m := range r.Mounts {
		if err := attach(r.Stage, m); err != nil {
			return err
		}
	}
	return nil
}

func attach(stage string, m Mount) error {
	at := filepath.Join(stage, filepath.Base(m.Name))
	var err error
	if m.File {
		err = os.WriteFile(at, nil, 0o644)
	} else {
		err = os.Mkdir(at, 0o755)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(m.FD, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", m.Name, err)
	}
	return unix.Close(m.FD)
}

// Finish is what is done to a container that runs. The caller is about to end.
func Finish(r Request, pid int) error {
	network, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the container's network: %w", err)
	}
	err = unix.Setns(network, unix.CLONE_NEWNET)
	_ = unix.Close(network) // it was only looked at
	if err != nil {
		return fmt.Errorf("enter the container's network: %w", err)
	}
	// The file is that of whoever opens it.
	text := fmt.Sprintf("%d %d", r.Pingers[0], r.Pingers[1])
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(text), 0); err != nil {
		return fmt.Errorf("allow ping in the container: %w", err)
	}
	return nil
}

// system is what liblxc and the container's set-up need below the root.
var system = []string{"/proc", "/sys", "/dev", "/run", "/usr", "/lib", "/lib64", "/etc", "/var/lib/lxc", "/var/run"}

// needless lists the mount points that nobody here needs, the innermost first.
func needless(mountinfo string, keep []string) []string {
	keep = append(slices.Clone(system), keep...)
	var found []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := unescape(f[4])
		if at == "/" || slices.ContainsFunc(keep, func(k string) bool { return within(at, k) || within(k, at) }) {
			continue
		}
		found = append(found, at)
	}
	slices.Reverse(found)
	return found
}

// within says whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// unescape decodes the octal escapes of proc(5)'s mount tables.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
