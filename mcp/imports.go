package mcp

import (
	"context"
	"sync"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// imports are creations that go on when the call that began them has answered.
// They end with the gateway; a later one takes up what they left.
type imports struct {
	owner conc.WaitGroup
	mu    sync.Mutex
	ctx   context.Context //nolint:containedctx // the gateway's lifetime, which calls do not have
	jobs  map[string]*job
}

type job struct {
	// arguments tell whether a call asks for the same.
	arguments string
	done      chan struct{}
	// answer and err are set before done is closed.
	answer string
	err    error

	mu     sync.Mutex
	status string
}

func (j *job) say(status string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.status = status
}

func (j *job) saying() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.status
}

func (j *job) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

func newImports() *imports { return &imports{jobs: map[string]*job{}} }

func (i *imports) begin(ctx context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ctx = ctx
}

func (i *imports) wait() { i.owner.Wait() }

// join begins the job of that name, or joins the one that runs or whose end
// nobody has been told yet.
func (i *imports) join(name, arguments string, run func(ctx context.Context, say func(string)) (string, error)) (*job, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if j := i.jobs[name]; j != nil {
		if j.arguments == arguments {
			return j, nil
		}
		if !j.ended() {
			return nil, api.Errorf(api.Conflict, "create %s: it is being created with other arguments", name).
				WithNext("wait until that is done: workspace_status %s", name)
		}
	}
	j := &job{arguments: arguments, done: make(chan struct{}), status: "beginning"}
	i.jobs[name] = j
	ctx := i.ctx
	i.owner.Go(func() {
		defer close(j.done)
		j.answer, j.err = run(ctx, j.say)
	})
	return j, nil
}

// collect forgets a job whose end was told.
func (i *imports) collect(name string, j *job) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.jobs[name] == j {
		delete(i.jobs, name)
	}
}
