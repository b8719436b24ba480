//go:build linux

package boot

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The words of the control port, one a line, with a number that the answer
// repeats: "done 7", or "failed 7" and why.
const (
	// wordStop asks the machine to end.
	wordStop = "stop"
	// wordOff switches it off, with what its processes wrote on the disks.
	wordOff = "off"
	// wordGrow makes the file systems as large as their disks.
	wordGrow = "grow"
	// wordClock and a time set the wall clock, in nanoseconds since 1970: a
	// machine that was halted, or that goes on from a snapshot, has lost time.
	wordClock = "clock"
)

// lineMost bounds a line of the control port.
const lineMost = 4096

func eachLine(r io.Reader, heard func(string)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, lineMost), lineMost)
	for lines.Scan() {
		heard(strings.TrimSpace(lines.Text()))
	}
}

// Obey does what the provider says on the control port until ctx ends; stop is
// called when the machine is to end.
func Obey(ctx context.Context, stop func(), log *slog.Logger) {
	follow(ctx, deeds{stop: stop, off: func() { Off(log) }, clock: setClock, grow: func() error { return thisMachine.growAll(ctx) }}, log)
}

func follow(ctx context.Context, do deeds, log *slog.Logger) {
	if err := thisMachine.listen(ctx, do.obey); ctx.Err() == nil {
		log.Error("the control port is lost", "error", err)
	}
}

// deeds are what a machine does when told to.
type deeds struct {
	stop, off func()
	clock     func(time.Time) error
	grow      func() error
}

// obey does what a line says and returns the answer, "" for a line that says
// nothing to this version.
func (d deeds) obey(line string) string {
	f := strings.Fields(line)
	if len(f) < 2 {
		return ""
	}
	var err error
	switch f[0] {
	case wordStop:
		d.stop()
	case wordOff:
		d.off()
	case wordGrow:
		err = d.grow()
	case wordClock:
		var ns int64
		if len(f) == 3 {
			ns, err = strconv.ParseInt(f[2], 10, 64)
		}
		if err == nil {
			err = d.clock(time.Unix(0, ns))
		}
	default:
		return "failed " + f[1] + " this guest does not know " + f[0]
	}
	if err != nil {
		return "failed " + f[1] + " " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	return "done " + f[1]
}

func setClock(t time.Time) error {
	at := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &at)
}
