package ssh

import (
	"sync"
	"time"
)

// deadline closes a channel once its time has passed, and can be set anew.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{}
	isSet   bool
}

func newDeadline() *deadline { return &deadline{expired: make(chan struct{})} }

// set moves the deadline; the zero time removes it.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() && d.isSet {
		<-d.expired // the timer's function is about to close it, or has
	}
	d.timer = nil
	d.isSet = !t.IsZero()
	select {
	case <-d.expired:
		d.expired = make(chan struct{})
	default:
	}
	if !d.isSet {
		return
	}
	expired := d.expired
	left := time.Until(t)
	if left <= 0 {
		close(expired)
		return
	}
	d.timer = time.AfterFunc(left, func() { close(expired) })
}

// stop ends the timer without a new deadline.
func (d *deadline) stop() { d.set(time.Time{}) }

// wait returns the channel that is closed when the present deadline passes.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

// armed says whether there is a deadline.
func (d *deadline) armed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isSet
}
