//go:build linux

package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// emptyRoot makes a new tmpfs, with dirs of the machine's in it, the root of this
// thread.
func emptyRoot(t *testing.T, dirs ...string) {
	t.Helper()
	top := t.TempDir()
	do(t, unix.Mount("top", top, "tmpfs", 0, ""))
	for _, d := range dirs {
		at := filepath.Join(top, d)
		do(t, os.MkdirAll(at, 0o755), unix.Mount(d, at, "", unix.MS_BIND|unix.MS_REC, ""))
	}
	do(t, os.Chdir(top), unix.Chroot("."))
}

// must is do for a test's own goroutine.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// powerless takes from this thread whatever root may do beyond others.
func powerless(t *testing.T) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	do(t, unix.Capset(&header, &none[0]))
}

// mayResize says whether this thread may grow a file system: root of a container
// often may not.
func mayResize(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	do(t, unix.Capget(&header, &has[0]))
	return has[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// use makes m the machine that is seen, until the test ends.
func use(t *testing.T, m machine) {
	t.Helper()
	was := thisMachine
	thisMachine = m
	t.Cleanup(func() { thisMachine = was })
}

// noDevices is a machine that shows the ports and disks named, and has no folder
// of devices.
func noDevices(t *testing.T, attributes map[string]string) machine {
	t.Helper()
	m := machine{sys: t.TempDir(), dev: "/dev/null"}
	for path, value := range attributes {
		at := filepath.Join(m.sys, path)
		must(t, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(value+"\n"), 0o644))
	}
	return m
}

// What cannot become right by waiting is reported at once.
func TestFindGivesUp(t *testing.T) {
	m := noDevices(t, map[string]string{"block/vda/serial": serialRoot, "class/virtio-ports/vport0p1/name": ControlPort})
	if err := m.growOne(t.Context(), serialRoot, "/"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a disk without device: %v", err)
	}
	if err := (machine{sys: "/["}).growOne(t.Context(), serialRoot, "/"); !errors.Is(err, filepath.ErrBadPattern) {
		t.Errorf("a pattern that is none: %v", err)
	}
	use(t, m)
	var said bytes.Buffer
	Obey(t.Context(), nil, slog.New(slog.NewTextHandler(&said, nil)))
	if !strings.Contains(said.String(), "the control port is lost") {
		t.Errorf("said %q", said.String())
	}
}

func TestGrow(t *testing.T) {
	apart(t, func(t *testing.T) {
		dir := t.TempDir()
		volume := ext4(t, dir, "volume", "16M")
		m := fakeMachine(t, map[string]string{serialVolume: volume})
		at := filepath.Join(dir, "at")
		do(t, (mount{source: volume, target: at, kind: "ext4"}).mount())
		defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
		if err := m.growOne(t.Context(), serialVolume, at+".absent"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("where nothing is mounted: %v", err)
		}
		var before, after unix.Statfs_t
		do(t, unix.Statfs(at, &before))
		err := m.growOne(t.Context(), serialVolume, at)
		do(t, unix.Statfs(at, &after))
		switch grew := after.Blocks > before.Blocks*3/2; {
		case mayResize(t) && (err != nil || !grew):
			t.Errorf("grew from %d to %d blocks, %v", before.Blocks, after.Blocks, err)
		case !mayResize(t) && (!errors.Is(err, unix.EPERM) || grew):
			t.Errorf("without the power to grow: %v", err)
		}
		// The disk has less than the kernel was understood to say.
		name, err := m.disk(serialVolume)
		do(t, err, os.WriteFile(filepath.Join(m.sys, "class/block", filepath.Base(name), "size"), []byte("4194304"), 0o644))
		if err := m.grow(at, name); err == nil || !strings.Contains(err.Error(), "2147483648 bytes") {
			t.Errorf("beyond the disk: %v", err)
		}
		if err := m.grow(at, filepath.Join(filepath.Dir(name), "vdb")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an absent disk: %v", err)
		}
	})
}

// Neither a disk without a file system nor one without a size is mounted in
// silence.
func TestDisksThatAreNone(t *testing.T) {
	apart(t, func(t *testing.T) {
		dir := t.TempDir()
		root := ext4(t, dir, "root")
		m := fakeMachine(t, map[string]string{serialRoot: root, serialVolume: "/dev/null"})
		use(t, m)
		emptyRoot(t, m.sys, m.dev, dir, "/dev")
		for what, call := range map[string]func(context.Context) error{"volume": Attach, "disks": mountDisks} {
			if err := call(t.Context()); !errors.Is(err, unix.ENOTBLK) {
				t.Errorf("%s: %v", what, err)
			}
		}
		name, err := m.disk(serialRoot)
		do(t, err, unix.Unmount(newRoot, 0), os.Remove(filepath.Join(m.sys, "class/block", filepath.Base(name), "size")))
		if err := mountDisks(t.Context()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a disk without a size: %v", err)
		}
		if err := m.grow("/", filepath.Join(m.dev, "null")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a device that is no disk: %v", err)
		}
		_ = unix.Unmount(newRoot, unix.MNT_DETACH)
	})
}

// What the image or the volume has in the way of a mount is reported.
func TestAttachFindsTheWayBlocked(t *testing.T) {
	apart(t, func(t *testing.T) {
		dir := t.TempDir()
		m := fakeMachine(t, map[string]string{serialVolume: ext4(t, dir, "volume")})
		use(t, m)
		emptyRoot(t, m.sys, m.dev, dir, "/dev")
		fails := func(what string, want error) {
			t.Helper()
			if err := Attach(t.Context()); !errors.Is(err, want) {
				t.Errorf("%s: %v", what, err)
			}
		}
		do(t, os.WriteFile("/run", nil, 0o644))
		fails("/run is a file", unix.ENOTDIR)
		do(t, os.Remove("/run"), os.MkdirAll(filepath.Dir(ProjectDir), 0o755), os.WriteFile(ProjectDir, nil, 0o644))
		fails("the project's folder is a file", unix.ENOTDIR)
		do(t, os.Remove(ProjectDir), os.Symlink(ProjectDir, ProjectDir))
		fails("the project's folder is a loop", unix.ELOOP)
		do(t, os.Remove(ProjectDir), os.RemoveAll(filepath.Join(attachedVolume, "workspace")), os.WriteFile(filepath.Join(attachedVolume, "workspace"), nil, 0o644))
		fails("the volume's part is a file", unix.ENOTDIR)
		name, err := m.disk(serialVolume)
		do(t, err, os.Remove(filepath.Join(m.sys, "class/block", filepath.Base(name), "size")))
		fails("the disk has no size", os.ErrNotExist)
		for _, at := range []string{ProjectDir, StateDir, attachedVolume} {
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
}

func TestMountsThatFail(t *testing.T) {
	apart(t, func(t *testing.T) {
		if err := mountAll([]mount{{target: "/dev/null/below"}}); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("below a file: %v", err)
		}
		at := filepath.Join(t.TempDir(), "at")
		if err := mountAll([]mount{{target: at, kind: "no such kind"}}); !errors.Is(err, unix.ENODEV) {
			t.Errorf("a kind that is none: %v", err)
		}
		if err := link(func(path string) string { return filepath.Join(at, path) }); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("links without a folder: %v", err)
		}
	})
}

func TestNamesThatCannotBeGiven(t *testing.T) {
	apart(t, func(t *testing.T) {
		emptyRoot(t)
		fails := func(what string, c Config, want error) {
			t.Helper()
			if err := name(c); !errors.Is(err, want) {
				t.Errorf("%s: %v", what, err)
			}
		}
		fails("a long name", Config{Hostname: strings.Repeat("x", 65)}, unix.EINVAL)
		do(t, os.WriteFile("/etc", nil, 0o644))
		fails("/etc is a file", Config{Hostname: "box"}, unix.ENOTDIR)
		do(t, os.Remove("/etc"), os.MkdirAll("/etc/hosts/x", 0o755))
		fails("/etc/hosts is a folder", Config{Hostname: "box"}, unix.ENOTEMPTY)
		do(t, os.RemoveAll("/etc/hosts"), unix.Mount("full", "/etc", "tmpfs", 0, "nr_inodes=1"))
		fails("/etc is full", Config{Hostname: "box"}, unix.ENOSPC)
	})
}

func TestNetworkWithoutPower(t *testing.T) {
	apart(t, func(t *testing.T) {
		n, err := openNetlink()
		do(t, err)
		defer n.close()
		// An answer that nobody waits for, such as one to a request that was given up.
		message := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(message[0:], uint32(len(message)))
		binary.NativeEndian.PutUint16(message[4:], unix.RTM_GETLINK)
		binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
		binary.NativeEndian.PutUint32(message[8:], 99)
		do(t, unix.Sendto(n.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}), n.up(1))
		if err := n.up(99); !errors.Is(err, unix.ENODEV) {
			t.Errorf("an interface that is none: %v", err)
		}
		if err := (&netlink{fd: -1}).up(1); !errors.Is(err, unix.EBADF) {
			t.Errorf("without a socket: %v", err)
		}
		powerless(t)
		if err := setUpNetwork(Config{}); !errors.Is(err, unix.EPERM) {
			t.Errorf("without power: %v", err)
		}
	})
}

func TestPortsThatCannotBeHad(t *testing.T) {
	m, _ := fakePort(t, LinkPort)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.dial(ended, LinkPort); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	device := filepath.Join(m.dev, "vport0p1")
	must(t, os.Remove(device), unix.Mknod(device, unix.S_IFSOCK|0o600, 0))
	if _, err := m.dial(t.Context(), LinkPort); !errors.Is(err, unix.ENXIO) {
		t.Errorf("what cannot be opened: %v", err)
	}
	plain, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	must(t, err)
	if err := held(t.Context(), plain); !errors.Is(err, unix.EPERM) {
		t.Errorf("what cannot be waited for: %v", err)
	}
	must(t, plain.Close())
	for _, f := range []*os.File{nil, plain} {
		if err := held(t.Context(), f); err == nil {
			t.Error("a closed file is held")
		}
	}
}

// A port is held again when somebody opens its far end; until then its holder's
// end reads as ended. A pipe does the same.
func TestHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	must(t, unix.Mkfifo(path, 0o600))
	near, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer func() { _ = near.Close() }()
	come := func() *os.File {
		far, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		return far
	}
	must(t, come().Close())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- held(ctx, near) }()
	select {
	case err := <-done:
		t.Errorf("held by nobody: %v", err)
	default:
	}
	far := come()
	must(t, <-done)
	must(t, far.Close())
	go func() { done <- held(ctx, near) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// The words that end a machine reach it, and a machine that does not end says so.
// The thread has no power to do anything to this one.
func TestObeyTheLastWords(t *testing.T) {
	apart(t, func(t *testing.T) {
		var did []string
		sync = func() {}
		reboot = func(int) error { did = append(did, "off"); return unix.EPERM }
		kill = func(pid int, s unix.Signal) error {
			if pid == 1 && s == poweroff {
				did = append(did, "stop")
			}
			return unix.EPERM
		}
		defer func() { sync, reboot, kill = unix.Sync, unix.Reboot, unix.Kill }()
		powerless(t)
		for name, obey := range map[string]func(context.Context, *slog.Logger){
			"own": func(ctx context.Context, log *slog.Logger) {
				Obey(ctx, func() { did = append(did, "stop") }, log)
			},
			"attached": ObeyAttached,
		} {
			m, far := fakePort(t, ControlPort)
			use(t, m)
			// The disks have no devices, so that none is waited for.
			for serial, disk := range map[string]string{serialRoot: "vda", serialVolume: "vdb"} {
				at := filepath.Join(m.sys, "block", disk, "serial")
				do(t, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(serial), 0o644))
				do(t, os.Symlink(disk, filepath.Join(m.dev, disk)))
			}
			ctx, cancel := context.WithCancel(t.Context())
			answers := make(chan string, 1)
			go func() {
				defer cancel()
				got := make([]byte, 0, 512)
				for range 3 {
					if _, err := far.WriteString([]string{"stop 1\n", "off 2\n", "grow 3\n"}[bytes.Count(got, []byte("\n"))]); err != nil {
						break
					}
					for n := bytes.Count(got, []byte("\n")); bytes.Count(got, []byte("\n")) == n; {
						read, err := far.Read(got[len(got):cap(got)])
						if err != nil && !errors.Is(err, io.EOF) {
							break
						}
						got = got[:len(got)+read]
					}
				}
				answers <- string(got)
			}()
			did = nil
			var said bytes.Buffer
			obey(ctx, slog.New(slog.NewTextHandler(&said, nil)))
			if got := <-answers; !strings.HasPrefix(got, "done 1\ndone 2\nfailed 3 ") {
				t.Errorf("%s: answered %q", name, got)
			}
			if strings.Join(did, " ") != "stop off" || !strings.Contains(said.String(), "switch the machine off") {
				t.Errorf("%s: did %q and said %q", name, did, said.String())
			}
		}
	})
}

func TestFoldersInPlaceOfFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := readConfig(dir); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a seed that is a folder: %v", err)
	}
	order := filepath.Join(dir, "order")
	must(t, os.Mkdir(order, 0o755))
	if err := loadModules(dir); !errors.Is(err, unix.EISDIR) {
		t.Errorf("an order that is a folder: %v", err)
	}
	must(t, os.Remove(order), os.WriteFile(order, nil, 0o644), loadModules(dir))
}
