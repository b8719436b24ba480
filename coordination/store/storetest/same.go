package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// Same drives two stores with the same random transactions and demands the same
// answers of both.
func Same(t *testing.T, a, b func(t testing.TB, dir string) store.Store) {
	rapid.Check(t, func(r *rapid.T) {
		one, other := a(t, t.TempDir()), b(t, t.TempDir())
		defer func() {
			must(r, one.Close())
			must(r, other.Close())
		}()
		r.Repeat(map[string]func(*rapid.T){
			"update": func(r *rapid.T) {
				calls := rapid.SliceOfN(call(), 1, 6).Draw(r, "calls")
				fails := rapid.IntRange(0, 3).Draw(r, "fails") == 0
				equal(r, "outcome", transact(t, one, calls, fails), transact(t, other, calls, fails))
			},
			"look": func(r *rapid.T) { equal(r, "state", contents(t, one), contents(t, other)) },
		})
		equal(r, "state", contents(t, one), contents(t, other))
	})
}

var errWanted = errors.New("wanted")

// transact runs the calls in one transaction and returns what each answered.
func transact(t *testing.T, s store.Store, calls []func(store.Tx) any, fails bool) []any {
	var answers []any
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for _, call := range calls {
			answers = append(answers, call(tx))
		}
		if fails {
			return errWanted
		}
		return nil
	})
	return append(answers, kind(err))
}

// kind is the part of an error that callers tell apart.
func kind(err error) any {
	for _, known := range []error{store.ErrNotFound, store.ErrExists, errWanted} {
		if errors.Is(err, known) {
			return known
		}
	}
	return err
}

// answer is a result that can be compared.
func answer(v any, err error) any {
	if err != nil {
		return kind(err)
	}
	return plain(v)
}

// contents is all that a View sees.
func contents(t *testing.T, s store.Store) []any {
	var all []any
	view(t, s, func(tx store.Tx) {
		all = append(all, answer(tx.Meta("a")), answer(tx.Nodes()), answer(tx.Workspaces("")), answer(tx.Operations("", 0)),
			answer(tx.PendingOperations()), answer(tx.AuditAfter(0, "", 0)))
		for _, id := range ids {
			all = append(all, answer(tx.Node(id)), answer(tx.NodeByName(id)), answer(tx.Workspace(id)), answer(tx.WorkspaceByName(id)),
				answer(tx.Workspaces(id)), answer(tx.Operation(id)), answer(tx.OperationByKey(id, id)), answer(tx.Operations(id, 2)),
				answer(tx.AuditAfter(1, id, 3)))
		}
	})
	return all
}

// ids are few, so that records meet.
var ids = []string{"a", "b", "c"}

// call draws one call with its arguments.
func call() *rapid.Generator[func(store.Tx) any] {
	return rapid.Custom(func(r *rapid.T) func(store.Tx) any {
		id := rapid.SampledFrom(ids).Draw(r, "id")
		name := rapid.SampledFrom(ids).Draw(r, "name")
		word := rapid.String().Draw(r, "word")
		number := rapid.Int64().Draw(r, "number")
		at := time.Unix(0, number)
		node := store.Node{
			ID: id, Name: name, State: vendettav1.NodeState(number), Message: word, Draining: number%2 == 0,
			HostKeys: rapid.SliceOfN(rapid.String(), 0, 2).Draw(r, "keys"), Labels: map[string]string{word: word}, CreatedAt: at,
		}
		if number%3 == 0 {
			node.Address = &vendettav1.NodeAddress{Host: word, Port: int32(number)}
		}
		workspace := store.Workspace{
			ID: id, Name: name, NodeID: word, Generation: number, Message: word, UpdatedAt: at,
			Spec: &vendettav1.WorkspaceSpec{Image: word},
		}
		operation := store.Operation{
			ID: id, WorkspaceID: name, Principal: name, IdempotencyKey: rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "key"),
			State: vendettav1.OperationState(number & 3), Generation: number, GraceSeconds: int32(number), FinishedAt: at,
			Argument: word, Note: word, Before: store.Limits{CPUs: float64(number), PIDs: number},
		}
		audit := store.Audit{At: at, Workspace: id, Fields: word}
		calls := []func(store.Tx) any{
			func(tx store.Tx) any { return kind(tx.SetMeta(id, word)) },
			func(tx store.Tx) any { return kind(tx.CreateNode(node)) },
			func(tx store.Tx) any { return kind(tx.UpdateNode(node)) },
			func(tx store.Tx) any { return kind(tx.DeleteNode(id)) },
			func(tx store.Tx) any { return kind(tx.CreateWorkspace(workspace)) },
			func(tx store.Tx) any { return kind(tx.UpdateWorkspace(workspace)) },
			func(tx store.Tx) any { return kind(tx.DeleteWorkspace(id)) },
			func(tx store.Tx) any { return kind(tx.CreateOperation(operation)) },
			func(tx store.Tx) any { return kind(tx.UpdateOperation(operation)) },
			func(tx store.Tx) any { return answer(tx.AppendAudit(audit)) },
			func(tx store.Tx) any { return answer(tx.Node(id)) },
			func(tx store.Tx) any { return answer(tx.OperationByKey(name, "a")) },
			func(tx store.Tx) any { return fmt.Sprint(answer(tx.AuditAfter(number%10, "", 3))) },
		}
		return rapid.SampledFrom(calls).Draw(r, "call")
	})
}
