package storetest

import (
	"context"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// Options describe the store under test.
type Options struct {
	// Open opens the store in a folder. The suite closes it.
	Open func(t testing.TB, dir string) store.Store
	// Durable stores have what was committed when they are opened again.
	Durable bool
}

// Run runs the whole suite.
func Run(t *testing.T, o Options) {
	tests := []struct {
		name string
		run  func(*testing.T, store.Store)
	}{
		{"Meta", testMeta},
		{"Nodes", testNodes},
		{"Workspaces", testWorkspaces},
		{"Operations", testOperations},
		{"IdempotencyKeys", testIdempotencyKeys},
		{"Audit", testAudit},
		{"SparseRecords", testSparseRecords},
		{"InvalidMessages", testInvalidMessages},
		{"ReturnedRecordsAreTheCallers", testIsolation},
		{"FailedUpdateChangesNothing", testFailedUpdate},
		{"PanickingUpdateChangesNothing", testPanickingUpdate},
		{"FailedWriteLeavesTheTransaction", testFailedWrite},
		{"ViewIsReadOnly", testViewIsReadOnly},
		{"ViewErrorsAndPanicsComeBack", testViewErrors},
		{"ViewSeesOneState", testViewSeesOneState},
		{"ViewDoesNotWaitForUpdate", testViewDoesNotWait},
		{"ManyViewsAtOnce", testManyViews},
		{"TxEndsWithItsFunction", testTxEnds},
		{"ContextEndsTheWait", testContext},
		{"CloseWaits", testCloseWaits},
		{"ClosedStoreFails", testClosed},
		{"ConcurrentUpdatesAreSerial", testConcurrentUpdates},
		{"ConcurrentFailuresAreAlone", testConcurrentFailures},
		{"OneWinnerForAKey", testOneWinner},
		{"Linearizable", testLinearizable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := o.Open(t, t.TempDir())
			t.Cleanup(func() { must(t, s.Close()) })
			test.run(t, s)
		})
	}
	if o.Durable {
		t.Run("Reopen", func(t *testing.T) { testReopen(t, o) })
	}
}

func update(t testing.TB, s store.Store, fn func(store.Tx) error) {
	t.Helper()
	must(t, s.Update(t.Context(), fn))
}

func view(t testing.TB, s store.Store, fn func(tx store.Tx)) {
	t.Helper()
	must(t, s.View(t.Context(), func(tx store.Tx) error { fn(tx); return nil }))
}

// never is a context that the suite's background callers use: the test waits for
// them itself.
func never(t testing.TB) context.Context { return context.WithoutCancel(t.Context()) }
