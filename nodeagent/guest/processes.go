//go:build linux

package guest

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// processes are all those that the guest knows, by id.
type processes struct {
	dir         string
	keepEnded   int
	mostRunning int
	log         *slog.Logger

	mu      sync.Mutex
	known   map[string]*process
	order   []*process // oldest first
	running int
	shutOff bool
	dropped *usedIDs
}

func loadProcesses(dir string, keepEnded, mostRunning int, log *slog.Logger) (*processes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	reserveOf(dir).keep()
	dropped, err := loadUsedIDs(dir + ".used")
	if err != nil {
		return nil, err
	}
	t := &processes{dir: dir, keepEnded: keepEnded, mostRunning: mostRunning, log: log, known: map[string]*process{}, dropped: dropped}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load processes: %w", err)
	}
	for _, entry := range entries {
		id := entry.Name()
		if checkProcessID(id) != nil || !entry.IsDir() {
			continue
		}
		p, err := loadProcess(filepath.Join(dir, id), id)
		if err != nil {
			return nil, fmt.Errorf("load process %s: %w", id, err)
		}
		t.known[id] = p
		t.order = append(t.order, p)
	}
	slices.SortStableFunc(t.order, func(a, b *process) int {
		return cmp.Compare(a.info.GetStartedAt().AsTime().UnixNano(), b.info.GetStartedAt().AsTime().UnixNano())
	})
	t.prune()
	return t, nil
}

// get finds a process.
func (t *processes) get(id string) (*process, error) {
	if err := checkProcessID(id); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.known[id]
	if p == nil && t.dropped.has(id) {
		return nil, api.Errorf(api.NotFound, "process %s: it ended long ago and its output was dropped for newer ones", id)
	}
	if p == nil {
		return nil, api.Errorf(api.NotFound, "process %s: there is no such process", id).
			WithNext("list the processes of the workspace")
	}
	return p, nil
}

// reserve takes an id and a place among the running; make makes the process
// and its record. The place is given back by ended or forget.
func (t *processes) reserve(c *command) (*process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shutOff {
		return nil, api.Errorf(api.Unavailable, "start %s: the workspace is stopping", c.id)
	}
	if t.known[c.id] != nil || t.dropped.has(c.id) {
		return nil, errIDTaken(c.id)
	}
	if t.running >= t.mostRunning {
		return nil, api.Errorf(api.ResourceExhausted, "start %s: %d processes are running, which is the most", c.id, t.running).
			WithNext("end one of them first")
	}
	dir := filepath.Join(t.dir, c.id)
	info := c.info()
	if err := makeRecord(dir, info); err != nil {
		return nil, err
	}
	spool := newSpool(dir, c.spool)
	spool.spare = reserveOf(filepath.Dir(dir))
	p := newProcess(dir, info, spool, newInput(c.stdin, c.open, c.terminal != nil))
	t.known[c.id] = p
	t.order = append(t.order, p)
	t.running++
	return p, nil
}

// forget gives up an id whose process was certainly not started.
func (t *processes) forget(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	delete(t.known, p.id)
	t.order = slices.DeleteFunc(t.order, func(q *process) bool { return q == p })
	if err := p.spool.remove(); err != nil {
		t.log.Error("remove the record of a process that did not start", "process", p.id, "error", err)
	}
}

// ended gives the place back and drops what is too old.
func (t *processes) ended() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	t.prune()
}

// prune drops the oldest ended processes beyond those to keep, ones with
// readers aside.
func (t *processes) prune() {
	over := len(t.order) - t.running - t.keepEnded
	if over <= 0 {
		return
	}
	t.order = slices.DeleteFunc(t.order, func(p *process) bool {
		if over <= 0 || p.running() || p.spool.attached() {
			return false
		}
		if err := t.dropped.add(p.id); err != nil {
			t.log.Error("note the id of a dropped process", "process", p.id, "error", err)
			return false
		}
		if err := p.spool.remove(); err != nil {
			t.log.Error("drop an old process", "process", p.id, "error", err)
			return false
		}
		over--
		delete(t.known, p.id)
		return true
	})
}

// list returns all, newest first.
func (t *processes) list() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.order)
	slices.Reverse(all)
	return all
}

// shut refuses further starts and returns the running processes.
func (t *processes) shut() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shutOff = true
	return slices.DeleteFunc(slices.Clone(t.order), func(p *process) bool { return !p.running() })
}
