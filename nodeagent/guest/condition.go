//go:build linux

package guest

import (
	"context"
	"sync"
)

// condition is a sync.Cond whose wait ends with a context. It belongs to a
// mutex, under which both methods are called.
type condition struct {
	changed chan struct{}
}

// notify wakes everyone in wait.
func (c *condition) notify() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// wait gives up mu until notify is called or ctx is done.
func (c *condition) wait(ctx context.Context, mu *sync.Mutex) error {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	changed := c.changed
	mu.Unlock()
	defer mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
