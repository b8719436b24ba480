//go:build linux

package native

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

func (m machine) hierarchies() map[string]string {
	raw, err := os.ReadFile(m.mounts)
	if err != nil || !m.root {
		return nil
	}
	return host.Hierarchies(string(raw))
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
			at := filepath.Join(dir, host.GroupParent, ws)
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
	parent := filepath.Join(top, host.GroupParent)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	enable := "+" + strings.Join(controllers, " +")
	for _, dir := range []string{top, parent} {
		if err := host.Set(dir, "cgroup.subtree_control", enable); err != nil {
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
		for file, value := range host.Settings(v2, c, res) {
			err := host.Set(dir, file, value)
			if file == "memory.swap.max" && errors.Is(err, fs.ErrNotExist) {
				err = nil // a kernel without swap accounting
			}
			if err != nil {
				return err
			}
		}
	}
	return host.Set(dir, "cgroup.procs", strconv.Itoa(r.PID))
}
