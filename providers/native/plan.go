//go:build linux

package native

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// plan is what the agent tells Init. It holds nothing secret, since an ordinary
// user's agent and its instances are one user to the kernel.
type plan struct {
	// Probe ends Init with success when all that it needs works.
	Probe    bool
	Hostname string
	// Root is the folder that becomes "/".
	Root mount
	// Mounts are made in this order.
	Mounts []mount
	// Image: the root is an image's, with folders and links of its own.
	Image bool
	// Links are symbolic links like /bin.
	Links map[string]string
	// Etc makes /etc from the machine's and the instance's own upper layer.
	EtcLower, EtcUpper mount
	// Files are written into /etc at each start.
	Files map[string]string
	// Devices are bound into /dev.
	Devices []mount
	// OwnNetwork: Init sets up the interfaces of a network namespace of its own.
	OwnNetwork bool
	// Address of eth0 and Gateway, where there is a way out.
	Address, Gateway string
	PIDs             int64
	// Counted: a control group holds the instance to PIDs.
	Counted bool
	// Memory is the most of each process, in bytes; 0 does not limit it.
	Memory int64
	// Range: there is more than one user id.
	Range bool
	// Dir is where the guest begins.
	Dir  string
	Argv []string
	Env  []string
}

// mount is a tree or file for the instance: opened by the agent, who may reach what the
// instance's root may not, or left to Init by path.
type mount struct {
	// Target inside the instance.
	Target string
	// Path on the machine; FD, where not 0, is the opened mount.
	Path string
	FD   int
	// Layers are laid over each other instead, and Path is the upper one.
	Layers *layers
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

func (p *Provider) plan(ws string, r record, v volume, img *image.Image) plan {
	dir, vol := p.instanceDir(ws), p.volumeDir(ws)
	pl := plan{
		Hostname:   r.Name,
		Links:      map[string]string{},
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
		Env: environment(img, p.guestUser(img)),
	}
	if pl.Hostname == "" {
		pl.Hostname = ws
	}
	limits := p.machine.limits()
	pl.Counted = limits["pids"]
	if !limits["memory"] {
		pl.Memory = r.Resources.MemoryBytes
	}
	if img != nil {
		pl.useImage(p.layers(dir, v, img))
	} else {
		pl.useMachine(dir)
	}
	pl.Mounts = append(pl.Mounts,
		mount{Target: providers.Project, Path: filepath.Join(vol, "workspace"), Writable: true},
		mount{Target: providers.GuestState, Path: filepath.Join(vol, "state"), Writable: true},
		mount{Target: providers.GuestLink, Path: filepath.Join(dir, "link")},
		mount{Target: providers.GuestProgram, Path: p.guest, File: true},
	)
	for _, d := range devices {
		pl.Devices = append(pl.Devices, mount{Target: "/dev/" + d, Path: "/dev/" + d, File: true, Writable: true, Device: true})
	}
	pl.Files = map[string]string{
		"hostname":    pl.Hostname + "\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + pl.Hostname + "\n",
		"resolv.conf": "# no name server: this workspace has no way out\n",
	}
	return pl
}

// useMachine makes the root of a folder of the instance's and the machine's own.
func (pl *plan) useMachine(dir string) {
	pl.Root = mount{Path: filepath.Join(dir, "root"), Writable: true}
	pl.EtcLower = mount{Path: "/etc"}
	pl.EtcUpper = mount{Path: filepath.Join(dir, "etc"), Writable: true}
	pl.Links["/var/run"], pl.Links["/var/lock"] = "/run", "/run/lock"
	for _, d := range systemDirs {
		info, err := os.Lstat(d)
		switch {
		case err != nil: // not on this machine
		case info.IsDir():
			pl.Mounts = append(pl.Mounts, mount{Target: d, Path: d})
		case info.Mode()&os.ModeSymlink != 0:
			if to, err := os.Readlink(d); err == nil {
				pl.Links[d] = to
			}
		}
	}
}

// useImage makes the root of an image and what the instance changed of it.
func (pl *plan) useImage(l *layers) {
	pl.Image = true
	pl.Root = mount{Path: l.Upper, Layers: l, Writable: true}
}

func (p *Provider) layers(dir string, v volume, img *image.Image) *layers {
	l := &layers{Lower: img.Root, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	if p.machine.root {
		l.IDBase, l.IDCount = v.IDBase, idsPerInstance
	}
	return l
}

// each calls f with every tree of the plan.
func (pl *plan) each(f func(*mount) error) error {
	all := []*mount{&pl.Root, &pl.EtcLower, &pl.EtcUpper}
	for i := range pl.Mounts {
		all = append(all, &pl.Mounts[i])
	}
	for i := range pl.Devices {
		all = append(all, &pl.Devices[i])
	}
	for _, m := range all {
		if m.Path == "" {
			continue
		}
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

// open makes a mount of m that is attached nowhere yet, with what it may do
// already taken away, and cut off from later mounts and unmounts outside.
func (m *mount) open() (fd int, err error) {
	if m.Layers != nil {
		if fd, err = m.Layers.mount(); err != nil {
			return -1, fmt.Errorf("lay the instance over its image: %w", err)
		}
	} else if fd, err = unix.OpenTree(unix.AT_FDCWD, m.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: m.Path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if !m.Writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !m.Device {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	} else {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(fd) // the error above is the one that counts
		return -1, &os.PathError{Op: "mount_setattr", Path: m.Path, Err: err}
	}
	return fd, nil
}
