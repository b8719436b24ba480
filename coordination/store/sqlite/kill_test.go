package sqlite

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

// killDir tells a second process of this test binary to write until it is killed.
const killDir = "VENDETTA_SQLITE_KILL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		writeUntilKilled(dir)
	}
	// Each check opens a store of its own, which costs a tenth of a second with
	// -race; a flag on the command line goes before this.
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// writeUntilKilled appends entries from several writers and prints the number of
// each that was acknowledged.
func writeUntilKilled(dir string) {
	ctx := context.Background()
	s, err := Open(ctx, dir+"/vendetta.db")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var writers conc.WaitGroup
	for range 8 {
		writers.Go(func() {
			for {
				var seq int64
				err := s.Update(ctx, func(tx store.Tx) (err error) {
					if seq, err = tx.AppendAudit(storetest.NewAudit("w")); err != nil {
						return err
					}
					return tx.SetMeta("last", strconv.FormatInt(seq, 10))
				})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Println(seq) // one write each, so lines stay whole
			}
		})
	}
	writers.Wait()
}

// Killed with SIGKILL in the midst of writing, the store has all that was
// acknowledged, nothing in halves, and opens without further ado.
func TestKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var highest int64
		acknowledged := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			seq, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				break // the line that the kill cut
			}
			highest = max(highest, seq)
			if acknowledged++; acknowledged == 200+round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		if acknowledged < 200 {
			t.Fatalf("only %d were acknowledged", acknowledged)
		}
		s := open(t, dir)
		err = s.View(t.Context(), func(tx store.Tx) error {
			all, err := tx.AuditAfter(0, "", 0)
			if err != nil {
				return err
			}
			if int64(len(all)) < highest {
				t.Errorf("%d entries, %d had been acknowledged", len(all), highest)
			}
			for i, a := range all {
				if a.Seq != int64(i+1) {
					t.Fatalf("entry %d has number %d", i+1, a.Seq)
				}
			}
			last, err := tx.Meta("last")
			if err == nil && last != strconv.Itoa(len(all)) {
				t.Errorf("the last transaction is there in part: %s of %d", last, len(all))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
