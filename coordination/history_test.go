package coordination

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

type call struct {
	remove bool
	key    string
}

type answer struct {
	workspace string
	operation string
	code      api.Code
}

// nameState is one name in the register that the history is checked against.
// While removing, the workspace may vanish at any moment.
type nameState struct {
	id       string
	removing bool
	keys     string // what each key was answered with, "key=operation;" in order
}

// nameModel says what creates and removals of one name may answer.
var nameModel = porcupine.Model{
	Init: func() any { return nameState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(nameState), input.(call), output.(answer)
		switch out.code {
		case api.NotFound:
			return in.remove && (s.id == "" || s.removing), nameState{keys: s.keys}
		case api.Conflict:
			// Overtaken by another change, or in the way of a removal.
			return in.remove || s.id == "" || s.removing, s
		case "":
		default:
			return false, s
		}
		if before, used := keyed(s.keys, in.key); used {
			return before == out.operation, s
		}
		// A call that found its work done or under way accepted nothing, so its
		// key stays free.
		accepted := s.keys + in.key + "=" + out.operation + ";"
		switch {
		case in.remove && s.removing:
			return s.id == out.workspace, s
		case in.remove:
			return s.id != "" && s.id == out.workspace, nameState{id: s.id, removing: true, keys: accepted}
		case s.id == "" || s.removing:
			return out.workspace != s.id, nameState{id: out.workspace, keys: accepted}
		default:
			return out.workspace == s.id, s
		}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
}

func keyed(keys, key string) (string, bool) {
	for len(keys) > 0 {
		var k, v string
		for i := range keys {
			if keys[i] == '=' {
				k = keys[:i]
			}
			if keys[i] == ';' {
				v, keys = keys[len(k)+1:i], keys[i+1:]
				break
			}
		}
		if k == key {
			return v, true
		}
	}
	return "", false
}

// Creates and removals of one name by several clients at once, each call made
// twice under its key, are linearizable, and no operation is carried out twice.
func TestCreateAndRemoveAreLinearizable(t *testing.T) {
	for range 5 {
		inWorld(t, []string{""}, func(ctx context.Context, w *world) {
			w.addLocal(ctx)
			var clock atomic.Int64
			var mu sync.Mutex
			var history []porcupine.Operation
			var g conc.WaitGroup
			for client := range 4 {
				g.Go(func() {
					for i := range 6 {
						in := call{remove: (client+i)%2 == 1, key: fmt.Sprintf("%d-%d", client, i)}
						for range 2 {
							begun := clock.Add(1)
							out := w.request(ctx, in)
							ended := clock.Add(1)
							mu.Lock()
							history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: begun, Output: out, Return: ended})
							mu.Unlock()
						}
					}
				})
			}
			g.Wait()
			if !porcupine.CheckOperations(nameModel, history) {
				for _, op := range history {
					t.Log(op.ClientId, op.Call, op.Return, op.Input, op.Output)
				}
				t.Fatal("the history is not linearizable")
			}
			agent := w.fleet.agent("")
			agent.set(func() {
				for id, n := range agent.done {
					if n != 1 {
						t.Errorf("operation %s was carried out %d times", id, n)
					}
				}
			})
		})
	}
}

func (w *world) request(ctx context.Context, in call) answer {
	var resp *vendettav1.ChangeResponse
	var err error
	if in.remove {
		resp, err = w.server.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: "x", IdempotencyKey: in.key})
	} else {
		resp, err = w.server.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{Name: "x", IdempotencyKey: in.key})
	}
	return answer{workspace: resp.GetWorkspace().GetId(), operation: resp.GetOperation().GetId(), code: api.CodeOf(err)}
}

type snapshotCall struct{ remove bool }

// snapshotState is one name among a workspace's snapshots, with the operation
// that made it what it is: who calls while that is under way gets the same.
type snapshotState struct {
	kept bool
	op   string
}

// snapshotModel says what creates and removals of one snapshot may answer, when
// their operations have ended.
var snapshotModel = porcupine.Model{
	Init: func() any { return snapshotState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(snapshotState), input.(snapshotCall), output.(answer)
		switch out.code {
		case api.Conflict: // overtaken
			return true, s
		case api.AlreadyExists:
			return !in.remove && s.kept, s
		case api.NotFound:
			return in.remove && !s.kept, s
		case "":
			if s.kept != in.remove && s.op == out.operation {
				return true, s
			}
			return s.kept == in.remove, snapshotState{kept: !in.remove, op: out.operation}
		default:
			return false, s
		}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
}

// Creates and removals of one snapshot by several clients at once are
// linearizable: none is lost, none is done twice.
func TestSnapshotsAreLinearizable(t *testing.T) {
	for range 5 {
		inWorld(t, []string{""}, func(ctx context.Context, w *world) {
			w.addLocal(ctx)
			w.create(ctx, "x", nil)
			var clock atomic.Int64
			var mu sync.Mutex
			var history []porcupine.Operation
			var g conc.WaitGroup
			for client := range 4 {
				g.Go(func() {
					for i := range 8 {
						in := snapshotCall{remove: (client+i)%2 == 1}
						begun := clock.Add(1)
						out := w.requestSnapshot(ctx, in)
						ended := clock.Add(1)
						mu.Lock()
						history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: begun, Output: out, Return: ended})
						mu.Unlock()
					}
				})
			}
			g.Wait()
			done := 0
			for _, op := range history {
				if op.Output.(answer).code == "" {
					done++
				}
			}
			if !porcupine.CheckOperations(snapshotModel, history) || done == 0 {
				for _, op := range history {
					t.Log(op.ClientId, op.Call, op.Return, op.Input, op.Output)
				}
				t.Fatalf("the history is not linearizable; %d were done", done)
			}
			agent := w.fleet.agent("")
			agent.set(func() {
				for id, n := range agent.done {
					if n != 1 {
						t.Errorf("operation %s was carried out %d times", id, n)
					}
				}
			})
		})
	}
}

// requestSnapshot makes one call and waits for the end of its operation.
func (w *world) requestSnapshot(ctx context.Context, in snapshotCall) answer {
	var resp *vendettav1.ChangeResponse
	var err error
	if in.remove {
		resp, err = w.server.RemoveSnapshot(ctx, &vendettav1.RemoveSnapshotRequest{Workspace: "x", Snapshot: "s"})
	} else {
		resp, err = w.snapshot(ctx, "x", "s")
	}
	if err != nil {
		return answer{code: api.CodeOf(err)}
	}
	op, err := w.server.WaitOperation(ctx, &vendettav1.WaitOperationRequest{Id: resp.GetOperation().GetId(), Seconds: 120})
	if err == nil && op.GetState() != succeeded {
		return answer{operation: op.GetId(), code: api.Code(op.GetErrorCode())}
	}
	return answer{operation: op.GetId(), code: api.CodeOf(err)}
}
