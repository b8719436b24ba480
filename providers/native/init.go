//go:build linux

package native

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers/network"
)

// initEnv marks the init stage, so that a test binary knows itself in it.
const initEnv = "VENDETTA_NATIVE_INIT"

// planFD is the socket on which Init gets its plan and complains; the program
// itself is descriptor 3.
const planFD = 4

// IsInit says whether this process was started as the init stage. A test binary
// asks first thing in TestMain.
func IsInit() bool { return os.Getenv(initEnv) == "1" }

// Init is the life of a new instance's first process before it is the guest. It
// returns, with an exit code, only when something went wrong.
func Init() int {
	// Capabilities, seccomp and no_new_privs belong to threads; this one execs.
	runtime.LockOSThread()
	conn := os.NewFile(planFD, "plan")
	if err := stage(conn); err != nil {
		c := complaint{Message: err.Error()}
		errors.As(err, &c.Errno)
		if raw, err := json.Marshal(c); err == nil {
			_, _ = conn.Write(raw) // the agent is gone when this fails
		}
		return 1
	}
	return 0
}

func stage(conn *os.File) error {
	// Descriptors of the machine's must not reach the guest.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	unix.Umask(0o022)
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var pl plan
	if err := json.Unmarshal(line, &pl); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		// The agent has put us into our cgroups by now.
		{"cgroup namespace", func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) }},
		{"session keyring", leaveKeyring},
		{"file system", func() error { return buildRoot(&pl) }},
		{"network", func() error { return configureNetwork(pl) }},
		{"host name", func() error { return unix.Sethostname([]byte(pl.Hostname)) }},
		{"user namespaces", forbidUserNamespaces},
		{"kernel settings", sealProc},
		{"processes", func() error { return limitProcesses(pl.PIDs, pl.Counted) }},
		{"memory", func() error { return limitMemory(pl.Memory) }},
		{"working folder", func() error { return unix.Chdir(pl.Dir) }},
		{"privileges", confine},
		{"node agent", func() error { _, err := conn.WriteString(handover); return err }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	if pl.Probe {
		return nil
	}
	return fmt.Errorf("run %s: %w", pl.Argv[0], syscall.Exec(pl.Argv[0], pl.Argv, pl.Env))
}

// leaveKeyring takes a new session keyring: the agent's is none of the guest's
// business. A kernel without keyrings has nothing to hide.
func leaveKeyring() error {
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	if errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// limitProcesses bounds how many there are. Where a control group counts them too,
// this one may be raised later, up to what the agent itself may have.
func limitProcesses(most int64, counted bool) error {
	limit := unix.Rlimit{Cur: uint64(most), Max: uint64(most)}
	if counted {
		if err := unix.Getrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
			return err
		}
		limit.Cur = min(uint64(most), limit.Max)
	}
	return unix.Setrlimit(unix.RLIMIT_NPROC, &limit)
}

// leastMemory is what the guest itself needs of it: the Go runtime takes 64 MiB at a
// time.
const leastMemory = 256 << 20

// limitMemory bounds what each process writes to of its own, where no control
// group counts for all of them.
func limitMemory(most int64) error {
	if most == 0 {
		return nil
	}
	n := max(uint64(most), leastMemory)
	return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: n, Max: n})
}

// buildRoot makes the instance's file system and leaves the machine's. All that
// is needed of the machine is opened first; after the pivot no path leads there,
// so what a workspace did to its own folders cannot mislead anything.
func buildRoot(pl *plan) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	err := pl.each(func(m *mount) (err error) {
		if m.FD == 0 {
			m.FD, err = m.open()
		}
		return err
	})
	if err != nil {
		return err
	}
	// A new /proc is only given to those who still see the old one.
	proc, err := newProc()
	if err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := pivot(pl.Root); err != nil {
		return err
	}
	if err := mountAt(proc, "/proc", false); err != nil {
		return err
	}
	for path, to := range pl.Links {
		if err := symlink(path, to); err != nil {
			return err
		}
	}
	for _, m := range pl.Mounts {
		if err := mountAt(m.FD, m.Target, m.File); err != nil {
			return err
		}
	}
	if err := mountDev(pl); err != nil {
		return err
	}
	if err := errors.Join(mountTmp("/run", "mode=0755,size=64m"), mountTmp("/sys", "mode=0555,size=4k,nr_inodes=1")); err != nil {
		return err
	}
	if pl.Image {
		return completeImage(pl)
	}
	for _, dir := range []string{"/run/lock", "/var/lib", "/var/cache", "/var/log"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if pl.EtcLower.Path == "" {
		return nil
	}
	return mountEtc(pl)
}

