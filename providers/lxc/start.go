//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sourcegraph/conc/pool"
	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

// Start runs the instance's container, with the guest as its first process.
func (p *Provider) Start(ctx context.Context, ws string) error {
	r, err := p.ready("start", ws)
	if err != nil {
		return err
	}
	if r.Broken != "" {
		return &providers.Error{
			Message: fmt.Sprintf("start lxc workspace %s: %s", ws, r.Broken),
			Next:    "repeat the restore, or bring it down, then up again",
		}
	}
	last, err := p.run(ws)
	if err != nil {
		return failed("start", ws, err)
	}
	if last.Alive() {
		if p.machine.frozen(ws) {
			return p.Resume(ctx, ws)
		}
		return nil
	}
	if err := p.release(ctx, ws, last); err != nil { // what a dead container left behind
		return failed("start", ws, err)
	}
	if err := p.usable(); err != nil {
		return err
	}
	return failed("start", ws, p.spawn(ctx, ws, r))
}

// spawn starts the container of a stopped instance, or leaves it stopped.
func (p *Provider) spawn(ctx context.Context, ws string, r record) (err error) {
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	if _, err := p.listener(ws, v); err != nil {
		return err
	}
	for _, name := range []string{logFile, consoleFile} {
		if err := os.Remove(filepath.Join(p.instanceDir(ws), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	trees, mounts, err := p.trees(ctx, ws, r, v)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range trees {
			_ = f.Close() // whoever needed it has its own
		}
	}()
	a, err := p.begin(ctx, true, trees)
	if err != nil {
		return err
	}
	// Nothing is started before the helper is asked, and without it the helper ends
	// by itself; so a record that is written first never misses a container.
	current := run{Started: time.Now()}
	undo := func(err error) error {
		err = p.explain(ws, err)
		after := context.WithoutCancel(ctx)
		return errors.Join(err, p.release(after, ws, current))
	}
	var network joint
	if current.Monitor, err = host.Identify(a.cmd.Process.Pid); err == nil {
		current.Namespace = mountNamespace(a.cmd.Process.Pid)
		if network, err = p.join(ws, r.Network, &current); err == nil {
			err = root{fd: int(trees[0].Fd()), v: v}.furnish(etc(r, current.Address, network.resolver))
		}
		if err == nil {
			err = p.writeConfig(ws, r, v, current)
		}
		if err == nil {
			err = host.Write(filepath.Join(p.instanceDir(ws), runFile), current)
		}
	}
	if err != nil {
		a.kill()
		return undo(err)
	}
	rules := pool.New().WithErrors()
	rules.Go(func() error { return p.lookAfter(ctx, network) })
	err = p.start(ctx, ws, a, helper.Request{
		Verb: helper.Start, Path: lxcPath, Name: instanceName(ws), Config: p.configPath(ws),
		Stage: helper.StageOf(p.dir), Mounts: mounts, Keep: []string{p.dir}, Environment: variables(r),
		Pingers: [2]uint32{v.IDBase, v.IDBase + host.IDsPerInstance - 1},
	}, &current)
	if unruled := rules.Wait(); err == nil {
		err = unruled
	}
	if err != nil {
		return undo(err)
	}
	p.log.Info("started lxc instance", "workspace", ws, "pid", current.PID)
	return nil
}

func (p *Provider) writeConfig(ws string, r record, v volume, current run) error {
	c, err := p.config(ws, r, v, current)
	if err != nil {
		return err
	}
	text, err := c.text()
	if err != nil {
		return err
	}
	dir := p.instanceDir(ws)
	return errors.Join(
		p.writeFilter(filepath.Join(dir, filterFile)),
		os.WriteFile(p.configPath(ws), []byte(text), 0o600),
	)
}

// trees opens what the container is made of; the root comes first.
func (p *Provider) trees(ctx context.Context, ws string, r record, v volume) (files []*os.File, mounts []helper.Mount, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close() // the error above is the one that counts
			}
		}
	}()
	add := func(name string, fd int, file bool) {
		files = append(files, os.NewFile(uintptr(fd), name))
		mounts = append(mounts, helper.Mount{Name: name, FD: 2 + len(files), File: file})
	}
	base, err := p.images.Held(r.Digest)
	if err != nil { // pruned by hand, or the store is new
		base, err = p.images.Get(ctx, r.Image, r.Digest, p.holder(ws))
	}
	if err != nil {
		return files, mounts, err
	}
	dir, vol := p.instanceDir(ws), p.volumeDir(ws)
	options := image.OverlayOptions{Lower: base.Root, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	if !r.Privileged {
		options.IDBase, options.IDCount = v.IDBase, host.IDsPerInstance
	}
	fd, err := p.overlay(options)
	if err != nil {
		return files, mounts, refusedOverlay(ws, r.Privileged, err)
	}
	add(stageRoot, fd, false)
	for _, t := range []struct {
		name, path     string
		file, writable bool
	}{
		{stageProject, filepath.Join(vol, "workspace"), false, true},
		{stageState, filepath.Join(vol, "state"), false, true},
		{stageLink, filepath.Join(dir, "link"), false, false},
		{stageGuest, p.guest, true, false},
	} {
		fd, err := open(t.path, t.writable)
		if err != nil {
			return files, mounts, err
		}
		add(t.name, fd, t.file)
	}
	return files, mounts, nil
}

// open makes a mount of path that is attached nowhere yet, with what it may do
// already taken away, and cut off from later mounts and unmounts outside.
func open(path string, writable bool) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if !writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(fd) // the error above is the one that counts
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

// refusedOverlay tells what helps where the kernel or the file system cannot show
// an image's files under other ids.
func refusedOverlay(ws string, privileged bool, err error) error {
	if privileged || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM) {
		return err
	}
	return &providers.Error{
		Kind:    providers.ErrUnusable,
		Message: fmt.Sprintf("start lxc workspace %s: this machine cannot share an image between user namespaces (idmapped mounts): %v", ws, err),
		Next:    "use Linux 5.19 or newer with ext4, xfs or btrfs on the node, another provider, or --privileged if you trust what runs in it as you trust root",
		Cause:   err,
	}
}

// explain adds to a failed start what liblxc and the container said of it.
func (p *Provider) explain(ws string, err error) error {
	var own *providers.Error
	if errors.As(err, &own) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	said := p.complaints(ws)
	if said == "" {
		said = p.console(ws)
	}
	if said == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, said)
}

// complaints are the first errors in liblxc's log: what comes later follows from
// them.
func (p *Provider) complaints(ws string) string {
	raw := tail(filepath.Join(p.instanceDir(ws), logFile), consoleLimit)
	var said []string
	for line := range strings.Lines(raw) {
		// lxc NAME TIME ERROR ROOM - FILE:FUNCTION:LINE - TEXT
		if _, text, ok := strings.Cut(line, " ERROR "); ok {
			parts := strings.SplitN(strings.TrimSpace(text), " - ", 3)
			if text := parts[len(parts)-1]; !slices.Contains(said, text) {
				said = append(said, text)
			}
		}
	}
	return strings.Join(said[:min(len(said), 3)], "; ")
}
