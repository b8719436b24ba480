package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not happen within %v", what, patience)
		panic("unreachable")
	}
}

// fill writes to every table.
func fill(t tb, tx store.Tx) {
	must(t, tx.SetMeta("k", "v"))
	must(t, tx.CreateNode(NewNode("n", "n")))
	must(t, tx.CreateWorkspace(NewWorkspace("w", "w", "n")))
	must(t, tx.CreateOperation(NewOperation("o", "w")))
	_, err := tx.AppendAudit(NewAudit("w"))
	must(t, err)
}

// count counts the records of every table.
func count(t tb, tx store.Tx) int {
	total := 0
	if _, err := tx.Meta("k"); !errors.Is(err, store.ErrNotFound) {
		must(t, err)
		total++
	}
	nodes, err := tx.Nodes()
	must(t, err)
	workspaces, err := tx.Workspaces("")
	must(t, err)
	operations, err := tx.Operations("", 0)
	must(t, err)
	audit, err := tx.AuditAfter(0, "", 0)
	must(t, err)
	return total + len(nodes) + len(workspaces) + len(operations) + len(audit)
}

func wantCount(t testing.TB, s store.Store, want int) {
	t.Helper()
	view(t, s, func(tx store.Tx) { equal(t, "number of records", count(t, tx), want) })
}

func testFailedUpdate(t *testing.T, s store.Store) {
	no := errors.New("no")
	err := s.Update(t.Context(), func(tx store.Tx) error {
		fill(t, tx)
		equal(t, "number of records within", count(t, tx), 5)
		return no
	})
	if err != no { //nolint:errorlint // it comes back as it is
		t.Fatalf("error is %v, want the function's own", err)
	}
	wantCount(t, s, 0)
	update(t, s, func(tx store.Tx) error { fill(t, tx); return nil })
	wantCount(t, s, 5)
	view(t, s, func(tx store.Tx) {
		audit, err := tx.AuditAfter(0, "", 0)
		must(t, err)
		equal(t, "number of the first entry", audit[0].Seq, int64(1))
	})
	wantErr(t, s.Update(t.Context(), func(tx store.Tx) error {
		must(t, tx.DeleteNode("n"))
		must(t, tx.DeleteWorkspace("w"))
		must(t, tx.SetMeta("k", "other"))
		return no
	}), no)
	wantCount(t, s, 5)
}

func testPanickingUpdate(t *testing.T, s store.Store) {
	recovered := func(fn func()) (v any) {
		defer func() { v = recover() }()
		fn()
		return nil
	}
	for range 3 {
		got := recovered(func() {
			_ = s.Update(never(t), func(tx store.Tx) error {
				fill(t, tx)
				panic("at the disco")
			})
		})
		equal(t, "the panic", got, "at the disco")
		wantCount(t, s, 0)
	}
	update(t, s, func(tx store.Tx) error { fill(t, tx); return nil })
	wantCount(t, s, 5)
}

func testFailedWrite(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error {
		fill(t, tx)
		wantErr(t, tx.CreateNode(NewNode("n", "n")), store.ErrExists)
		wantErr(t, tx.UpdateWorkspace(NewWorkspace("x", "x", "n")), store.ErrNotFound)
		return tx.SetMeta("after", "the error")
	})
	wantCount(t, s, 5)
	view(t, s, func(tx store.Tx) {
		_, err := tx.Meta("after")
		must(t, err)
	})
}

// writes are all the calls that change something.
func writes(tx store.Tx) []error {
	_, err := tx.AppendAudit(NewAudit("w"))
	return []error{
		err,
		tx.SetMeta("k", "other"),
		tx.CreateNode(NewNode("m", "m")), tx.UpdateNode(NewNode("n", "n")), tx.DeleteNode("n"),
		tx.CreateWorkspace(NewWorkspace("x", "x", "n")), tx.UpdateWorkspace(NewWorkspace("w", "w", "n")), tx.DeleteWorkspace("w"),
		tx.CreateOperation(NewOperation("p", "w")), tx.UpdateOperation(NewOperation("o", "w")),
	}
}

// reads are all the calls that look at something.
func reads(tx store.Tx) []error {
	var all []error
	add := func(_ any, err error) { all = append(all, err) }
	add(tx.Meta("k"))
	add(tx.Node("n"))
	add(tx.NodeByName("n"))
	add(tx.Nodes())
	add(tx.Workspace("w"))
	add(tx.WorkspaceByName("w"))
	add(tx.Workspaces(""))
	add(tx.Workspaces("n"))
	add(tx.Operation("o"))
	add(tx.OperationByKey("local", "key-o"))
	add(tx.Operations("", 0))
	add(tx.Operations("w", 0))
	add(tx.PendingOperations())
	add(tx.AuditAfter(0, "", 0))
	add(tx.AuditAfter(0, "w", 0))
	return all
}

func testViewIsReadOnly(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error { fill(t, tx); return nil })
	view(t, s, func(tx store.Tx) {
		for _, err := range writes(tx) {
			wantErr(t, err, store.ErrReadOnly)
		}
		for _, err := range reads(tx) {
			must(t, err)
		}
	})
	wantCount(t, s, 5)
}

