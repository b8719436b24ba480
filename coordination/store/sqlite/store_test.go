package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/memory"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

func open(t testing.TB, dir string) store.Store {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(dir, "vendetta.db"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closed(t testing.TB, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestStore(t *testing.T) { storetest.Run(t, storetest.Options{Open: open, Durable: true}) }

func TestSameAsMemory(t *testing.T) {
	storetest.Same(t, open, func(testing.TB, string) store.Store { return memory.New() })
}
