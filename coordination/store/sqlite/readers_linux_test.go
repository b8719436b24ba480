package sqlite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// openFiles is how many descriptors this process has of files below dir.
func openFiles(t *testing.T, dir string) int {
	t.Helper()
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range descriptors {
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

// When more read at once than are kept, the others are closed whole: no burst
// leaves more open files behind than the one before.
func TestReadersBeyondTheIdleOnesAreClosed(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), filepath.Join(dir, "vendetta.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	burst := func() {
		const readers = idleReaders + 10
		all := make(chan struct{})
		here := make(chan struct{}, readers)
		var w conc.WaitGroup
		for range readers {
			w.Go(func() {
				if err := s.View(t.Context(), func(tx store.Tx) error {
					_, err := tx.Nodes()
					here <- struct{}{}
					<-all
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		}
		for range readers {
			<-here
		}
		close(all)
		w.Wait()
	}
	burst()
	before := openFiles(t, dir)
	// What was written since makes the readers look at the files anew.
	if err := s.Update(t.Context(), func(tx store.Tx) error { _, err := tx.AppendAudit(store.Audit{}); return err }); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		burst()
	}
	// SQLite hands a closed connection's descriptor of the file to the next one
	// instead of closing it while others hold locks, so a few may stay.
	if after := openFiles(t, dir); after > before+10 {
		t.Errorf("%d files are open, there were %d", after, before)
	}
}
