//go:build linux

package lxc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

func TestLife(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	r.want(w1, "id -u", "0")
	r.want(w1, "echo $FROM_IMAGE", "a b c")
	r.want(w1, "cat /etc/hostname", "box-"+w1)
	r.want(w1, "grep -c box-"+w1+" /etc/hosts", "1")
	r.want(w1, "cat /proc/1/ns/* 2>/dev/null; pwd", "/workspace")
	r.want(w1, "cat /proc/sys/net/ipv4/ping_group_range", "0\t65535")
	r.refused(w1, "cat /proc/kallsyms | grep .")
	r.refused(w1, "unshare -U true")
	r.refused(w1, "unshare -m true")
	r.refused(w1, "mount -t tmpfs x /tmp")
	r.refused(w1, "mknod /tmp/disk b 8 0")
	r.refused(w1, "echo 1 > /proc/sys/kernel/panic")
	r.refused(w1, "echo 1 > /sys/kernel/mm/ksm/run")
	r.refused(w1, "ls "+r.dir)
	if got := r.Console(t.Context(), w1); got != "guest is up" {
		t.Errorf("console %q", got)
	}
	// Nothing of it is mounted on the machine, and nobody else can look.
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), r.dir) {
		t.Error("it is mounted on the machine")
	}
	if info, err := os.Stat(filepath.Join(r.dir, "s", "instances")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if err := r.Stop(t.Context(), w1, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if i := r.inspect(w1); i.State != providers.StateStopped {
		t.Errorf("%+v", i)
	}
	for _, ws := range []string{"", "../x", w2} {
		if got := r.Console(t.Context(), ws); got != "" {
			t.Errorf("console of %q: %q", ws, got)
		}
	}
}

// The container ends behind the provider's back: its first process, or liblxc's
// monitor above it.
func TestKilled(t *testing.T) {
	for what, victim := range map[string]func(run) host.Process{
		"guest":   func(r run) host.Process { return r.Process },
		"monitor": func(r run) host.Process { return r.Monitor },
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			r.up(spec(w1))
			last, err := r.run(w1)
			if err != nil {
				t.Fatal(err)
			}
			if err := victim(last).Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for _, p := range []host.Process{last.Process, last.Monitor} {
				if gone, err := p.Gone(t.Context(), patience); !gone || err != nil {
					t.Fatal(gone, err)
				}
			}
			if i := r.inspect(w1); i.State != providers.StateStopped || i.Message != "the container has ended" {
				t.Errorf("%+v", i)
			}
			if err := r.Start(t.Context(), w1); err != nil {
				t.Fatal(err)
			}
			delete(r.conns, w1)
			r.want(w1, "echo again", "again")
			r.clean(w1)
		})
	}
}

// clean destroys a workspace and fails when anything is left of it.
func (r *rig) clean(ws string) {
	r.t.Helper()
	if err := r.Destroy(r.t.Context(), ws, true); err != nil {
		r.t.Fatal(err)
	}
	if left := leftovers(r.dir)(r.t, ws); len(left) > 0 {
		r.t.Errorf("left behind: %q", left)
	}
}

// After a reboot there is a record of a process and nothing else: no process, no
// mount, no group, no link.
func TestReboot(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	r.want(w1, "echo kept > /root/file", "")
	last, err := r.run(w1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Fatal(err)
	}
	last.BootID, last.Monitor.BootID = "another", "another"
	if err := host.Write(filepath.Join(r.instanceDir(w1), runFile), last); err != nil {
		t.Fatal(err)
	}
	r.renew()
	if i := r.inspect(w1); i.State != providers.StateStopped || i.Message != "the machine was restarted" {
		t.Errorf("%+v", i)
	}
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	r.want(w1, "cat /root/file", "kept")
}