func testTxEnds(t *testing.T, s store.Store) {
	var ended []store.Tx
	update(t, s, func(tx store.Tx) error { ended = append(ended, tx); fill(t, tx); return nil })
	view(t, s, func(tx store.Tx) { ended = append(ended, tx) })
	for _, tx := range ended {
		for _, err := range append(writes(tx), reads(tx)...) {
			wantErr(t, err, store.ErrTxEnded)
		}
	}
	wantCount(t, s, 5)
}

func testViewErrors(t *testing.T, s store.Store) {
	no := errors.New("no")
	for range 10 {
		if err := s.View(t.Context(), func(store.Tx) error { return no }); err != no { //nolint:errorlint // it comes back as it is
			t.Fatalf("error is %v, want the function's own", err)
		}
		func() {
			defer func() { equal(t, "the panic", recover(), "at the disco") }()
			_ = s.View(never(t), func(store.Tx) error { panic("at the disco") })
		}()
	}
	wantCount(t, s, 0)
}

func testViewSeesOneState(t *testing.T, s store.Store) {
	view(t, s, func(tx store.Tx) {
		equal(t, "number of records", count(t, tx), 0)
		committed := make(chan error, 1)
		var writer conc.WaitGroup
		defer writer.Wait()
		writer.Go(func() {
			committed <- s.Update(never(t), func(tx store.Tx) error { fill(t, tx); return nil })
		})
		must(t, await(t, "a commit beside a View", committed))
		equal(t, "number of records after a commit beside", count(t, tx), 0)
	})
	wantCount(t, s, 5)
}

func testViewDoesNotWait(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error {
		fill(t, tx)
		seen := make(chan int, 1)
		var reader conc.WaitGroup
		defer reader.Wait()
		reader.Go(func() {
			_ = s.View(never(t), func(tx store.Tx) error { seen <- count(t, tx); return nil })
		})
		equal(t, "number of records that a View sees", await(t, "a View beside an Update", seen), 0)
		return nil
	})
}

func testManyViews(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error { fill(t, tx); return nil })
	const many = 24
	inside, leave := make(chan struct{}, many), make(chan struct{})
	var readers conc.WaitGroup
	defer readers.Wait()
	for range many {
		readers.Go(func() {
			_ = s.View(never(t), func(tx store.Tx) error {
				inside <- struct{}{}
				<-leave
				equal(t, "number of records", count(t, tx), 5)
				return nil
			})
		})
	}
	defer close(leave)
	for range many {
		await(t, "a View beside others", inside)
	}
}

func testContext(t *testing.T, s store.Store) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(store.Tx) error { t.Error("a function ran although its context had ended"); return nil }
	wantErr(t, s.Update(ended, never), context.Canceled)
	wantErr(t, s.View(ended, never), context.Canceled)

	waiting, cancel := context.WithCancel(t.Context())
	defer cancel()
	results := make(chan error, 8)
	var waiters conc.WaitGroup
	defer waiters.Wait()
	update(t, s, func(tx store.Tx) error {
		for range cap(results) {
			waiters.Go(func() { results <- s.Update(waiting, never) })
		}
		cancel()
		for range cap(results) {
			wantErr(t, await(t, "the end of a wait", results), context.Canceled)
		}
		fill(t, tx)
		return nil
	})
	wantCount(t, s, 5)
}

func testCloseWaits(t *testing.T, s store.Store) {
	inside, leave := make(chan struct{}, 2), make(chan struct{})
	results := make(chan error, 3)
	var others conc.WaitGroup
	defer others.Wait()
	stay := func(store.Tx) error {
		inside <- struct{}{}
		<-leave
		return nil
	}
	others.Go(func() { results <- s.Update(never(t), stay) })
	others.Go(func() { results <- s.View(never(t), stay) })
	await(t, "an Update", inside)
	await(t, "a View", inside)
	closed := make(chan struct{})
	others.Go(func() {
		results <- s.Close()
		close(closed)
	})
	select {
	case <-closed:
		t.Error("Close did not wait for what runs")
	default:
	}
	close(leave)
	await(t, "Close", closed)
	for range cap(results) {
		must(t, await(t, "an end", results))
	}
}

func testClosed(t *testing.T, s store.Store) {
	must(t, s.Close())
	must(t, s.Close())
	never := func(store.Tx) error { t.Error("a function ran on a closed store"); return nil }
	wantErr(t, s.Update(t.Context(), never), store.ErrClosed)
	wantErr(t, s.View(t.Context(), never), store.ErrClosed)
}

func testReopen(t *testing.T, o Options) {
	dir := t.TempDir()
	for round := range 3 {
		s := o.Open(t, dir)
		if round == 0 {
			update(t, s, func(tx store.Tx) error { fill(t, tx); return nil })
		}
		view(t, s, func(tx store.Tx) {
			equal(t, "number of records", count(t, tx), 5+round)
			n, err := tx.Node("n")
			must(t, err)
			equal(t, "node", n, NewNode("n", "n"))
		})
		update(t, s, func(tx store.Tx) error {
			seq, err := tx.AppendAudit(NewAudit("w"))
			equal(t, "sequence number", seq, int64(2+round))
			return err
		})
		must(t, s.Close())
	}
}
