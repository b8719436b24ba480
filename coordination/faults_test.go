package coordination

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

var errFault = errors.New("a fault of the store")

// faultyStore fails when told to: every transaction, or one access in one.
type faultyStore struct {
	store.Store
	mu          sync.Mutex
	view, write error
	countdown   int // the access that fails, counted from now; 0 means none
}

func (f *faultyStore) fault(view, write error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view, f.write = view, write
}

// after makes the nth access from now fail.
func (f *faultyStore) after(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.countdown = n
}

// spent tells whether the fault that after prepared has happened.
func (f *faultyStore) spent() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.countdown == 0
}

func (f *faultyStore) access() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.countdown == 0 {
		return nil
	}
	f.countdown--
	if f.countdown == 0 {
		return errFault
	}
	return nil
}

func (f *faultyStore) View(ctx context.Context, fn func(store.Tx) error) error {
	f.mu.Lock()
	err := f.view
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.Store.View(ctx, func(tx store.Tx) error { return fn(faultyTx{tx, f}) })
}

func (f *faultyStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	f.mu.Lock()
	err := f.write
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.Store.Update(ctx, func(tx store.Tx) error { return fn(faultyTx{tx, f}) })
}

// faultyTx counts the accesses of a transaction.
type faultyTx struct {
	store.Tx
	store *faultyStore
}

func guarded[T any](f *faultyStore, call func() (T, error)) (T, error) {
	if err := f.access(); err != nil {
		var none T
		return none, err
	}
	return call()
}

func (x faultyTx) CreateNode(n store.Node) error {
	return errors.Join(x.store.access(), x.Tx.CreateNode(n))
}

func (x faultyTx) UpdateNode(n store.Node) error {
	return errors.Join(x.store.access(), x.Tx.UpdateNode(n))
}

func (x faultyTx) DeleteNode(id string) error {
	return errors.Join(x.store.access(), x.Tx.DeleteNode(id))
}

func (x faultyTx) Node(id string) (store.Node, error) {
	return guarded(x.store, func() (store.Node, error) { return x.Tx.Node(id) })
}

func (x faultyTx) NodeByName(name string) (store.Node, error) {
	return guarded(x.store, func() (store.Node, error) { return x.Tx.NodeByName(name) })
}

func (x faultyTx) Nodes() ([]store.Node, error) { return guarded(x.store, x.Tx.Nodes) }

func (x faultyTx) CreateWorkspace(ws store.Workspace) error {
	return errors.Join(x.store.access(), x.Tx.CreateWorkspace(ws))
}

func (x faultyTx) UpdateWorkspace(ws store.Workspace) error {
	return errors.Join(x.store.access(), x.Tx.UpdateWorkspace(ws))
}

func (x faultyTx) DeleteWorkspace(id string) error {
	return errors.Join(x.store.access(), x.Tx.DeleteWorkspace(id))
}

func (x faultyTx) Workspace(id string) (store.Workspace, error) {
	return guarded(x.store, func() (store.Workspace, error) { return x.Tx.Workspace(id) })
}

func (x faultyTx) WorkspaceByName(name string) (store.Workspace, error) {
	return guarded(x.store, func() (store.Workspace, error) { return x.Tx.WorkspaceByName(name) })
}

func (x faultyTx) Workspaces(node string) ([]store.Workspace, error) {
	return guarded(x.store, func() ([]store.Workspace, error) { return x.Tx.Workspaces(node) })
}

func (x faultyTx) CreateOperation(op store.Operation) error {
	return errors.Join(x.store.access(), x.Tx.CreateOperation(op))
}

func (x faultyTx) UpdateOperation(op store.Operation) error {
	return errors.Join(x.store.access(), x.Tx.UpdateOperation(op))
}

func (x faultyTx) Operation(id string) (store.Operation, error) {
	return guarded(x.store, func() (store.Operation, error) { return x.Tx.Operation(id) })
}

func (x faultyTx) OperationByKey(who, key string) (store.Operation, error) {
	return guarded(x.store, func() (store.Operation, error) { return x.Tx.OperationByKey(who, key) })
}

func (x faultyTx) Operations(ws string, limit int) ([]store.Operation, error) {
	return guarded(x.store, func() ([]store.Operation, error) { return x.Tx.Operations(ws, limit) })
}

func (x faultyTx) AppendAudit(a store.Audit) (int64, error) {
	return guarded(x.store, func() (int64, error) { return x.Tx.AppendAudit(a) })
}

func (x faultyTx) AuditAfter(seq int64, ws string, limit int) ([]store.Audit, error) {
	return guarded(x.store, func() ([]store.Audit, error) { return x.Tx.AuditAfter(seq, ws, limit) })
}

