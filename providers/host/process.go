//go:build linux

package host

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process for good: ids are used again, and after a reboot so
// are start times, so all three must agree.
type Process struct {
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

// Identify names a process that is known to live.
func Identify(pid int) (Process, error) {
	s, err := readStatus(pid)
	return Process{PID: pid, Start: s.start, BootID: BootID()}, err
}

// BootID is the kernel's name for the time since it was started.
var BootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown" // no such kernel; start times tell most of it
	}
	return strings.TrimSpace(string(raw))
})

// Alive says whether p still runs. A dead child of ours is reaped on the way, so
// that no goroutine has to wait for it.
func (p Process) Alive() bool {
	if p.PID <= 0 || p.BootID != BootID() {
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

// Signal sends sig to p and to nothing else, whatever happens to its id.
func (p Process) Signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || !p.Alive() {
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

// Gone waits until p has ended; false when within passed first.
func (p Process) Gone(ctx context.Context, within time.Duration) (bool, error) {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for p.Alive() {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-deadline.C:
			return !p.Alive(), nil
		case <-tick.C:
		}
	}
	return true, nil
}

// Parent returns the process above one that is known to live.
func Parent(pid int) (int, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(f) < 2 {
		return 0, errStat
	}
	return strconv.Atoi(string(f[1]))
}
