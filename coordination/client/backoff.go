package client

import (
	"context"
	"time"
)

// Pauses between two attempts to reach a lost guest. The longest is short,
// since a person or an agent is waiting and one question costs little.
const (
	pauseFirst = 50 * time.Millisecond
	pauseMost  = time.Second
)

type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: pauseFirst} }

func (b *backoff) reset() { b.next = pauseFirst }

// pause waits, each time longer up to pauseMost, or until ctx is done.
func (b *backoff) pause(ctx context.Context) error {
	t := time.NewTimer(b.next)
	defer t.Stop()
	b.next = min(2*b.next, pauseMost)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
