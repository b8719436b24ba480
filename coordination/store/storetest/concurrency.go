package storetest

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

const (
	writers = 16
	rounds  = 20
)

// together runs fn for each of n callers at once and waits for them.
func together(n int, fn func(i int)) {
	var all conc.WaitGroup
	for i := range n {
		all.Go(func() { fn(i) })
	}
	all.Wait()
}

func testConcurrentUpdates(t *testing.T, s store.Store) {
	w := NewWorkspace("w", "w", "n")
	w.Generation = 0
	update(t, s, func(tx store.Tx) error { return tx.CreateWorkspace(w) })
	together(writers, func(int) {
		for range rounds {
			must(t, s.Update(never(t), func(tx store.Tx) error {
				w, err := tx.Workspace("w")
				must(t, err)
				w.Generation++
				return tx.UpdateWorkspace(w)
			}))
			// What was acknowledged is there for whoever looks next.
			must(t, s.View(never(t), func(tx store.Tx) error { _, err := tx.Workspace("w"); return err }))
		}
	})
	view(t, s, func(tx store.Tx) {
		w, err := tx.Workspace("w")
		must(t, err)
		equal(t, "generation", w.Generation, int64(writers*rounds))
	})
}

// Those that fail or panic take nothing of their neighbours with them and leave
// no gap in the audit log.
func testConcurrentFailures(t *testing.T, s store.Store) {
	no := errors.New("no")
	var good atomic.Int64
	together(writers, func(i int) {
		for round := range rounds {
			entry := NewAudit(fmt.Sprint(i, "/", round))
			func() {
				defer func() { _ = recover() }()
				err := s.Update(never(t), func(tx store.Tx) error {
					if _, err := tx.AppendAudit(entry); err != nil {
						return err
					}
					switch (i + round) % 3 {
					case 0:
						return no
					case 1:
						panic("at the disco")
					}
					return nil
				})
				if err == nil {
					good.Add(1)
				} else {
					wantErr(t, err, no)
				}
			}()
		}
	})
	view(t, s, func(tx store.Tx) {
		all, err := tx.AuditAfter(0, "", 0)
		must(t, err)
		equal(t, "number of entries", int64(len(all)), good.Load())
		for i, a := range all {
			equal(t, "sequence number", a.Seq, int64(i+1))
			var caller, round int
			_, err := fmt.Sscanf(a.Workspace, "%d/%d", &caller, &round)
			must(t, err)
			equal(t, "kind of the entry", (caller+round)%3, 2)
		}
	})
}

func testOneWinner(t *testing.T, s store.Store) {
	var won atomic.Int64
	together(writers, func(i int) {
		o := NewOperation(fmt.Sprint("o", i), "w")
		o.IdempotencyKey = "same"
		err := s.Update(never(t), func(tx store.Tx) error { return tx.CreateOperation(o) })
		if err == nil {
			won.Add(1)
		} else {
			wantErr(t, err, store.ErrExists)
		}
	})
	equal(t, "number of winners", won.Load(), int64(1))
}

// step is one call of the recorded history, on a register that Meta holds.
type step struct {
	// write: compare-and-swap of from to to; otherwise a read.
	write    bool
	from, to string
}

type result struct {
	value   string
	swapped bool
}

var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, out := input.(step), output.(result)
		if !in.write {
			return out.value == state, state
		}
		if out.swapped {
			return in.from == state, in.to
		}
		return out.value == state && in.from != state, state
	},
}

// testLinearizable records concurrent compare-and-swaps and reads and has the
// history checked: each call took effect at one instant between its begin and
// its answer, refusals included.
func testLinearizable(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error { return tx.SetMeta("register", "") })
	const clients, calls = 6, 25
	begin := time.Now()
	histories := make([][]porcupine.Operation, clients)
	refused := errors.New("refused")
	together(clients, func(client int) {
		last := ""
		for call := range calls {
			in := step{write: call%3 != 2, from: last, to: fmt.Sprint(client, ".", call)}
			var out result
			read := func(tx store.Tx) (err error) { out.value, err = tx.Meta("register"); return err }
			called := time.Since(begin)
			var err error
			if in.write {
				err = s.Update(never(t), func(tx store.Tx) error {
					if err := read(tx); err != nil {
						return err
					}
					if out.value != in.from {
						return refused
					}
					return tx.SetMeta("register", in.to)
				})
				out.swapped = err == nil
			} else {
				err = s.View(never(t), read)
			}
			returned := time.Since(begin)
			if !errors.Is(err, refused) {
				must(t, err)
			}
			last = out.value
			if out.swapped {
				last = in.to
			}
			histories[client] = append(histories[client], porcupine.Operation{
				ClientId: client, Input: in, Output: out, Call: int64(called), Return: int64(returned),
			})
		}
	})
	var history []porcupine.Operation
	for _, h := range histories {
		history = append(history, h...)
	}
	equal(t, "linearizability", porcupine.CheckOperationsTimeout(register, history, patience), porcupine.Ok)
}
