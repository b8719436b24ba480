package sqlite

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

// limitDir tells a second process of this test binary to write until the kernel
// refuses.
const limitDir = "VENDETTA_SQLITE_LIMIT_DIR"

func init() { //nolint:gochecknoinits // before TestMain, whose file is for every system
	if dir := os.Getenv(limitDir); dir != "" {
		writeUntilRefused(dir)
	}
}

// writeUntilRefused lets no file grow beyond 256 KiB, so that the kernel refuses
// a write within COMMIT; it prints what was acknowledged before and after.
func writeUntilRefused(dir string) {
	ctx := context.Background()
	fail := func(what ...any) {
		fmt.Fprintln(os.Stderr, what...)
		os.Exit(1)
	}
	s, err := Open(ctx, dir+"/vendetta.db")
	if err != nil {
		fail(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	limit := func(bytes uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}); err != nil {
			fail(err)
		}
	}
	entry := storetest.NewAudit("w")
	entry.Fields = strings.Repeat("x", 10_000)
	appendOne := func() error {
		var seq int64
		err := s.Update(ctx, func(tx store.Tx) (err error) {
			seq, err = tx.AppendAudit(entry)
			return err
		})
		if err == nil {
			fmt.Println(seq)
		}
		return err
	}
	limit(256 << 10)
	refusals := 0
	for i := range 100 {
		if err := appendOne(); err != nil {
			refusals++
		} else if refusals > 0 {
			fail("entry", i, "was acknowledged after a refusal, though no file can grow")
		}
	}
	if refusals == 0 {
		fail("nothing was refused")
	}
	limit(unix.RLIM_INFINITY)
	for range 3 {
		if err := appendOne(); err != nil {
			fail("with room again:", err)
		}
	}
	os.Exit(0) // without Close, as after a crash
}

// The kernel refuses what COMMIT writes: the caller is told, what was
// acknowledged stays, and the store goes on when there is room.
func TestKernelRefusesTheCommit(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), limitDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var acknowledged []int64
	lines := bufio.NewScanner(strings.NewReader(string(out)))
	for lines.Scan() {
		seq, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		acknowledged = append(acknowledged, seq)
	}
	s := open(t, dir)
	defer closed(t, s)
	if n := entries(t, s); n != len(acknowledged) || n < 10 || acknowledged[n-1] != int64(n) {
		t.Errorf("%d entries; acknowledged were %v", n, acknowledged)
	}
}
