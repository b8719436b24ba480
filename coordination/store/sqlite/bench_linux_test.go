package sqlite

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

// BenchmarkCommit is the durable record of one call, alone and from 64 writers,
// next to the floor: a raw append of 1 KB with fdatasync.
func BenchmarkCommit(b *testing.B) {
	entry := storetest.NewAudit("w")
	entry.Fields = string(bytes.Repeat([]byte("x"), 1000))
	commit := func(s store.Store) error {
		return s.Update(b.Context(), func(tx store.Tx) error { _, err := tx.AppendAudit(entry); return err })
	}
	b.Run("raw", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		record := bytes.Repeat([]byte("x"), 1000)
		for b.Loop() {
			if _, err := f.Write(record); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("alone", func(b *testing.B) {
		s := open(b, b.TempDir())
		defer closed(b, s)
		for b.Loop() {
			if err := commit(s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("writers=64", func(b *testing.B) {
		s := open(b, b.TempDir())
		defer closed(b, s)
		var mu sync.Mutex
		var took []time.Duration
		left := make(chan struct{}, b.N)
		for range b.N {
			left <- struct{}{}
		}
		close(left)
		b.ResetTimer()
		var writers conc.WaitGroup
		for range 64 {
			writers.Go(func() {
				var mine []time.Duration
				for range left {
					begin := time.Now()
					if err := commit(s); err != nil {
						b.Error(err)
					}
					mine = append(mine, time.Since(begin))
				}
				mu.Lock()
				took = append(took, mine...)
				mu.Unlock()
			})
		}
		writers.Wait()
		b.StopTimer()
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	})
	b.Run("view", func(b *testing.B) {
		s := open(b, b.TempDir())
		defer closed(b, s)
		if err := s.Update(b.Context(), func(tx store.Tx) error { return tx.CreateWorkspace(storetest.NewWorkspace("w", "w", "n")) }); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := s.View(b.Context(), func(tx store.Tx) error { _, err := tx.WorkspaceByName("w"); return err }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