// What a workspace left in its root leads nowhere when it starts again.
func TestPlantedRoot(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(r.dir, "outside")
	if err := os.MkdirAll(filepath.Join(outside, "bin"), 0o777); err != nil {
		t.Fatal(err)
	}
	upper := filepath.Join(r.instanceDir(w1), "upper")
	for name, to := range map[string]string{
		".vendetta": outside, "workspace": outside, "etc": outside, "proc": outside, "sys": "/", "dev": "../../../../" + outside,
	} {
		path := filepath.Join(upper, name)
		if err := errors.Join(os.RemoveAll(path), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	r.want(w1, "cat /etc/hostname; echo x > /workspace/file", "box-"+w1)
	err := filepath.WalkDir(outside, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != outside && d.Name() != "bin" {
			err = fmt.Errorf("%s was made outside", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := r.Stop(t.Context(), w1, time.Second); err != nil {
		t.Fatal(err)
	}
	// Files in the place of folders, and folders in the place of files.
	for _, name := range []string{"etc/hosts/full", "etc/hostname", ".vendetta/bin/vendetta-guest"} {
		path := filepath.Join(upper, name)
		if err := errors.Join(os.RemoveAll(strings.TrimSuffix(path, "/full")), os.MkdirAll(path, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Start(t.Context(), w1); err == nil || !strings.Contains(err.Error(), "/etc/hosts") {
		t.Errorf("a folder with something in it made way: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(upper, "etc/hosts")); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	delete(r.conns, w1)
	r.want(w1, "cat /etc/hostname", "box-"+w1)
}

// An image without anything in it: the guest runs, and nothing else can.
func TestEmptyImage(t *testing.T) {
	r := newRig(t)
	r.store.Root = filepath.Join(r.dir, "empty")
	if err := os.Mkdir(r.store.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	r.up(spec(w1))
	r.refused(w1, "true")
	if i := r.inspect(w1); i.State != providers.StateRunning {
		t.Errorf("%+v", i)
	}
}

func TestPrivilegedVolume(t *testing.T) {
	r := newRig(t)
	s := spec(w1)
	s.Privileged = true
	r.up(s)
	r.want(w1, "cat /proc/self/uid_map | tr -s ' '", "0 0 4294967295")
	r.refused(w1, "mknod /tmp/disk b 8 0")
	if err := r.Destroy(t.Context(), w1, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), spec(w1)); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("took a privileged workspace's volume: %v", err)
	}
	if _, err := r.Create(t.Context(), s); err != nil {
		t.Error(err)
	}
	s.Workspace = w2
	s.Privileged = false
	r.up(s)
	s.Workspace, s.Privileged = w3, true
	if _, err := r.Fork(t.Context(), w2, s); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("forked into another kind: %v", err)
	}
}

// Two workspaces have addresses and ids of their own, reach the machine, and not
// each other; bridge and rules stand while one of them does.
func TestPrivateNetwork(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	r.up(spec(w2))
	address := func(ws string) string {
		last, err := r.run(ws)
		if err != nil {
			t.Fatal(err)
		}
		at, _, _ := strings.Cut(last.Address, "/")
		r.want(ws, "ip -o -4 addr show dev eth0 | grep -c ' "+at+"/16 '", "1")
		return at
	}
	one, two := address(w1), address(w2)
	if one == two {
		t.Errorf("both have %s", one)
	}
	r.want(w2, "(while true; do echo hello | nc -l -p 8000; done >/dev/null 2>&1 &) ; true", "")
	r.want(w2, "until nc -w 2 "+two+" 8000 </dev/null 2>/dev/null; do true; done | head -1", "hello")
	r.refused(w1, "nc -w 2 "+two+" 8000 </dev/null")
	listener, err := net.Listen("tcp", "10.232.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(conn.RemoteAddr().String()))
			_ = conn.Close()
		}
	}()
	r.want(w1, "nc -w 5 "+strings.Replace(listener.Addr().String(), ":", " ", 1)+" </dev/null | cut -d: -f1", one)
	a, err1 := r.volume(w1)
	b, err2 := r.volume(w2)
	if err1 != nil || err2 != nil || a.IDBase == b.IDBase || a.IDBase == 0 {
		t.Errorf("ids %d and %d, %v, %v", a.IDBase, b.IDBase, err1, err2)
	}
}
