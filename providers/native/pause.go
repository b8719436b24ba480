//go:build linux

package native

import (
	"bytes"
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

// haltWait is how long the processes of an instance may take to halt; one that
// waits for a disk halts when that has answered.
const haltWait = 20 * time.Second

// Pause halts the processes of a running instance.
func (p *Provider) Pause(ctx context.Context, ws string) error {
	last, err := p.live("pause", ws)
	if err != nil {
		return err
	}
	// It is written down first: a halted instance that nobody knows to be one
	// could not be told from one that hangs.
	was := last.Paused
	last.Paused = true
	if err := p.keep(ws, last); err != nil {
		return failed("pause", ws, err)
	}
	if err := p.halt(ctx, ws, &last, !was); err != nil {
		if was {
			return failed("pause", ws, err)
		}
		last.Paused = false
		return failed("pause", ws, errors.Join(err, p.goOn(&last), p.keep(ws, last)))
	}
	return nil
}

// Resume lets them go on.
func (p *Provider) Resume(_ context.Context, ws string) error {
	last, err := p.live("resume", ws)
	if err != nil || !last.Paused {
		return err
	}
	return failed("resume", ws, p.resume(ws, &last))
}

// resume lets a halted instance go on, for good.
func (p *Provider) resume(ws string, last *run) error {
	if err := p.goOn(last); err != nil {
		return err
	}
	last.Paused, last.Held, last.Stopped = false, false, nil
	return p.keep(ws, *last)
}

// live loads the run of an instance that is there and runs.
func (p *Provider) live(op, ws string) (run, error) {
	if _, err := p.ready(op, ws); err != nil {
		return run{}, err
	}
	last, err := p.run(ws)
	if err != nil {
		return last, failed(op, ws, err)
	}
	if !last.Alive() {
		return last, notRunning(op, ws)
	}
	return last, failed(op, ws, p.mend(ws, &last))
}

func (p *Provider) keep(ws string, last run) error {
	return host.Write(filepath.Join(p.instanceDir(ws), runFile), last)
}

// hold halts an instance for the time of a copy, unless it does not run or is
// paused anyway. An agent that dies meanwhile leaves a note to the next one.
func (p *Provider) hold(ctx context.Context, ws string) (letGo func() error, err error) {
	last, err := p.run(ws)
	if err != nil {
		return nil, err
	}
	// Else all that an earlier agent halted would count as halted by the user.
	if err := p.mend(ws, &last); err != nil {
		return nil, err
	}
	if last.Paused || !last.Alive() {
		return func() error { return nil }, nil
	}
	p.setHeld(ws, true)
	last.Held = true
	letGo = func() error {
		defer p.setHeld(ws, false)
		return p.resume(ws, &last)
	}
	if err := p.keep(ws, last); err != nil {
		p.setHeld(ws, false)
		return nil, err
	}
	if err := p.halt(ctx, ws, &last, true); err != nil {
		return nil, errors.Join(err, letGo())
	}
	return letGo, nil
}

func (p *Provider) setHeld(ws string, held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held {
		p.held[ws] = true
	} else {
		delete(p.held, ws)
	}
}

func (p *Provider) holds(ws string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[ws]
}

// mend lets an instance go on that an earlier agent held when it died.
func (p *Provider) mend(ws string, last *run) error {
	if !last.Held {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[ws] || !last.Alive() {
		return nil
	}
	p.log.Warn("letting an instance go on that was held", "workspace", ws)
	return p.resume(ws, last)
}

// halt returns when no process of the instance runs any more. What was halted
// before is noted where the instance ran until now.
func (p *Provider) halt(ctx context.Context, ws string, last *run, ran bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, haltWait, errHalt)
	defer cancel()
	if f, ok := freezerOf(last.Cgroups); ok {
		return f.freeze(ctx)
	}
	before, err := stopAll(ctx, last.PID)
	if ran && len(before) > 0 && err == nil {
		last.Stopped = before
		err = p.keep(ws, *last)
	}
	return err
}

var errHalt = errors.New("its processes do not halt")

// goOn undoes halt.
func (p *Provider) goOn(last *run) error {
	if f, ok := freezerOf(last.Cgroups); ok {
		return f.thaw()
	}
	return continueAll(last.PID, last.Stopped)
}

// freezer is a control group that halts its processes.
type freezer struct {
	dir, file      string
	frozen, thawed string
	// done, a file and what it holds when all of them have halted.
	done, says string
}

// freezerOf finds the one among an instance's groups, of either generation.
func freezerOf(dirs []string) (freezer, bool) {
	for _, dir := range dirs {
		for _, f := range []freezer{
			{dir, "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN"},
			{dir, "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1"},
		} {
			if _, err := os.Lstat(filepath.Join(dir, f.file)); err == nil {
				return f, true
			}
		}
	}
	return freezer{}, false
}

func (f freezer) freeze(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		// Again and again: version 1 may need more than one push.
		if err := host.Set(f.dir, f.file, f.frozen); err != nil {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(f.dir, f.done))
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(string(raw), "\n"), f.says) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// thaw of a group that is gone is success.
func (f freezer) thaw() error {
	err := host.Set(f.dir, f.file, f.thawed)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// members are the processes in pid's namespace, pid among them.
func members(pid int) ([]int, error) {
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, err
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		id, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if at, err := os.Readlink("/proc/" + name + "/ns/pid"); err == nil && at == home { // else another's, or gone meanwhile
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all, nil
}

// stopAll halts a pid namespace by signals, where there is no control group to do
// it. A process that has the signal makes no more processes, so when all have
// halted that are seen, and the same ones are seen again, there are no others. It
// returns those that were halted before.
func stopAll(ctx context.Context, pid int) (before []host.Process, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var seen []int
	for first := true; ; first = false {
		all, err := members(pid)
		if err != nil {
			return before, err
		}
		running := 0
		for _, id := range all {
			done, err := halted(id)
			if err != nil {
				continue // it has ended
			}
			if done {
				if first {
					if named, err := host.Identify(id); err == nil {
						before = append(before, named)
					}
				}
				continue
			}
			running++
			if err := unix.Kill(id, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return before, err
			}
		}
		if running == 0 && slices.Equal(seen, all) {
			return before, nil
		}
		seen = all
		select {
		case <-ctx.Done():
			return before, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// continueAll undoes stopAll. A process whose parent waits for it goes on before
// that one, so that the parent sees it running.
func continueAll(pid int, but []host.Process) error {
	all, err := members(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range slices.Backward(all) {
		if slices.ContainsFunc(but, func(p host.Process) bool { return p.PID == id && p.Alive() }) {
			continue
		}
		if err := unix.Kill(id, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// halted says whether no thread of a process runs.
func halted(pid int) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, t := range tasks {
		raw, err := os.ReadFile(filepath.Join(dir, t.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		// proc(5): the name in brackets may hold anything, the state follows it.
		i := bytes.LastIndexByte(raw, ')')
		if i < 0 || i+2 >= len(raw) || strings.IndexByte("TtZX", raw[i+2]) < 0 {
			return false, nil
		}
	}
	return true, nil
}

var _ providers.Pauser = (*Provider)(nil)