// Whichever access to the store fails, the call says so, nothing is half done,
// and the same call succeeds afterwards.
func TestEveryAccessMayFail(t *testing.T) {
	inWorld(t, []string{"", "build1"}, func(ctx context.Context, w *world) {
		w.addLocal(ctx)
		w.create(ctx, "old", fromRepository)
		w.create(ctx, "gone", nil)
		if err := w.remove(ctx, "gone", true); err != nil {
			t.Fatal(err)
		}
		s := w.server
		calls := []struct {
			name string
			call func() error
		}{
			{"create", func() error {
				_, err := s.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", Node: "local", IdempotencyKey: "create"})
				return err
			}},
			{"create again", func() error {
				_, err := s.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", IdempotencyKey: "create"})
				return err
			}},
			{"create by name", func() error {
				_, err := s.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x"})
				return err
			}},
			{"stop", func() error {
				_, err := s.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x", IdempotencyKey: "stop"})
				return err
			}},
			{"stop again", func() error {
				_, err := s.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{Name: "x", IdempotencyKey: "stop"})
				return err
			}},
			{"get", func() error {
				_, err := s.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: "x"})
				return err
			}},
			{"list", func() error {
				_, err := s.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{Node: "local"})
				return err
			}},
			{"nodes", func() error {
				_, err := s.ListNodes(ctx, &vendettav1.ListNodesRequest{})
				return err
			}},
			{"node", func() error {
				_, err := s.GetNode(ctx, &vendettav1.GetNodeRequest{Name: "local"})
				return err
			}},
			{"label", func() error {
				_, err := s.LabelNode(ctx, &vendettav1.LabelNodeRequest{Name: "local", Set: map[string]string{"a": "b"}})
				return err
			}},
			{"operations", func() error {
				_, err := s.ListOperations(ctx, &vendettav1.ListOperationsRequest{Workspace: "gone"})
				return err
			}},
			{"status", func() error {
				_, err := s.ServerStatus(ctx, &vendettav1.ServerStatusRequest{})
				return err
			}},
			{"audit", func() error {
				_, err := s.ListAudit(ctx, &vendettav1.ListAuditRequest{})
				return err
			}},
			{"may remove", func() error {
				ws, _, _, err := s.workspace(ctx, "old")
				if err != nil {
					return err
				}
				ws.State = vendettav1.WorkspaceState_WORKSPACE_STATE_DOWN
				if err := s.mayRemove(ctx, ws); api.CodeOf(err) != api.FailedPrecondition {
					return err
				}
				return nil
			}},
			{"desired", func() error {
				if _, err := s.desired(ctx); err != nil {
					return s.storeError(ctx, "reconcile", err)
				}
				return nil
			}},
		}
		faulty := w.store.(*faultyStore)
		for _, c := range calls {
			for n := 1; ; n++ {
				if n > 100 {
					t.Fatalf("%s: no end of accesses", c.name)
				}
				synctest.Wait()
				faulty.after(n)
				err := c.call()
				synctest.Wait()
				if !faulty.spent() {
					faulty.after(0)
					if err != nil {
						t.Errorf("%s: %v", c.name, err)
					}
					break
				}
				if err == nil { // it struck what came after the call, which is repeated
					pass(reconcileInterval)
					continue
				}
				wantError(t, err, api.Internal, "store did not work")
			}
		}
		// What was accepted comes true, whatever failed in between.
		pass(removeRetry)
		if ws := w.get(ctx, "x"); ws.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_STOPPED || ws.GetGeneration() != 2 {
			t.Errorf("%v", ws)
		}
	})
}

// The same for what the server does on its own, and for nodes, where a fault
// must leave a record that can be repaired or removed.
func TestEveryAccessMayFailForNodes(t *testing.T) {
	inWorld(t, []string{""}, func(ctx context.Context, w *world) {
		faulty := w.store.(*faultyStore)
		until := func(name string, call func() error) {
			t.Helper()
			for n := 1; n < 200; n++ {
				synctest.Wait()
				faulty.after(n)
				err := call()
				if err == nil || !faulty.spent() {
					faulty.after(0)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					return
				}
				if api.CodeOf(err) != api.Internal {
					t.Fatalf("%s: %v", name, err)
				}
			}
			t.Fatalf("%s: never succeeds", name)
		}
		for range 3 {
			until("add", func() error {
				_, err := w.server.AddNode(ctx, &vendettav1.AddNodeRequest{Name: "local", Address: &vendettav1.NodeAddress{Local: true}})
				return err
			})
			until("rm", func() error {
				_, err := w.server.RemoveNode(ctx, &vendettav1.RemoveNodeRequest{Name: "local"})
				return err
			})
		}
		if list, err := w.server.ListNodes(ctx, nil); err != nil || len(list.GetNodes()) != 0 {
			t.Errorf("%v, %v", list, err)
		}
	})
}
