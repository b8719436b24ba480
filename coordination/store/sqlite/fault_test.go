package sqlite

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

func entries(t *testing.T, s store.Store) int {
	t.Helper()
	var n int
	err := s.View(t.Context(), func(tx store.Tx) error {
		all, err := tx.AuditAfter(0, "", 0)
		n = len(all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A disk that fills up fails those who need more of it, whatever their functions
// make of the error, loses nothing that was acknowledged, and is well again when
// there is room.
func TestDiskFull(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	defer closed(t, s)
	pages, err := number(s.writer, `PRAGMA page_count`)
	if err != nil {
		t.Fatal(err)
	}
	limit := func(pages int) {
		if _, err := number(s.writer, fmt.Sprintf(`PRAGMA max_page_count = %d`, pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(pages + 20)

	big := storetest.NewAudit("w")
	big.Fields = strings.Repeat("x", 2000)
	var mu sync.Mutex
	acknowledged, full := 0, 0
	var writers conc.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			for range 40 {
				err := s.Update(t.Context(), func(tx store.Tx) error {
					_, err := tx.AppendAudit(big)
					if i%2 == 0 {
						err = nil // not looked at
					}
					return err
				})
				mu.Lock()
				if err == nil {
					acknowledged++
				} else if e := api.From(err); e.Code == api.ResourceExhausted && e.Next != "" {
					full++
				} else {
					t.Errorf("error is %v, want resource_exhausted with a next step", err)
				}
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	if acknowledged == 0 || full == 0 {
		t.Fatalf("%d acknowledged, %d refused: the test tests nothing", acknowledged, full)
	}
	if n := entries(t, s); n != acknowledged {
		t.Errorf("%d entries, %d were acknowledged", n, acknowledged)
	}
	limit(1 << 20)
	if err := s.Update(t.Context(), func(tx store.Tx) error { _, err := tx.AppendAudit(big); return err }); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A store whose connections are gone says so in every call and acknowledges
// nothing.
func TestLostConnections(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	entries(t, s) // leaves a reader in the pool
	if err := s.writer.conn.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.readers.idle {
		if err := r.conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.readers.db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.Update(t.Context(), func(store.Tx) error { t.Error("the function ran"); return nil })
		if api.CodeOf(err) != api.Internal {
			t.Errorf("Update: %v, want internal", err)
		}
		err = s.View(t.Context(), func(store.Tx) error { t.Error("the function ran"); return nil })
		if api.CodeOf(err) != api.Internal {
			t.Errorf("View: %v, want internal", err)
		}
	}
	if err := s.Close(); err == nil {
		t.Error("Close hid that the connection was gone")
	}
}

// The connection breaks while a function runs.
func TestConnectionLostWithinATransaction(t *testing.T) {
	for _, fails := range []error{nil, errors.New("no")} {
		s := open(t, t.TempDir()).(*Store)
		err := s.Update(t.Context(), func(tx store.Tx) error {
			if err := tx.SetMeta("k", "v"); err != nil {
				t.Error(err)
			}
			if err := s.writer.conn.Close(); err != nil {
				t.Error(err)
			}
			return fails
		})
		if api.CodeOf(err) != api.Internal || errors.Is(err, fails) {
			t.Errorf("Update: %v, want internal", err)
		}
		_ = s.Close()
	}
}

// A transaction that SQLite has ended by itself fails everyone who shares it.
func TestTransactionLostToItsNeighbour(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	defer closed(t, s)
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.SetMeta("k", "v"); err != nil {
			t.Error(err)
		}
		return s.writer.exec("ROLLBACK")
	})
	if api.CodeOf(err) != api.Internal {
		t.Errorf("Update: %v, want internal", err)
	}
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.SetMeta("k", "v") }); err != nil {
		t.Errorf("the next Update: %v", err)
	}
}

// The commit itself fails.
func TestCommitFails(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	defer closed(t, s)
	// A deferred foreign key is looked at by COMMIT.
	for _, q := range []string{
		`CREATE TABLE parent (id INTEGER PRIMARY KEY)`,
		`CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)`,
	} {
		if _, err := s.writer.conn.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.SetMeta("k", "v"); err != nil {
			return err
		}
		return s.writer.exec(`INSERT INTO child VALUES (7)`)
	})
	if api.CodeOf(err) != api.Internal {
		t.Errorf("Update: %v, want internal", err)
	}
	err = s.Update(t.Context(), func(tx store.Tx) error {
		if _, err := tx.Meta("k"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("what was not committed is there: %v", err)
		}
		return tx.SetMeta("k", "v")
	})
	if err != nil {
		t.Errorf("the next Update: %v", err)
	}
}

// A file that something else has spoilt gives errors, not records.
func TestSpoiltColumns(t *testing.T) {
	s := open(t, t.TempDir()).(*Store)
	defer closed(t, s)
	err := s.Update(t.Context(), func(tx store.Tx) error {
		return errors.Join(tx.CreateNode(storetest.NewNode("n", "n")), tx.CreateWorkspace(storetest.NewWorkspace("w", "w", "n")),
			tx.CreateOperation(storetest.NewOperation("o", "w")))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []string{
		`UPDATE nodes SET labels = '{"a":'`,
		`UPDATE workspaces SET spec = x'ffffff'`,
		`UPDATE operations SET limits_before = '{"cpus":'`,
	} {
		if err := s.writer.exec(spoil); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.View(t.Context(), func(tx store.Tx) error {
		_, one := tx.Node("n")
		_, all := tx.Nodes()
		_, workspace := tx.Workspace("w")
		_, workspaces := tx.Workspaces("")
		_, operation := tx.Operation("o")
		for _, err := range []error{one, all, workspace, workspaces, operation} {
			if err == nil || errors.Is(err, store.ErrNotFound) {
				t.Errorf("error is %v, want one that tells of the column", err)
			}
		}
		return nil
	})
	var at instant
	if at.Scan("x") == nil || (limits{new(store.Limits)}).Scan(1) == nil || (listing[[]string]{}).Scan(1) == nil || (message[nodeReport, *nodeReport]{}).Scan(1) == nil {
		t.Error("a column of another type was taken")
	}
}
