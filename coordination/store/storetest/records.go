package storetest

import (
	"fmt"
	"testing"
	"time"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

func testMeta(t *testing.T, s store.Store) {
	view(t, s, func(tx store.Tx) {
		_, err := tx.Meta("id")
		wantErr(t, err, store.ErrNotFound)
	})
	for _, value := range []string{"one", "two", ""} {
		update(t, s, func(tx store.Tx) error { return tx.SetMeta("id", value) })
		view(t, s, func(tx store.Tx) {
			got, err := tx.Meta("id")
			must(t, err)
			equal(t, "meta", got, value)
		})
	}
}

func testNodes(t *testing.T, s store.Store) {
	b, a := NewNode("1", "b"), NewNode("2", "a")
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Node("1")
		wantErr(t, err, store.ErrNotFound)
		_, err = tx.NodeByName("b")
		wantErr(t, err, store.ErrNotFound)
		wantErr(t, tx.UpdateNode(b), store.ErrNotFound)
		must(t, tx.CreateNode(b))
		must(t, tx.CreateNode(a))
		wantErr(t, tx.CreateNode(NewNode("1", "c")), store.ErrExists)
		wantErr(t, tx.CreateNode(NewNode("3", "a")), store.ErrExists)
		wantErr(t, tx.UpdateNode(NewNode("1", "a")), store.ErrExists)
		return nil
	})
	check := func(want ...store.Node) {
		t.Helper()
		view(t, s, func(tx store.Tx) {
			all, err := tx.Nodes()
			must(t, err)
			equal(t, "nodes", all, want)
			for _, n := range want {
				got, err := tx.Node(n.ID)
				must(t, err)
				equal(t, "node", got, n)
				got, err = tx.NodeByName(n.Name)
				must(t, err)
				equal(t, "node", got, n)
			}
		})
	}
	check(a, b)
	b.Name, b.Draining, b.State, b.Labels = "0", false, vendettav1.NodeState_NODE_STATE_LOST, map[string]string{"x": "y"}
	update(t, s, func(tx store.Tx) error { return tx.UpdateNode(b) })
	check(b, a)
	update(t, s, func(tx store.Tx) error {
		must(t, tx.DeleteNode("1"))
		must(t, tx.DeleteNode("1"))
		must(t, tx.CreateNode(NewNode("3", "b"))) // the names are free again
		must(t, tx.CreateNode(NewNode("1", "0")))
		return nil
	})
	check(NewNode("1", "0"), a, NewNode("3", "b"))
}

func testWorkspaces(t *testing.T, s store.Store) {
	b, a, c := NewWorkspace("1", "b", "n1"), NewWorkspace("2", "a", "n2"), NewWorkspace("3", "c", "n1")
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Workspace("1")
		wantErr(t, err, store.ErrNotFound)
		_, err = tx.WorkspaceByName("b")
		wantErr(t, err, store.ErrNotFound)
		wantErr(t, tx.UpdateWorkspace(b), store.ErrNotFound)
		must(t, tx.CreateWorkspace(b))
		must(t, tx.CreateWorkspace(a))
		must(t, tx.CreateWorkspace(c))
		wantErr(t, tx.CreateWorkspace(NewWorkspace("1", "d", "n1")), store.ErrExists)
		wantErr(t, tx.CreateWorkspace(NewWorkspace("4", "a", "n1")), store.ErrExists)
		wantErr(t, tx.UpdateWorkspace(NewWorkspace("1", "a", "n1")), store.ErrExists)
		return nil
	})
	check := func(node string, want ...store.Workspace) {
		t.Helper()
		view(t, s, func(tx store.Tx) {
			all, err := tx.Workspaces(node)
			must(t, err)
			equal(t, "workspaces", all, want)
			for _, w := range want {
				got, err := tx.Workspace(w.ID)
				must(t, err)
				equal(t, "workspace", got, w)
				got, err = tx.WorkspaceByName(w.Name)
				must(t, err)
				equal(t, "workspace", got, w)
			}
		})
	}
	check("", a, b, c)
	check("n1", b, c)
	check("n3")
	b.NodeID, b.Generation, b.Desired, b.Spec = "n2", 8, vendettav1.DesiredState_DESIRED_STATE_REMOVED, &vendettav1.WorkspaceSpec{Image: "x"}
	update(t, s, func(tx store.Tx) error { return tx.UpdateWorkspace(b) })
	check("n2", a, b)
	update(t, s, func(tx store.Tx) error {
		must(t, tx.DeleteWorkspace("2"))
		must(t, tx.DeleteWorkspace("absent"))
		return nil
	})
	check("", b, c)
}