// completeImage adds to an image's root what every workspace has: a folder for
// temporary files, and the instance's own files in /etc. Both may be whatever the
// image or the workspace made of them.
func completeImage(pl *plan) error {
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat("/tmp"); errors.Is(err, os.ErrNotExist) {
		if err := errors.Join(os.Mkdir("/tmp", 0o700), os.Chmod("/tmp", 0o777|os.ModeSticky)); err != nil {
			return err
		}
	}
	if err := place("/etc", false); err != nil {
		return err
	}
	etc, err := unix.Open("/etc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /etc: %w", err)
	}
	defer func() { _ = unix.Close(etc) }()
	for name, text := range pl.Files {
		if err := os.RemoveAll("/etc/" + name); err != nil {
			return err
		}
		fd, err := unix.Openat(etc, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return fmt.Errorf("make /etc/%s: %w", name, err)
		}
		f := os.NewFile(uintptr(fd), name)
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func newProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSOPEN_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// pivot makes root "/" and lets the machine's go, as pivot_root(2) describes for
// two equal arguments. The root is attached over /proc, which is a folder on
// every machine and needed no more.
func pivot(root mount) error {
	if root.Path == "" { // a probe has no folder of its own
		if err := unix.Mount("tmpfs", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
			return fmt.Errorf("mount root: %w", err)
		}
		if err := unix.Chdir("/proc"); err != nil {
			return fmt.Errorf("enter root: %w", err)
		}
	} else {
		if err := unix.MoveMount(root.FD, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach root: %w", err)
		}
		if err := unix.Fchdir(root.FD); err != nil {
			return fmt.Errorf("enter root: %w", err)
		}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the machine's root go: %w", err)
	}
	return os.Chdir("/")
}

// place makes sure that target can be mounted on, whatever a workspace left there.
func place(target string, file bool) error {
	info, err := os.Lstat(target)
	if err == nil && info.IsDir() != file && info.Mode()&os.ModeSymlink == 0 {
		return nil
	}
	if err == nil {
		if err := os.RemoveAll(target); err != nil {
			return err
		}
	}
	above := filepath.Dir(target)
	if info, err := os.Lstat(above); err == nil && info.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(above); err != nil { // the link alone: it may lead nowhere
			return err
		}
	}
	if err := os.MkdirAll(above, 0o755); err != nil {
		return err
	}
	if !file {
		return os.Mkdir(target, 0o755)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func mountAt(fd int, target string, file bool) error {
	if err := place(target, file); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return unix.Close(fd)
}

func mountTmp(target, data string) error {
	if err := place(target, false); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// symlink makes a symbolic link where there is nothing else.
func symlink(path, to string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if at, err := os.Readlink(path); err == nil && at == to {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(to, path)
}

func mountDev(pl *plan) error {
	if err := mountTmp("/dev", "mode=0755,size=1m"); err != nil {
		return err
	}
	for _, m := range pl.Devices {
		if err := mountAt(m.FD, m.Target, true); err != nil {
			return err
		}
	}
	if err := place("/dev/pts", false); err != nil {
		return err
	}
	terminals := "newinstance,ptmxmode=0666,mode=0620"
	if pl.Range {
		terminals += ",gid=5" // tty, as on every distribution
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, terminals); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	errs := []error{mountTmp("/dev/shm", "mode=1777,size=512m")}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		errs = append(errs, os.Symlink(to, "/dev/"+name))
	}
	return errors.Join(errs...)
}

// secrets below /etc that a group of the agent's user might read. Who runs the
// agent cannot give up groups in a namespace of one id, so these are hidden by
// name; what only root may read is closed anyway.
var secrets = []string{
	"shadow", "shadow-", "gshadow", "gshadow-", "sudoers", "sudoers.d", "ssh", "ssl/private",
	"krb5.keytab", "docker", "kubernetes", "rancher", "wireguard", "NetworkManager/system-connections",
	"letsencrypt", "vendetta",
}

// mountEtc lays the instance's own files over the machine's /etc, and hides its
// secrets. Where the kernel or the file system refuses overlayfs, /etc is the
// machine's, read-only, with our own files bound over those that exist.
func mountEtc(pl *plan) error {
	const layers = "/.vendetta/etc"
	if err := place("/etc", false); err != nil {
		return err
	}
	if err := mountAt(pl.EtcUpper.FD, layers, false); err != nil {
		return err
	}
	for name, text := range pl.Files {
		path := filepath.Join(layers, "upper", name)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := mountAt(pl.EtcLower.FD, "/etc", false); err != nil {
		return err
	}
	data := "userxattr,lowerdir=/etc,upperdir=" + layers + "/upper,workdir=" + layers + "/work"
	if err := unix.Mount("overlay", "/etc", "overlay", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		if err := bindFiles(pl, layers); err != nil {
			return err
		}
	}
	if err := unix.Unmount(layers, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("hide the layers of /etc: %w", err)
	}
	for _, name := range secrets {
		if err := hide("/etc/" + name); err != nil {
			return err
		}
	}
	return nil
}

func bindFiles(pl *plan, layers string) error {
	for name := range pl.Files {
		target := "/etc/" + name
		if info, err := os.Lstat(target); err != nil || !info.Mode().IsRegular() {
			continue // read-only, so it cannot be made
		}
		if err := unix.Mount(filepath.Join(layers, "upper", name), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return nil
}

// hide covers a file or folder; a missing one needs no cover.
func hide(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&os.ModeSymlink != 0:
		return nil // leads to what is visible anyway, or nowhere
	case info.IsDir():
		err = unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "mode=0555,size=4k,nr_inodes=1")
	default:
		err = unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	return nil
}

// forbidUserNamespaces counts for the instance's own user namespace alone. What
// nested ones would allow a kernel's bug to do is more than they give.
func forbidUserNamespaces() error {
	return os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
}

// sealProc takes away what /proc shows of or lets change in the kernel, as
// container engines do.
func sealProc() error {
	for _, name := range []string{"kcore", "keys", "timer_list", "sched_debug", "latency_stats", "kallsyms", "acpi", "scsi"} {
		if err := hide("/proc/" + name); err != nil {
			return err
		}
	}
	for _, name := range []string{"sys", "sysrq-trigger", "irq", "bus", "fs", "asound"} {
		path := "/proc/" + name
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("seal %s: %w", path, err)
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("seal %s: %w", path, err)
		}
	}
	return nil
}

// configureNetwork brings up loopback and, where the agent has made one, the
// way out.
func configureNetwork(pl plan) error {
	if !pl.OwnNetwork {
		return nil
	}
	nl, err := network.Dial()
	if err != nil {
		return err
	}
	defer nl.Close()
	last := 0
	if pl.Range {
		last = idsPerInstance - 1
	}
	err = errors.Join(
		nl.Up("lo"),
		// Lets ping work without CAP_NET_RAW.
		os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 "+strconv.Itoa(last)), 0),
	)
	if err != nil || pl.Address == "" {
		return err
	}
	if err := nl.Address(guestInterface, pl.Address); err != nil {
		return err
	}
	return errors.Join(nl.Up(guestInterface), nl.DefaultRoute(pl.Gateway))
}
