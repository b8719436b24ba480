//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

var _ providers.Resizer = (*Provider)(nil)

// resizable says whether there is a control group for each of the limits.
func (m machine) resizable() bool {
	limits := m.limits()
	return limits["cpu"] && limits["memory"] && limits["pids"]
}

// Resize changes what the control groups say, at once where the instance runs.
func (p *Provider) Resize(_ context.Context, ws string, wanted providers.Resources) (note string, err error) {
	r, err := p.ready("resize", ws)
	if err != nil {
		return "", err
	}
	if err := p.checkResources("resize", ws, wanted); err != nil && !errors.Is(err, providers.ErrUnsupported) {
		return "", err
	}
	if !p.machine.resizable() {
		return "", &providers.Error{
			Kind:    providers.ErrUnsupported,
			Message: fmt.Sprintf("resize native workspace %s: the limits of a running process are changed by control groups, which this node agent cannot make", ws),
			Next:    "run the node agent as root, or make the workspace again with other limits",
		}
	}
	if err := p.checkResources("resize", ws, wanted); err != nil {
		return "", err
	}
	last, err := p.run(ws)
	if err != nil {
		return "", failed("resize", ws, err)
	}
	was := r.Resources
	r.Resources = merge(was, wanted)
	var undo func() error
	if last.Alive() {
		if undo, err = resize(last, was, wanted); err != nil {
			return "", failed("resize", ws, err)
		}
	}
	if err := host.Write(filepath.Join(p.instanceDir(ws), recordFile), r); err != nil {
		if undo != nil {
			err = errors.Join(err, undo())
		}
		return "", failed("resize", ws, err)
	}
	return "", nil
}

// resize writes limits into the groups of what runs. After an error the old ones
// are in force, as after undo.
func resize(last run, was, wanted providers.Resources) (undo func() error, err error) {
	type written struct{ dir, file, old string }
	var done []written
	undo = func() error {
		var errs []error
		for _, w := range slices.Backward(done) {
			errs = append(errs, host.Set(w.dir, w.file, w.old))
		}
		if wanted.PIDs > 0 {
			errs = append(errs, limitEach(last.PID, was.PIDs))
		}
		return errors.Join(errs...)
	}
	for _, w := range changes(last.Cgroups, wanted) {
		old, err := os.ReadFile(filepath.Join(w.dir, w.file))
		if err != nil {
			continue // another hierarchy's, or another generation's
		}
		err = fits(w.dir, wanted.MemoryBytes)
		if err == nil {
			err = host.Set(w.dir, w.file, w.value)
		}
		if errors.Is(err, unix.EBUSY) && strings.HasPrefix(w.file, "memory.") {
			err = errInUse
		}
		if err != nil {
			return nil, errors.Join(err, undo())
		}
		done = append(done, written{w.dir, w.file, strings.TrimSpace(string(old))})
	}
	if wanted.PIDs > 0 {
		// The second line of defence moves too, and it is each process's own.
		if err := limitEach(last.PID, wanted.PIDs); err != nil {
			return nil, errors.Join(err, undo())
		}
	}
	return undo, nil
}

type change struct{ dir, file, value string }

// changes are all that may have to be written, for either generation.
func changes(dirs []string, wanted providers.Resources) []change {
	var all []change
	for _, dir := range dirs {
		for _, controller := range []string{"cpu", "memory", "pids"} {
			if controller == "pids" && wanted.PIDs == 0 {
				continue
			}
			for _, v2 := range []bool{false, true} {
				for file, value := range host.Settings(v2, controller, wanted) {
					all = append(all, change{dir, file, value})
				}
			}
		}
	}
	return all
}

var errInUse = &providers.Error{
	Kind:    providers.ErrExhausted,
	Message: "resize native workspace: it uses more memory than that now",
	Next:    "end some of its processes, then repeat",
}

// fits refuses a limit below what is used: version 2 would kill for it.
func fits(dir string, most int64) error {
	var now providers.Usage
	if _, err := os.Lstat(filepath.Join(dir, "memory.max")); most == 0 || err != nil {
		return nil //nolint:nilerr // version 1 refuses by itself
	}
	host.Measure([]string{dir}, &now)
	if now.MemoryBytes > most {
		return errInUse
	}
	return nil
}

// limitEach sets the limit on processes for each one of pid's namespace.
func limitEach(pid int, most int64) error {
	for range 100 {
		all, err := members(pid)
		if err != nil {
			return err
		}
		changed := false
		for _, id := range all {
			var old unix.Rlimit
			err := unix.Prlimit(id, unix.RLIMIT_NPROC, nil, &old)
			if wanted := min(uint64(most), old.Max); err == nil && old.Cur != wanted {
				changed = true
				err = unix.Prlimit(id, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: wanted, Max: old.Max}, nil)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if !changed { // nor was one made meanwhile by one that had the old limit
			return nil
		}
	}
	return errors.New("its processes multiply too fast")
}
