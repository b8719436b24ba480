//go:build linux && cgo && lxc

package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/lxc/go-lxc"
	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
)

func main() {
	runtime.LockOSThread()
	var r raw
	flag.StringVar(&r.dir, "dir", "", "folder of the container")
	flag.StringVar(&r.lower, "lower", "", "root file system of the image")
	flag.StringVar(&r.name, "name", "", "name of the container")
	flag.StringVar(&r.bridge, "bridge", "", "bridge that it is on")
	flag.StringVar(&r.address, "address", "", "its address, with the length of the network")
	base := flag.Uint("base", 0, "first of its ids")
	flag.Parse()
	r.base = uint32(*base)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		err := errors.New("want create or remove")
		switch lines.Text() {
		case "create":
			err = r.create()
		case "remove":
			err = r.remove()
		}
		if err != nil {
			fmt.Println("failed:", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok")
	}
}

// raw is one container.
type raw struct {
	dir, lower, name, bridge, address string
	base                              uint32
	container                         *lxc.Container
	// created counts, since groups of an earlier one may be there for a moment.
	created int
}

func (r *raw) path(name string) string { return filepath.Join(r.dir, name) }

// create makes the container, starts it and runs a command in it.
func (r *raw) create() error {
	for _, name := range []string{"root", "upper", "work"} {
		if err := os.MkdirAll(r.path(name), 0o755); err != nil {
			return err
		}
		if err := os.Chown(r.path(name), int(r.base), int(r.base)); err != nil {
			return err
		}
	}
	fd, err := image.Overlay(image.OverlayOptions{
		Lower: r.lower, Upper: r.path("upper"), Work: r.path("work"), IDBase: r.base, IDCount: host.IDsPerInstance,
	})
	if err != nil {
		return err
	}
	err = unix.MoveMount(fd, "", unix.AT_FDCWD, r.path("root"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	if err := r.start(); err != nil {
		return errors.Join(err, r.remove())
	}
	return nil
}

func (r *raw) start() (err error) {
	if r.container, err = lxc.NewContainer(r.name, r.dir); err != nil {
		return err
	}
	r.created++
	group := fmt.Sprintf("%s.%d", r.name, r.created)
	for _, item := range [][2]string{
		{"lxc.uts.name", r.name}, {"lxc.rootfs.path", "dir:" + r.path("root")},
		{"lxc.init.cmd", "/bin/sleep 86400"},
		{"lxc.idmap", fmt.Sprintf("u 0 %d %d", r.base, host.IDsPerInstance)},
		{"lxc.idmap", fmt.Sprintf("g 0 %d %d", r.base, host.IDsPerInstance)},
		{"lxc.autodev", "1"}, {"lxc.mount.auto", "proc:mixed sys:ro"}, {"lxc.tty.max", "0"}, {"lxc.pty.max", "1024"},
		{"lxc.cap.keep", "chown dac_override fowner fsetid kill net_bind_service setgid setuid sys_chroot"},
		{"lxc.no_new_privs", "1"}, {"lxc.seccomp.profile", "/usr/share/lxc/config/common.seccomp"},
		{"lxc.cgroup.dir.container", "rawlxc." + group}, {"lxc.cgroup.dir.monitor", "rawlxc-monitor." + group},
		{"lxc.cgroup.dir.monitor.pivot", "rawlxc-pivot." + group},
		{"lxc.cgroup.pids.max", "4096"}, {"lxc.cgroup.memory.limit_in_bytes", "8G"},
		{"lxc.net.0.type", "veth"}, {"lxc.net.0.link", r.bridge}, {"lxc.net.0.flags", "up"}, {"lxc.net.0.ipv4.address", r.address},
	} {
		if err := r.container.SetConfigItem(item[0], item[1]); err != nil {
			return fmt.Errorf("%s: %w", item[0], err)
		}
	}
	if err := r.container.WantDaemonize(true); err != nil {
		return err
	}
	if err := r.container.Start(); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	options := lxc.DefaultAttachOptions
	options.StdinFd, options.StdoutFd, options.StderrFd = null.Fd(), null.Fd(), null.Fd()
	code, err := r.container.RunCommandStatus([]string{"/bin/echo", "hello"}, options)
	if err == nil && code != 0 {
		err = fmt.Errorf("the first command ended with %d", code)
	}
	return errors.Join(err, null.Close())
}

func (r *raw) remove() error {
	var err error
	if r.container != nil {
		if r.container.Running() {
			err = r.container.Stop()
		}
		err = errors.Join(err, r.container.Release())
		r.container = nil
	}
	if uerr := unix.Unmount(r.path("root"), unix.MNT_DETACH); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
		err = errors.Join(err, uerr)
	}
	for _, name := range []string{"upper", "work"} {
		err = errors.Join(err, os.RemoveAll(r.path(name)))
	}
	return err
}