func testOperations(t *testing.T, s store.Store) {
	var all []store.Operation
	for i := range 6 {
		o := NewOperation(fmt.Sprint("o", 9-i), fmt.Sprint("w", i%2))
		// The order is that of creation, whatever the clock says.
		o.CreatedAt = born.Add(-time.Duration(i) * time.Hour)
		all = append(all, o)
	}
	update(t, s, func(tx store.Tx) error {
		_, err := tx.Operation("o9")
		wantErr(t, err, store.ErrNotFound)
		wantErr(t, tx.UpdateOperation(all[0]), store.ErrNotFound)
		for _, o := range all {
			must(t, tx.CreateOperation(o))
		}
		again := all[0]
		again.IdempotencyKey = "another"
		wantErr(t, tx.CreateOperation(again), store.ErrExists)
		return nil
	})
	all[1].State, all[1].Message = vendettav1.OperationState_OPERATION_STATE_SUCCEEDED, "done"
	update(t, s, func(tx store.Tx) error { return tx.UpdateOperation(all[1]) })
	view(t, s, func(tx store.Tx) {
		for _, o := range all {
			got, err := tx.Operation(o.ID)
			must(t, err)
			equal(t, "operation", got, o)
		}
		for _, c := range []struct {
			workspace string
			limit     int
			want      []store.Operation
		}{
			{"", 0, []store.Operation{all[5], all[4], all[3], all[2], all[1], all[0]}},
			{"", 2, []store.Operation{all[5], all[4]}},
			{"w1", -1, []store.Operation{all[5], all[3], all[1]}},
			{"w0", 1, []store.Operation{all[4]}},
			{"w2", 9, nil},
		} {
			got, err := tx.Operations(c.workspace, c.limit)
			must(t, err)
			equal(t, fmt.Sprintf("operations of %q, limit %d", c.workspace, c.limit), got, c.want)
		}
		pending, err := tx.PendingOperations()
		must(t, err)
		equal(t, "pending operations", pending, []store.Operation{all[0], all[2], all[3], all[4], all[5]})
	})
}

func testIdempotencyKeys(t *testing.T, s store.Store) {
	with := func(id, principal, key string) store.Operation {
		o := NewOperation(id, "w")
		o.Principal, o.IdempotencyKey = principal, key
		return o
	}
	first := with("1", "ann", "k")
	update(t, s, func(tx store.Tx) error {
		_, err := tx.OperationByKey("ann", "k")
		wantErr(t, err, store.ErrNotFound)
		must(t, tx.CreateOperation(first))
		wantErr(t, tx.CreateOperation(with("2", "ann", "k")), store.ErrExists)
		must(t, tx.CreateOperation(with("2", "bob", "k")))
		must(t, tx.CreateOperation(with("3", "ann", "")))
		must(t, tx.CreateOperation(with("4", "ann", "")))
		wantErr(t, tx.UpdateOperation(with("4", "ann", "k")), store.ErrExists)
		return nil
	})
	view(t, s, func(tx store.Tx) {
		got, err := tx.OperationByKey("ann", "k")
		must(t, err)
		equal(t, "operation", got, first)
		_, err = tx.OperationByKey("ann", "")
		wantErr(t, err, store.ErrNotFound)
		_, err = tx.OperationByKey("eve", "k")
		wantErr(t, err, store.ErrNotFound)
	})
}

func testAudit(t *testing.T, s store.Store) {
	var want []store.Audit
	for i := range 5 {
		a := NewAudit(fmt.Sprint("w", i%2))
		a.Seq = 99 // not looked at
		update(t, s, func(tx store.Tx) error {
			seq, err := tx.AppendAudit(a)
			must(t, err)
			equal(t, "sequence number", seq, int64(i+1))
			return nil
		})
		a.Seq = int64(i + 1)
		want = append(want, a)
	}
	view(t, s, func(tx store.Tx) {
		for _, c := range []struct {
			after     int64
			workspace string
			limit     int
			want      []store.Audit
		}{
			{0, "", 0, want},
			{-5, "", -5, want},
			{3, "", 9, want[3:]},
			{1, "", 2, want[1:3]},
			{0, "w1", 0, []store.Audit{want[1], want[3]}},
			{1, "w0", 1, []store.Audit{want[2]}},
			{5, "", 0, nil},
			{500, "", 0, nil},
			{0, "w2", 0, nil},
		} {
			got, err := tx.AuditAfter(c.after, c.workspace, c.limit)
			must(t, err)
			equal(t, fmt.Sprintf("audit after %d of %q, limit %d", c.after, c.workspace, c.limit), got, c.want)
		}
	})
}

