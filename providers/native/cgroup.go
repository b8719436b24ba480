//go:build linux

package native

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
)

// Both generations of control groups are served. Instances lie in a group of
// their own at the top of each hierarchy and not below the agent's, so that
// stopping the agent's service does not end them.
const cgroupParent = "vendetta"

// cpuPeriod in microseconds, the kernel's default.
const cpuPeriod = 100000

// hierarchies of this machine: v1 controller to its mount, or "" for v2's.
func hierarchies(mounts string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup2":
			if _, known := found[""]; !known {
				found[""] = f[1]
			}
		case "cgroup":
			for option := range strings.SplitSeq(f[3], ",") {
				switch option {
				case "pids", "memory", "cpu", "cpuacct":
					if _, known := found[option]; !known {
						found[option] = f[1]
					}
				}
			}
		}
	}
	return found
}

func (m machine) hierarchies() map[string]string {
	raw, err := os.ReadFile(m.mounts)
	if err != nil || !m.root {
		return nil
	}
	return hierarchies(string(raw))
}

// limits are the controllers that can be used here.
func (m machine) limits() map[string]bool {
	all := m.hierarchies()
	usable := map[string]bool{}
	for controller, dir := range all {
		if controller == "" {
			raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers")) // none when unreadable
			for _, c := range strings.Fields(string(raw)) {
				usable[c] = true
			}
			continue
		}
		if unix.Access(dir, unix.W_OK) == nil {
			usable[controller] = true
		}
	}
	return usable
}

// settings of one controller: file to value.
func settings(v2 bool, controller string, r providers.Resources) map[string]string {
	quota := int64(r.CPUs * cpuPeriod)
	set := map[string]string{}
	switch {
	case controller == "pids":
		set["pids.max"] = strconv.FormatInt(r.PIDs, 10)
	case controller == "memory" && r.MemoryBytes > 0 && v2:
		set["memory.max"] = strconv.FormatInt(r.MemoryBytes, 10)
		set["memory.swap.max"] = "0"
	case controller == "memory" && r.MemoryBytes > 0:
		set["memory.limit_in_bytes"] = strconv.FormatInt(r.MemoryBytes, 10)
	case controller == "cpu" && r.CPUs > 0 && v2:
		set["cpu.max"] = fmt.Sprintf("%d %d", max(quota, 1000), cpuPeriod)
	case controller == "cpu" && r.CPUs > 0:
		set["cpu.cfs_period_us"] = strconv.Itoa(cpuPeriod)
		set["cpu.cfs_quota_us"] = strconv.FormatInt(max(quota, 1000), 10)
	}
	return set
}

// limit puts the waiting child of r into groups of its own. Whoever removes the
// last group of another instance takes the parent away too, perhaps just between
// two steps here; then it begins anew.
func (p *Provider) limit(ws string, res providers.Resources, r *run) (err error) {
	for range 5 {
		if err = p.tryLimit(ws, res, r); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

func (p *Provider) tryLimit(ws string, res providers.Resources, r *run) error {
	all := p.machine.hierarchies()
	v1 := map[string][]string{} // folder to controllers; cpu and cpuacct often share
	for controller, dir := range all {
		if controller != "" {
			at := filepath.Join(dir, cgroupParent, ws)
			v1[at] = append(v1[at], controller)
		}
	}
	for at, controllers := range v1 {
		if err := p.enter(at, false, controllers, res, r); err != nil {
			return err
		}
	}
	top, unified := all[""]
	if !unified {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var controllers []string
	for _, c := range strings.Fields(string(raw)) {
		if c == "pids" || c == "memory" || c == "cpu" {
			controllers = append(controllers, c)
		}
	}
	if len(controllers) == 0 {
		return nil // a machine on which v1 has them all
	}
	parent := filepath.Join(top, cgroupParent)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	enable := "+" + strings.Join(controllers, " +")
	for _, dir := range []string{top, parent} {
		if err := set(dir, "cgroup.subtree_control", enable); err != nil {
			return err
		}
	}
	return p.enter(filepath.Join(parent, ws), true, controllers, res, r)
}

func (p *Provider) enter(dir string, v2 bool, controllers []string, res providers.Resources, r *run) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if !slices.Contains(r.Cgroups, dir) {
		r.Cgroups = append(r.Cgroups, dir)
	}
	for _, c := range controllers {
		for file, value := range settings(v2, c, res) {
			err := set(dir, file, value)
			if file == "memory.swap.max" && errors.Is(err, fs.ErrNotExist) {
				err = nil // a kernel without swap accounting
			}
			if err != nil {
				return err
			}
		}
	}
	return set(dir, "cgroup.procs", strconv.Itoa(r.PID))
}

// set writes one file of a control group, which must exist.
func set(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// removeGroups waits for the last process to leave, which takes the kernel a
// moment after the guest's end.
func removeGroups(ctx context.Context, dirs []string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for _, dir := range dirs {
		for {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(filepath.Dir(dir)) // ours while another instance is in it
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-deadline.C:
				return err
			case <-tick.C:
			}
		}
	}
	return nil
}
