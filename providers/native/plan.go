//go:build linux

package native

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// plan is what the agent tells Init. It holds nothing secret, since an ordinary
// user's agent and its instances are one user to the kernel.
type plan struct {
	// Probe ends Init with success when all that it needs works.
	Probe    bool
	Hostname string
	// Root is the folder that becomes "/".
	Root tree
	// Trees are mounted in this order.
	Trees []tree
	// Links are symbolic links like /bin.
	Links map[string]string
	// Etc makes /etc from the machine's and the instance's own upper layer.
	EtcLower, EtcUpper tree
	// Files are written into /etc at each start.
	Files map[string]string
	// Devices are bound into /dev.
	Devices []tree
	// OwnNetwork: Init sets up the interfaces of a network namespace of its own.
	OwnNetwork bool
	// Address of eth0 and Gateway, where there is a way out.
	Address, Gateway string
	PIDs             int64
	// Range: there is more than one user id.
	Range bool
	// Dir is where the guest begins.
	Dir  string
	Argv []string
	Env  []string
}

// tree is a mount for the instance: opened by the agent, who may reach what the
// instance's root may not, or left to Init by path.
type tree struct {
	// Target inside the instance.
	Target string
	// Path on the machine; FD, where not 0, is the opened mount.
	Path string
	FD   int
	// File: the target is a file.
	File bool
	// Writable trees are the workspace's own.
	Writable bool
	// Device: device files work.
	Device bool
}

// systemDirs of the machine that an instance sees, read-only. What else lies in
// "/" (homes, data, mounts, /boot, /srv) stays outside.
var systemDirs = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt",
	"/nix", "/gnu", "/snap", // where some distributions keep their programs
}

// devices of the machine that are harmless: what Docker gives, less the console.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// guestPath is the PATH inside: Go's usual folder is there, since it is outside
// of what distributions put in theirs.
const guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin:/snap/bin"

func (p *Provider) plan(ws string, r record) plan {
	dir, vol := p.instanceDir(ws), p.volumeDir(ws)
	pl := plan{
		Hostname:   r.Name,
		Root:       tree{Path: filepath.Join(dir, "root"), Writable: true},
		Links:      map[string]string{},
		EtcLower:   tree{Path: "/etc"},
		EtcUpper:   tree{Path: filepath.Join(dir, "etc"), Writable: true},
		OwnNetwork: r.Network != providers.NetworkHost,
		PIDs:       r.Resources.PIDs,
		Range:      p.machine.root,
		Dir:        providers.Project,
		Argv: []string{
			providers.GuestProgram,
			"--link", providers.GuestLink + "/" + providers.GuestSocket,
			"--state", providers.GuestState,
			"--project", providers.Project,
		},
		Env: []string{
			"PATH=" + guestPath, "HOME=/root", "USER=root", "LANG=C.UTF-8",
			providers.EnvGuestUser + "=root",
		},
	}
	if pl.Hostname == "" {
		pl.Hostname = ws
	}
	for _, d := range systemDirs {
		info, err := os.Lstat(d)
		switch {
		case err != nil: // not on this machine
		case info.IsDir():
			pl.Trees = append(pl.Trees, tree{Target: d, Path: d})
		case info.Mode()&os.ModeSymlink != 0:
			if to, err := os.Readlink(d); err == nil {
				pl.Links[d] = to
			}
		}
	}
	pl.Trees = append(pl.Trees,
		tree{Target: providers.Project, Path: filepath.Join(vol, "workspace"), Writable: true},
		tree{Target: providers.GuestState, Path: filepath.Join(vol, "state"), Writable: true},
		tree{Target: providers.GuestLink, Path: filepath.Join(dir, "link")},
		tree{Target: providers.GuestProgram, Path: p.guest, File: true},
	)
	for _, d := range devices {
		pl.Devices = append(pl.Devices, tree{Target: "/dev/" + d, Path: "/dev/" + d, File: true, Writable: true, Device: true})
	}
	pl.Files = map[string]string{
		"hostname":    pl.Hostname + "\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + pl.Hostname + "\n",
		"resolv.conf": "# no name server: this workspace has no way out\n",
	}
	return pl
}

// each calls f with every tree of the plan.
func (pl *plan) each(f func(*tree) error) error {
	all := []*tree{&pl.Root, &pl.EtcLower, &pl.EtcUpper}
	for i := range pl.Trees {
		all = append(all, &pl.Trees[i])
	}
	for i := range pl.Devices {
		all = append(all, &pl.Devices[i])
	}
	for _, t := range all {
		if t.Path == "" {
			continue
		}
		if err := f(t); err != nil {
			return err
		}
	}
	return nil
}

// open makes a mount of t that is attached nowhere yet, with what it may do
// already taken away, and cut off from later mounts and unmounts outside.
func (t *tree) open() (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: t.Path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if !t.Writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !t.Device {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	} else {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(fd) // the error above is the one that counts
		return -1, &os.PathError{Op: "mount_setattr", Path: t.Path, Err: err}
	}
	return fd, nil
}
