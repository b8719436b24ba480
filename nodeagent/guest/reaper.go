//go:build linux

package guest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/sourcegraph/conc"
)

// reaper starts children and collects their ends. There is one place that waits
// so that the first process of an instance can reap orphans without taking the
// ends of its own children from whoever waits for them; no other code of the
// guest starts or waits for a process.
type reaper struct {
	// orphans: also reap children that were not started here.
	orphans bool

	// mu is held shared while a child is started and entered, and while one is
	// signalled; and alone while ends are collected. So an end is never seen
	// before its entry, and a signal never reaches a number used anew.
	mu       sync.RWMutex
	entries  sync.Mutex
	children map[int]func(syscall.WaitStatus)

	stop context.CancelFunc
	done conc.WaitGroup
}

func newReaper(ctx context.Context, orphans bool) *reaper {
	ctx, stop := context.WithCancel(ctx)
	r := &reaper{orphans: orphans, children: map[int]func(syscall.WaitStatus){}, stop: stop}
	stopCatching := catchIgnored()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	r.done.Go(func() {
		defer stopCatching()
		defer signal.Stop(ended)
		for {
			r.collect()
			select {
			case <-ended:
			case <-ctx.Done():
				return
			}
		}
	})
	return r
}

// catchIgnored catches, and drops, the signals that the guest was started to
// ignore, as by a shell's &. An ignored signal stays ignored in every command,
// so that Ctrl-C would not end it; a caught one does not.
func catchIgnored() (stop func()) {
	dropped := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(sig) {
			signal.Notify(dropped, sig)
		}
	}
	return func() { signal.Stop(dropped) }
}

// close stops collecting. Children still running stay.
func (r *reaper) close() {
	r.stop()
	r.done.Wait()
}

// start runs a program and calls ended once, when it has ended. ended must not
// block and must not call the reaper.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr, ended func(syscall.WaitStatus)) (int, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, err
	}
	r.entries.Lock()
	defer r.entries.Unlock()
	r.children[pid] = ended
	return pid, nil
}

// signal sends a signal to a process group whose leader was started here and
// for which alive, asked while no end is being collected, still holds.
func (r *reaper) signal(group int, sig syscall.Signal, alive func() bool) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if group <= 1 || !alive() { // 0 and 1 would mean our own group and everyone
		return os.ErrProcessDone
	}
	if err := syscall.Kill(-group, sig); err != nil {
		return fmt.Errorf("signal process group %d: %w", group, err)
	}
	return nil
}

func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.orphans {
		for r.collectOne(-1) {
		}
		return
	}
	for pid := range r.children {
		r.collectOne(pid)
	}
}

// collectOne reaps one ended child, pid -1 meaning any, and says whether there was one.
func (r *reaper) collectOne(pid int) bool {
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			return false
		}
		if ended := r.children[got]; ended != nil {
			delete(r.children, got)
			ended(status)
		}
		return true
	}
}
