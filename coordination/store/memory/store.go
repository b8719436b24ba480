package memory

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// Store is a store.Store in RAM. A View looks at the state as it was committed
// last; an Update works on a copy that takes its place.
type Store struct {
	// turn holds the one permission to write.
	turn chan struct{}
	// state is never changed once it stands here.
	state atomic.Pointer[state]

	// life is held for reading by every call and for writing by Close.
	life   sync.RWMutex
	closed bool
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	s := &Store{turn: make(chan struct{}, 1)}
	s.state.Store(&state{})
	return s
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	draft := *s.state.Load()
	t := &tx{state: &draft, writable: true}
	defer func() { t.ended = true }()
	if err := fn(t); err != nil {
		return err
	}
	s.state.Store(&draft)
	return nil
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t := &tx{state: s.state.Load()}
	defer func() { t.ended = true }()
	return fn(t)
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.closed = true
	return nil
}
