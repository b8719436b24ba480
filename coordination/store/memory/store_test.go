package memory_test

import (
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/memory"
	"github.com/vendetta-dev/vendetta/coordination/store/storetest"
)

func open(testing.TB, string) store.Store { return memory.New() }

func TestStore(t *testing.T) { storetest.Run(t, storetest.Options{Open: open}) }
