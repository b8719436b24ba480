//go:build linux

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where things lie in the initramfs.
const (
	modulesDir = "/modules"
	newRoot    = "/newroot"
	volumeRoot = "/volume"
)

// Where things lie in the workspace; package providers has the same.
const (
	// ProjectDir is the volume's part that is the user's, StateDir the guest's.
	ProjectDir = "/workspace"
	StateDir   = ownDir + "/state"
	ownDir     = "/.vendetta"
	program    = ownDir + "/bin/vendetta-guest"
)

// Wanted says whether this process is the first of a machine that has no root
// file system yet.
func Wanted() bool {
	if os.Getpid() != 1 {
		return false
	}
	_, err := os.Stat(newRoot)
	return err == nil
}

// Start makes a machine of what the kernel left: it returns in the root file
// system of the image, with disks, network and the environment in place.
func Start(ctx context.Context) (c Config, err error) {
	var self, seed string
	return c, steps(
		func() error { return mountAll(early) },
		func() error { self, err = os.Readlink("/proc/self/exe"); return err },
		func() error { return loadModules(modulesDir) },
		func() error {
			seed, err = find(ctx, "the seed", func() (string, error) { return thisMachine.disk(serialSeed) })
			return err
		},
		func() error { c, err = readConfig(seed); return err },
		func() error { return mountDisks(ctx) },
		func() error { return furnish(self) },
		func() error { return enter(newRoot) },
		func() error { return limit(c.PIDs) },
		func() error { return name(c) },
		func() error { return setUpNetwork(c) },
		func() error { return environment(c) },
	)
}

// steps are taken up to the first that fails.
func steps(all ...func() error) error {
	for _, step := range all {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

func mountAll(all []mount) error {
	for _, m := range all {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

// plain flags, of what holds no programs.
const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// early mounts are moved into the root file system later.
var early = []mount{
	{source: "proc", target: "/proc", kind: "proc", flags: plain},
	{source: "sysfs", target: "/sys", kind: "sysfs", flags: plain},
	{source: "devtmpfs", target: "/dev", kind: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
}

// mountDisks mounts the image's disk and the volume, and grows both to the size
// that their disks have.
func mountDisks(ctx context.Context) error {
	for _, d := range []struct{ serial, target string }{{serialRoot, newRoot}, {serialVolume, volumeRoot}} {
		device, err := find(ctx, "the disk "+d.serial, func() (string, error) { return thisMachine.disk(d.serial) })
		if err != nil {
			return err
		}
		// Inode tables are left unwritten: zeroing them would fill the overlays.
		m := mount{source: device, target: d.target, kind: "ext4", flags: unix.MS_RELATIME, data: "noinit_itable,discard"}
		if err := m.mount(); err != nil {
			return err
		}
		if err := thisMachine.grow(d.target, device); err != nil {
			return err
		}
	}
	return nil
}

// furnish mounts into the new root what every workspace has.
func furnish(self string) error {
	at := func(path string) string { return filepath.Join(newRoot, path) }
	var all []mount
	for _, m := range early {
		all = append(all, mount{source: m.target, target: at(m.target), flags: unix.MS_MOVE})
	}
	all = append(all,
		mount{source: "run", target: at("/run"), kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=0755"},
		mount{source: "devpts", target: at("/dev/pts"), kind: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=0620,gid=5,ptmxmode=0666"},
		mount{source: "shm", target: at("/dev/shm"), kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
		mount{source: "cgroup2", target: at("/sys/fs/cgroup"), kind: "cgroup2", flags: plain},
		mount{source: filepath.Join(volumeRoot, "workspace"), target: at(ProjectDir), flags: unix.MS_BIND},
		mount{source: "vendetta", target: at(ownDir), kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=0755,size=1m"},
		mount{source: filepath.Join(volumeRoot, "state"), target: at(StateDir), flags: unix.MS_BIND},
	)
	return steps(
		func() error { return os.MkdirAll(filepath.Join(volumeRoot, "workspace"), 0o755) },
		func() error { return os.MkdirAll(filepath.Join(volumeRoot, "state"), 0o755) },
		func() error { return os.MkdirAll(at("/tmp"), 0o777) },
		func() error { return os.Chmod(at("/tmp"), 0o777|os.ModeSticky) },
		func() error { return mountAll(all) },
		func() error { return link(at) },
		func() error { return os.MkdirAll(at(ownDir+"/link"), 0o755) },
		func() error { return os.MkdirAll(at(filepath.Dir(program)), 0o755) },
		func() error { return os.WriteFile(at(program), nil, 0o755) },
		func() error { return unix.Mount(self, at(program), "", unix.MS_BIND, "") },
		func() error { return seal(at(program)) },
		func() error { return seal(at(ownDir)) },
	)
}

// link makes the names that programs know the open files of theirs by.
func link(at func(string) string) error {
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, at(name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// seal makes a mount read-only.
func seal(path string) error {
	return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// enter makes dir the root of this process and of all that it starts.
func enter(dir string) error {
	return steps(
		func() error { return os.Chdir(dir) },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return os.Chdir("/") },
	)
}

// groupDir is where control groups are mounted; tests have their own.
var groupDir = "/sys/fs/cgroup"

// limit bounds the processes of the workspace, this one included.
func limit(pids int64) error {
	if pids <= 0 {
		return nil
	}
	group := filepath.Join(groupDir, "workspace")
	write := func(path, value string) func() error {
		return func() error { return os.WriteFile(path, []byte(value), 0o644) }
	}
	err := steps(
		write(filepath.Join(groupDir, "cgroup.subtree_control"), "+pids"),
		func() error { return os.Mkdir(group, 0o755) },
		write(filepath.Join(group, "pids.max"), strconv.FormatInt(pids, 10)),
		write(filepath.Join(group, "cgroup.procs"), strconv.Itoa(os.Getpid())),
	)
	if err != nil {
		return fmt.Errorf("limit the number of processes: %w", err)
	}
	return nil
}

// name gives the machine its name and the files that go with it. A file that
// cannot be written is the image's own business: /etc may be missing.
func name(c Config) error {
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	files := map[string]string{
		"/etc/hostname": c.Hostname + "\n",
		"/etc/hosts":    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t" + c.Hostname + "\n",
	}
	if c.Nameserver != "" {
		files["/etc/resolv.conf"] = "nameserver " + c.Nameserver + "\n"
	}
	for path, content := range files {
		// A link of the image's may lead to what a service would have made.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// defaultPath is Docker's, for an image that names none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment makes the image's environment this process's.
func environment(c Config) error {
	os.Clearenv()
	for _, entry := range append([]string{"PATH=" + defaultPath}, c.Env...) {
		key, value, _ := strings.Cut(entry, "=")
		if key == "" || strings.ContainsRune(entry, 0) {
			continue
		}
		if err := os.Setenv(key, value); err != nil {
			return err
		}
	}
	return nil
}
