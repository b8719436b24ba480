package transporttest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func testCancelled(t *testing.T, s Setup) {
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	within(t, "cancelled dial", func() error {
		_, err := tr.Dial(ctx)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return fmt.Errorf("with its context done: %w", orNone(err))
	})
	exchange(t, dial(t, tr), "not harmed\n")
}

// A new agent on the same path is reached by the same transport.
func testRestart(t *testing.T, s Setup) {
	path := socket(t)
	a := listen(t, path, echo)
	tr := s.open(t, path)
	conn := dial(t, tr)
	exchange(t, conn, "before\n")
	a.stop()
	within(t, "read from a dead agent", func() error { return readFails(conn) })
	wantNoAgent(t, tr)
	listen(t, path, echo)
	exchange(t, dial(t, tr), "after\n")
}

func testBreak(t *testing.T, s Setup) {
	if s.Break == nil {
		return
	}
	path := socket(t)
	listen(t, path, echo)
	tr := s.open(t, path)
	conn := dial(t, tr)
	exchange(t, conn, "before\n")
	s.Break(t)
	within(t, "read after the break", func() error { return readFails(conn) })
	start := time.Now()
	exchange(t, dial(t, tr), "after\n")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a repaired link was used after %v only", took)
	}
}
