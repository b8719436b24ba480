package nodeagent

import (
	"context"
	"math/rand/v2"
	"time"
)

// timing holds the agent's ceilings and intervals; tests shorten them.
type timing struct {
	// guestAnswer: an instance that was started has this long until its guest answers.
	guestAnswer time.Duration
	// linkOpen bounds one attempt to make a guest link.
	linkOpen time.Duration
	// linkRetry is the first pause after a lost link or a failed attempt.
	linkRetry, linkRetryMax time.Duration
	// linkWait: a request waits this long for a link that is being made.
	linkWait time.Duration
	// restart is the first pause before a dead instance is started again.
	restart, restartMax time.Duration
	// stable: an instance that ran this long begins with the first pause again.
	stable time.Duration
	// look is the pause between looks at an instance whose guest is silent.
	look time.Duration
	// probe bounds one provider's probe; probed is how long its answer serves.
	probe, probed time.Duration
	// interval between two reports.
	interval time.Duration
	// orphans is the pause between two searches for instances that no workspace
	// knows; grace is how long such a one is reported before it may be removed.
	orphans, grace time.Duration
	// tombstone is how long a removed workspace's generation is remembered.
	tombstone time.Duration
	// follow is the pause between two looks at a log that is followed.
	follow time.Duration
	// importIdle: an archive of which nothing comes for this long is given up.
	importIdle time.Duration
	// farewell is what the answer to Shutdown gets to leave.
	farewell time.Duration
}

var defaultTiming = timing{
	guestAnswer:  20 * time.Second,
	linkOpen:     10 * time.Second,
	linkRetry:    50 * time.Millisecond,
	linkRetryMax: 5 * time.Second,
	linkWait:     5 * time.Second,
	restart:      time.Second,
	restartMax:   time.Minute,
	stable:       time.Minute,
	look:         time.Second,
	probe:        5 * time.Second,
	probed:       30 * time.Second,
	interval:     10 * time.Second,
	orphans:      10 * time.Minute,
	grace:        24 * time.Hour,
	tombstone:    24 * time.Hour,
	follow:       500 * time.Millisecond,
	importIdle:   2 * time.Minute,
	farewell:     time.Second,
}

// Ceilings of the providers' calls. A create may fetch an image.
const (
	createCeiling  = 15 * time.Minute
	startCeiling   = 30 * time.Second
	stopCeiling    = 30 * time.Second
	destroyCeiling = 2 * time.Minute
	inspectCeiling = 15 * time.Second
)

// backoff is the pause after so many failures in a row: doubled each time, with
// jitter, since the machine's other workspaces failed at the same moment.
func backoff(failures int, first, most time.Duration) time.Duration {
	d := first
	for i := 1; i < failures && d < most; i++ {
		d *= 2
	}
	d = min(d, most)
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter is no secret
}

// wait pauses for d; it reports false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
