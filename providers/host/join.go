//go:build linux

package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
)

// Join puts a process into control groups called name with these limits, and
// returns their folders, those made before an error too. Whoever removes the last
// group of another instance takes the parent away as well, perhaps just between
// two steps here; then it begins anew.
func Join(name string, pid int, r providers.Resources) (dirs []string, err error) {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for range 5 {
		if dirs, err = join(Hierarchies(string(raw)), name, pid, r); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return dirs, err
}

func join(all map[string]string, name string, pid int, r providers.Resources) (dirs []string, err error) {
	v1 := map[string][]string{} // folder to controllers; cpu and cpuacct often share
	for controller, dir := range all {
		if controller != "" {
			at := filepath.Join(dir, GroupParent, name)
			v1[at] = append(v1[at], controller)
		}
	}
	for at, controllers := range v1 {
		dirs = append(dirs, at)
		if err := enter(at, false, controllers, pid, r); err != nil {
			return dirs, err
		}
	}
	top, unified := all[""]
	if !unified {
		return dirs, nil
	}
	raw, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
	if err != nil {
		return dirs, err
	}
	var controllers []string
	for _, c := range strings.Fields(string(raw)) {
		if c == "pids" || c == "memory" || c == "cpu" {
			controllers = append(controllers, c)
		}
	}
	if len(controllers) == 0 {
		return dirs, nil // a machine on which v1 has them all
	}
	parent := filepath.Join(top, GroupParent)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return dirs, err
	}
	enable := "+" + strings.Join(controllers, " +")
	for _, dir := range []string{top, parent} {
		if err := Set(dir, "cgroup.subtree_control", enable); err != nil {
			return dirs, err
		}
	}
	at := filepath.Join(parent, name)
	return append(dirs, at), enter(at, true, controllers, pid, r)
}

func enter(dir string, v2 bool, controllers []string, pid int, r providers.Resources) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range controllers {
		for file, value := range Settings(v2, c, r) {
			err := Set(dir, file, value)
			if file == "memory.swap.max" && errors.Is(err, fs.ErrNotExist) {
				err = nil // a kernel without swap accounting
			}
			if err != nil {
				return err
			}
		}
	}
	return Set(dir, "cgroup.procs", strconv.Itoa(pid))
}