// Empty fields, empty messages and times of other zones come back as promised.
func testSparseRecords(t *testing.T, s store.Store) {
	zone := time.FixedZone("east", 3600)
	node := store.Node{ID: "n", Name: "n", Address: &vendettav1.NodeAddress{}, Labels: map[string]string{}, HostKeys: []string{}, CreatedAt: time.Unix(0, 0), UpdatedAt: born.In(zone)}
	wantNode := node
	wantNode.Labels, wantNode.HostKeys, wantNode.CreatedAt, wantNode.UpdatedAt = nil, nil, time.Unix(0, 0).UTC(), born
	workspace := store.Workspace{ID: "w", Name: "w"}
	operation := store.Operation{ID: "o"}
	update(t, s, func(tx store.Tx) error {
		must(t, tx.CreateNode(node))
		must(t, tx.CreateWorkspace(workspace))
		must(t, tx.CreateOperation(operation))
		_, err := tx.AppendAudit(store.Audit{})
		return err
	})
	view(t, s, func(tx store.Tx) {
		n, err := tx.Node("n")
		must(t, err)
		equal(t, "node", n, wantNode)
		w, err := tx.Workspace("w")
		must(t, err)
		equal(t, "workspace", w, workspace)
		o, err := tx.Operation("o")
		must(t, err)
		equal(t, "operation", o, operation)
		a, err := tx.AuditAfter(0, "", 0)
		must(t, err)
		equal(t, "audit", a, []store.Audit{{Seq: 1}})
	})
}

// What no protobuf message can hold is refused, not stored in part.
func testInvalidMessages(t *testing.T, s store.Store) {
	refused := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatalf("a message with invalid UTF-8 was taken")
		}
	}
	address, report := NewNode("1", "a"), NewNode("1", "a")
	address.Address.Host, report.Report.Hostname = "\xff", "\xff"
	workspace := NewWorkspace("1", "a", "n")
	workspace.Spec.Image = "\xff"
	update(t, s, func(tx store.Tx) error {
		must(t, tx.CreateNode(NewNode("1", "a")))
		must(t, tx.CreateWorkspace(NewWorkspace("1", "a", "n")))
		refused(tx.CreateNode(address))
		refused(tx.UpdateNode(address))
		refused(tx.UpdateNode(report))
		refused(tx.CreateWorkspace(workspace))
		refused(tx.UpdateWorkspace(workspace))
		return nil
	})
	view(t, s, func(tx store.Tx) {
		n, err := tx.Node("1")
		must(t, err)
		equal(t, "node", n, NewNode("1", "a"))
	})
}

func testIsolation(t *testing.T, s store.Store) {
	node, workspace := NewNode("n", "n"), NewWorkspace("w", "w", "n")
	update(t, s, func(tx store.Tx) error {
		must(t, tx.CreateNode(node))
		must(t, tx.CreateWorkspace(workspace))
		return nil
	})
	spoilNode := func(n store.Node) {
		n.Address.Host, n.Address.Jump[0], n.Labels["zone"], n.HostKeys[0] = "spoilt", "spoilt", "spoilt", "spoilt"
		n.Report.Capacity.Cpus = 99
	}
	spoilWorkspace := func(w store.Workspace) { w.Spec.Image, w.Spec.Resources.Pids = "spoilt", 1 }
	spoilNode(node) // what was given in
	spoilWorkspace(workspace)
	for range 2 { // what is given out
		update(t, s, func(tx store.Tx) error {
			all, err := tx.Nodes()
			must(t, err)
			equal(t, "nodes", all, []store.Node{NewNode("n", "n")})
			spoilNode(all[0])
			n, err := tx.Node("n")
			must(t, err)
			equal(t, "node", n, NewNode("n", "n"))
			spoilNode(n)
			ws, err := tx.Workspaces("")
			must(t, err)
			equal(t, "workspaces", ws, []store.Workspace{NewWorkspace("w", "w", "n")})
			spoilWorkspace(ws[0])
			w, err := tx.WorkspaceByName("w")
			must(t, err)
			equal(t, "workspace", w, NewWorkspace("w", "w", "n"))
			spoilWorkspace(w)
			return nil
		})
	}
}
