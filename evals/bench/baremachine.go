//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// bareMachine is the virtual machine of a stopped workspace, started with the
// same kernel, initramfs, disks and devices by hand: what a boot costs without
// node agent, control groups and a user of its own.
type bareMachine struct {
	dir  string
	argv []string
}

var fdSocket = regexp.MustCompile(`id=([a-z]+),fd=[0-9]+,server=on`)

// newBareMachine makes a workspace, copies its machine's command line with paths
// in place of descriptors, and stops it.
func newBareMachine(ctx context.Context, b *bed) (*bareMachine, error) {
	const name = "bare"
	if _, err := b.run(ctx, "workspace", "create", name, "--node", near, "--provider", qemu, "--image", b.imageOf(qemu)); err != nil {
		return nil, err
	}
	id, err := b.workspaceID(ctx, name)
	if err != nil {
		return nil, err
	}
	pid, argv, err := findProcess("vendetta-" + id)
	if err != nil {
		return nil, err
	}
	m := &bareMachine{dir: filepath.Join(b.home, "bare")}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, err
	}
	open, err := filesOf(pid)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(argv); i++ {
		arg := argv[i]
		switch {
		case arg == "-add-fd":
			i++
			continue
		case i > 0 && argv[i-1] == "-blockdev":
			if arg, err = withPaths(arg, open); err != nil {
				return nil, err
			}
		case i > 0 && argv[i-1] == "-kernel":
			arg = b.kernel
		case i > 0 && argv[i-1] == "-initrd":
			arg = open["initrd"]
		}
		m.argv = append(m.argv, fdSocket.ReplaceAllString(arg, "id=$1,path=$1,server=on"))
	}
	if _, err := b.run(ctx, "workspace", "stop", name); err != nil {
		return nil, err
	}
	return m, nil
}

// filesOf are the files that a QEMU has open, by what they are to the machine.
func filesOf(pid int) (map[string]string, error) {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, link := range links {
		path, err := os.Readlink(link)
		if err != nil {
			continue // closed meanwhile
		}
		switch name := filepath.Base(path); {
		case name == "root.qcow2":
			found["root"] = path
		case name == "volume.qcow2":
			found["volume"] = path
		case name == "seed.img":
			found["seed"] = path
		case strings.HasPrefix(name, "initramfs-"):
			found["initrd"] = path
		case strings.Contains(path, "/images/"):
			found["base"] = path
		}
	}
	for _, name := range []string{"root", "volume", "seed", "initrd", "base"} {
		if found[name] == "" {
			return nil, fmt.Errorf("process %d has no file open that is its %s", pid, name)
		}
	}
	return found, nil
}

// withPaths puts paths into a block device's options, in place of descriptors.
func withPaths(options string, paths map[string]string) (string, error) {
	var top map[string]any
	if err := json.Unmarshal([]byte(options), &top); err != nil {
		return "", err
	}
	for at := top; at != nil; {
		name, _ := at["node-name"].(string)
		file, ok := at["file"].(map[string]any)
		if !ok || paths[name] == "" {
			return "", fmt.Errorf("a block device of no known file: %s", options)
		}
		file["filename"] = paths[name]
		at, _ = at["backing"].(map[string]any) // none: the last
	}
	raw, err := json.Marshal(top)
	return string(raw), err
}

// findProcess finds a QEMU by the name that it was given.
func findProcess(name string) (pid int, argv []string, err error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, nil, err
	}
	for _, path := range found {
		raw, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(raw), "\x00-name\x00"+name+"\x00") {
			continue // ended meanwhile, or another
		}
		_, err = fmt.Sscanf(path, "/proc/%d/cmdline", &pid)
		return pid, strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00"), err
	}
	return 0, nil, fmt.Errorf("no QEMU runs with the name %s", name)
}

// slot is a folder with disks of its own, so that several run at a time, and the
// command line for it; memory, where not empty, takes the place of the usual.
func (m *bareMachine) slot(i int, memory string) (dir string, argv []string, err error) {
	dir = filepath.Join(m.dir, strconv.Itoa(i))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	argv = slices.Clone(m.argv)
	for n, arg := range argv {
		for _, disk := range ownDisk.FindAllString(arg, -1) {
			copied := filepath.Join(dir, filepath.Base(disk))
			if _, serr := os.Stat(copied); serr != nil {
				var content []byte
				if content, err = os.ReadFile(disk); err == nil {
					err = os.WriteFile(copied, content, 0o600)
				}
			}
			argv[n] = strings.ReplaceAll(argv[n], disk, copied)
		}
		if n > 0 && argv[n-1] == "-m" && memory != "" {
			argv[n] = memory
		}
	}
	return dir, argv, err
}

// ownDisk finds the paths of the disks that a machine writes to.
var ownDisk = regexp.MustCompile(`/[^"]*\.qcow2`)

// boot starts the machine, runs a first command in it and ends it.
func (m *bareMachine) boot(ctx context.Context, r *roads, i int, memory string) (err error) {
	dir, argv, err := m.slot(i, memory)
	if err != nil {
		return err
	}
	link := filepath.Join(dir, "link")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // ended by itself otherwise
		_ = cmd.Wait()         // killed, so never well
		if err != nil && said.Len() > 0 {
			err = fmt.Errorf("%w: %s", err, said.String())
		}
	}()
	conn, err := dialPatiently(ctx, link)
	if err != nil {
		return err
	}
	if err := wire.OpenLink(ctx, conn); err != nil {
		return errors.Join(err, conn.Close())
	}
	only := make(chan net.Conn, 1)
	only <- conn
	guest := wire.Client(func(context.Context) (net.Conn, error) {
		select {
		case conn := <-only:
			return conn, nil
		default:
			return nil, errors.New("the machine's link was lost")
		}
	})
	defer guest.CloseIdleConnections()
	return r.start(ctx, guestv1connect.NewProcessServiceClient(guest, wire.BaseURL), "echo", "hello")
}

func dialPatiently(ctx context.Context, socket string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}
