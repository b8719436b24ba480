package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// OverlayOptions of Overlay.
type OverlayOptions struct {
	// Lower is the read-only base.
	Lower string
	// IDBase and IDCount: ids 0 to IDCount-1 of the base are shown as IDBase and
	// up. A count of 0 shows them as they are.
	IDBase, IDCount uint32
	// Between are further read-only layers over Lower, the topmost first, whose
	// files belong to the instance's ids already: those of snapshots.
	Between []string
	// Upper and Work are the instance's own folders, owned by IDBase.
	Upper, Work string
}

// Overlay makes an overlay mount that is attached nowhere yet and returns its
// descriptor, for move_mount. It needs a root that can mount. The base is not
// changed: its ids are shifted by the kernel (Linux 5.19 or newer), not on disk.
func Overlay(o OverlayOptions) (int, error) {
	fd, err := o.mount(true)
	if errors.Is(err, errOldKernel) {
		fd, err = o.mount(false)
	}
	if err != nil {
		return -1, fmt.Errorf("mount overlay on %s: %w", o.Lower, err)
	}
	return fd, nil
}

// errOldKernel: layers cannot be given by descriptor (before Linux 6.13).
var errOldKernel = errors.New("the kernel takes no layers by descriptor")

func (o OverlayOptions) mount(byDescriptor bool) (fd int, err error) {
	base, err := o.base()
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, unix.Close(base)) }()
	context, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open file system", Path: "overlay", Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(context)) }()
	if byDescriptor {
		err = o.lowerDescriptors(context, base)
	} else {
		var end func() error
		end, err = o.lowerPaths(context, base)
		defer func() { err = errors.Join(err, end()) }()
	}
	if err != nil {
		return -1, err
	}
	for key, value := range map[string]string{"upperdir": o.Upper, "workdir": o.Work} {
		if err := unix.FsconfigSetString(context, key, value); err != nil {
			return -1, &os.PathError{Op: "set " + key, Path: value, Err: said(context, err)}
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, said(context, err)
	}
	fd, err = unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, said(context, err)
	}
	return fd, nil
}

// said adds what the kernel says of a file system context's trouble.
func said(context int, err error) error {
	buffer := make([]byte, 1024)
	n, readErr := unix.Read(context, buffer)
	if readErr != nil || n <= 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buffer[2:n])))
}

// base is a mount of the base, with shifted ids, that is attached nowhere.
func (o OverlayOptions) base() (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, o.Lower, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open tree", Path: o.Lower, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if o.IDCount > 0 {
		users, err := userNamespace(o.IDBase, o.IDCount)
		if err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		defer func() { _ = users.Close() }()
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(users.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return -1, errors.Join(&os.PathError{Op: "shift ids of", Path: o.Lower, Err: err}, unix.Close(fd))
	}
	return fd, nil
}

// lowerDescriptors gives the layers, the topmost first, by descriptor.
func (o OverlayOptions) lowerDescriptors(context, base int) error {
	layers := []int{}
	defer func() {
		for _, fd := range layers {
			_ = unix.Close(fd) // the context has its own
		}
	}()
	for _, dir := range o.Between {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		layers = append(layers, fd)
	}
	for _, fd := range append(layers[:len(layers):len(layers)], base) {
		if err := unix.FsconfigSetFd(context, "lowerdir+", fd); err != nil {
			return errors.Join(errOldKernel, said(context, err))
		}
	}
	return nil
}

// lowerPaths attaches the base for as long as the kernel needs its path.
func (o OverlayOptions) lowerPaths(context, base int) (end func() error, err error) {
	nothing := func() error { return nil }
	at, err := os.MkdirTemp(filepath.Dir(o.Work), "base.")
	if err != nil {
		return nothing, err
	}
	if err := unix.MoveMount(base, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nothing, errors.Join(&os.PathError{Op: "attach", Path: at, Err: err}, os.Remove(at))
	}
	end = func() error {
		// The overlay has its own mount of it by now.
		return errors.Join(unix.Unmount(at, unix.MNT_DETACH), os.Remove(at))
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	var layers []string
	for _, dir := range append(o.Between[:len(o.Between):len(o.Between)], at) {
		layers = append(layers, escape.Replace(dir))
	}
	if err := unix.FsconfigSetString(context, "lowerdir", strings.Join(layers, ":")); err != nil {
		return end, said(context, err)
	}
	return end, nil
}

// userNamespace opens one in which ids 0 to count-1 are base and up. It is that of
// a child that is stopped before its first instruction and killed.
func userNamespace(base, count uint32) (*os.File, error) {
	// Only the thread that started a traced child may say more of it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: int(count)}}
	child := &exec.Cmd{
		Path: "/proc/self/exe",
		Args: []string{"vendetta-ids"},
		Env:  []string{},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: ids,
			GidMappings: ids,
			Ptrace:      true,
			Pdeathsig:   syscall.SIGKILL,
		},
	}
	if err := child.Start(); err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Process.Pid))
	killed := child.Process.Kill()
	_ = child.Wait() // it says how it was killed
	if err = errors.Join(err, killed); err != nil {
		if users != nil {
			_ = users.Close()
		}
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return users, nil
}
