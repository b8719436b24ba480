//go:build linux

package native

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process names one process for good: ids are used again, and after a reboot so
// are start times, so all three must agree.
type process struct {
	PID int
	// Start in clock ticks since boot, field 22 of /proc/PID/stat.
	Start  uint64
	BootID string
}

// status is what /proc/PID/stat tells.
type status struct {
	state byte
	start uint64
}

var errStat = errors.New("unexpected /proc/PID/stat")

func readStatus(pid int) (status, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return status{}, err
	}
	return parseStatus(raw)
}

// parseStatus reads proc(5)'s stat line. The second field is a name in brackets
// that may hold anything, so counting begins behind the last bracket.
func parseStatus(raw []byte) (status, error) {
	i := bytes.LastIndexByte(raw, ')')
	if i < 0 {
		return status{}, errStat
	}
	f := bytes.Fields(raw[i+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return status{}, errStat
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return status{}, errStat
	}
	return status{state: f[0][0], start: start}, nil
}

// identify names a process that is known to live.
func (m machine) identify(pid int) (process, error) {
	s, err := readStatus(pid)
	return process{PID: pid, Start: s.start, BootID: m.bootID}, err
}

// alive says whether p still runs. A dead child of ours is reaped on the way, so
// that no goroutine has to wait for guests.
func (m machine) alive(p process) bool {
	if p.PID <= 0 || p.BootID != m.bootID {
		return false
	}
	s, err := readStatus(p.PID)
	if err != nil || s.start != p.Start {
		return false
	}
	if s.state == 'Z' || s.state == 'X' {
		// A child of ours that cannot be reaped yet has threads that still run.
		// ECHILD: it is somebody else's to reap.
		reaped, err := unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
		return err == nil && reaped == 0
	}
	return true
}

// signal sends sig to p and to nothing else, whatever happens to its id.
func (m machine) signal(p process, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || !m.alive(p) {
		if err == nil {
			err = unix.Close(fd)
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	// The descriptor was opened before the check, so it is p's.
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return errors.Join(err, unix.Close(fd))
}

// gone waits until p has ended; false when within passed first.
func (m machine) gone(ctx context.Context, p process, within time.Duration) (bool, error) {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for m.alive(p) {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-deadline.C:
			return !m.alive(p), nil
		case <-tick.C:
		}
	}
	return true, nil
}
