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

// The words of the control port, one a line.
const (
	// wordStop asks the machine to end.
	wordStop = "stop"
	// wordOff switches it off, with what its processes wrote on the disks.
	wordOff = "off"
	// wordClock and a number set the wall clock, in nanoseconds since 1970: a
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
	do := deeds{stop: stop, off: func() { Off(log) }, clock: setClock}
	err := thisMachine.listen(ctx, func(line string) { do.obey(line, log) })
	if ctx.Err() == nil {
		log.Error("the control port is lost", "error", err)
	}
}

// deeds are what a machine does when told to.
type deeds struct {
	stop, off func()
	clock     func(time.Time) error
}

func (d deeds) obey(line string, log *slog.Logger) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case wordStop:
		d.stop()
	case wordOff:
		d.off()
	case wordClock:
		ns, err := strconv.ParseInt(rest, 10, 64)
		if err == nil {
			err = d.clock(time.Unix(0, ns))
		}
		if err != nil {
			log.Warn("set the clock", "error", err)
		}
	default: // of a later version, or the rest of a line that was cut
	}
}

func setClock(t time.Time) error {
	at := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &at)
}
