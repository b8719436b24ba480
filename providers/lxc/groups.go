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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

var errNoGroups = errors.New("the machine's control groups cannot be read")

// groups are the hierarchies of the machine: v1 controller to its mount, or "" to
// v2's.
type groups map[string]string

func (m machine) hierarchies() (groups, error) {
	raw, err := os.ReadFile(m.mounts)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errNoGroups, err) //nolint:errorlint // that it is missing is no answer to a question about groups
	}
	return host.Hierarchies(string(raw)), nil
}

// pure says that there is v2 alone.
func (g groups) pure() bool { return len(g) == 1 && g[""] != "" }

// setting is one file of a control group.
type setting struct {
	v2                      bool
	controller, file, value string
}

// settings that hold an instance to its limits, in a fixed order.
func (g groups) settings(r providers.Resources) []setting {
	var all []setting
	for _, controller := range []string{"cpu", "memory", "pids"} {
		top, v1 := g[controller]
		if !v1 {
			top = g[""]
			if !has(filepath.Join(top, "cgroup.controllers"), controller) {
				continue
			}
		}
		files := host.Settings(!v1, controller, r)
		for _, file := range []string{
			"cpu.max", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.max", "memory.swap.max",
			"memory.limit_in_bytes", "pids.max",
		} {
			if value, ok := files[file]; ok {
				all = append(all, setting{!v1, controller, file, value})
			}
		}
		// Of both together, so no swap, where the kernel counts it.
		if _, err := os.Stat(filepath.Join(top, "memory.memsw.limit_in_bytes")); v1 && err == nil && r.MemoryBytes > 0 && controller == "memory" {
			all = append(all, setting{false, controller, "memory.memsw.limit_in_bytes", strconv.FormatInt(r.MemoryBytes, 10)})
		}
	}
	return all
}

// has says whether a file of words holds one.
func has(file, word string) bool {
	raw, _ := os.ReadFile(file) // no such file holds none
	for _, w := range strings.Fields(string(raw)) {
		if w == word {
			return true
		}
	}
	return false
}

// every folder of a group that instances have, in every hierarchy there is.
func (m machine) every(names ...string) ([]string, error) {
	raw, err := os.ReadFile(m.mounts)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errNoGroups, err) //nolint:errorlint // that it is missing is no answer to a question about groups
	}
	var all []string
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "cgroup" && f[2] != "cgroup2" {
			continue
		}
		for _, name := range names {
			if at := filepath.Join(f[1], name); !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	return all, nil
}

// freezer is the file that halts an instance's processes, with what to write and
// what it says meanwhile.
type freezer struct{ file, frozen, thawed string }

func (m machine) freezer(ws string) (freezer, error) {
	container, _, _ := groupNames(ws)
	dirs, err := m.every(container)
	if err != nil {
		return freezer{}, err
	}
	for _, f := range []freezer{{"freezer.state", "FROZEN", "THAWED"}, {"cgroup.freeze", "1", "0"}} {
		for _, dir := range dirs {
			at := filepath.Join(dir, f.file)
			if _, err := os.Stat(at); err == nil {
				return freezer{at, f.frozen, f.thawed}, nil
			}
		}
	}
	return freezer{}, fs.ErrNotExist
}

// frozen says whether an instance's processes are halted.
func (m machine) frozen(ws string) bool {
	f, err := m.freezer(ws)
	if err != nil {
		return false
	}
	raw, err := os.ReadFile(f.file)
	return err == nil && strings.TrimSpace(string(raw)) == f.frozen
}

// freeze halts an instance's processes without liblxc, and waits until they are.
func (m machine) freeze(ctx context.Context, ws string) error {
	f, err := m.freezer(ws)
	if err == nil {
		err = host.Set(filepath.Dir(f.file), filepath.Base(f.file), f.frozen)
	}
	if err != nil {
		return err
	}
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !m.frozen(ws) {
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// thaw lets an instance's processes go on, without liblxc; one that has none is
// success.
func (m machine) thaw(ws string) error {
	f, err := m.freezer(ws)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = host.Set(filepath.Dir(f.file), filepath.Base(f.file), f.thawed)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // gone meanwhile
		err = nil
	}
	return err
}

// folders of an instance's groups, those below others first.
func (m machine) folders(ws string) ([]string, error) {
	container, monitor, pivot := groupNames(ws)
	// The last is where a monitor goes to end.
	return m.every(container, monitor, filepath.Join(pivot, "lxc.pivot"), pivot)
}

// members are the processes in an instance's groups, its monitor included.
func (m machine) members(ws string) ([]int, error) {
	dirs, err := m.folders(ws)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, dir := range dirs {
		raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // absent: nobody
		for _, word := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 && !slices.Contains(all, pid) {
				all = append(all, pid)
			}
		}
	}
	return all, nil
}

// inside are the processes whose mount namespace is the one of a helper.
func inside(namespace uint64) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil || namespace == 0 {
		return nil
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && mountNamespace(pid) == namespace {
			all = append(all, pid)
		}
	}
	return all
}

// mountNamespace of a process, by its inode; 0 when there is no such process.
func mountNamespace(pid int) uint64 {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &st) != nil {
		return 0
	}
	return st.Ino
}

// killWait is how long killed processes may take to be gone.
const killWait = 20 * time.Second

// purge kills all that is left of an instance: what is in its groups, and what a
// helper that was killed had begun and had not put there yet. Without a record,
// which a loss of power may take, it is the groups alone that tell.
func (p *Provider) purge(ctx context.Context, ws string, last run) error {
	if last.Monitor.PID != 0 && last.Monitor.BootID != host.BootID() {
		return nil // the machine was restarted since
	}
	deadline := time.NewTimer(killWait)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := p.machine.members(ws)
		if err != nil {
			return err
		}
		if last.PID == 0 || last.Monitor.Alive() {
			left = append(left, inside(last.Namespace)...)
		}
		left = slices.DeleteFunc(left, func(pid int) bool { return pid == os.Getpid() || ended(pid) })
		if len(left) == 0 {
			return nil
		}
		if err := p.machine.thaw(ws); err != nil {
			return err
		}
		for _, pid := range left {
			if err := p.kill(ws, pid, last.Namespace); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("processes %d do not end", left)
		case <-tick.C:
		}
	}
}

// ended says whether a process is gone but for its parent's notice.
func ended(pid int) bool {
	process, err := host.Identify(pid)
	return err != nil || !process.Alive()
}

// kill ends a process that is the instance's at the moment that it is held.
func (p *Provider) kill(ws string, pid int, namespace uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	members, err := p.machine.members(ws)
	if err == nil && (slices.Contains(members, pid) || namespace != 0 && mountNamespace(pid) == namespace) {
		if err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
			err = nil
		}
	}
	return errors.Join(err, unix.Close(fd))
}

// disband removes an instance's groups. What a monitor does itself when it ends in
// peace is not there any more.
func (p *Provider) disband(ctx context.Context, ws string) error {
	all, err := p.machine.folders(ws)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(all, func(dir string) bool {
		_, err := os.Lstat(dir)
		return errors.Is(err, fs.ErrNotExist)
	})
	return host.RemoveGroups(ctx, left)
}

// freezes says whether there is a hierarchy that halts processes.
func (m machine) freezes() bool {
	raw, _ := os.ReadFile(m.mounts) // unreadable: none
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		if f[2] == "cgroup2" || f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "freezer") {
			return true
		}
	}
	return false
}
