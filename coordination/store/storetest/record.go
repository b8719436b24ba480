package storetest

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/store"
)

// The records below have every field set, so that one which a store forgets
// shows.

var born = time.Date(2026, 11, 22, 10, 20, 30, 123456789, time.UTC)

// NewNode returns a full record.
func NewNode(id, name string) store.Node {
	return store.Node{
		ID: id, Name: name,
		Address:  &vendettav1.NodeAddress{Host: "192.0.2.7", User: "dev", Port: 2222, Jump: []string{"a@b:1", "c"}, Socket: "/s", Program: "/p", Identity: "/i"},
		Labels:   map[string]string{"zone": "b", "gpu": "", "quote\"": "ü\x00"},
		State:    vendettav1.NodeState_NODE_STATE_READY,
		Message:  "it is\nwell \x00 \xff",
		Draining: true,
		HostKeys: []string{"SHA256:abc", "SHA256:def"},

		CreatedAt: born,
		UpdatedAt: born.Add(time.Nanosecond),
		Report: &vendettav1.NodeReport{
			Hostname: "h", Os: "linux", Arch: "amd64", AgentStartedAt: timestamppb.New(born),
			Capacity:  &vendettav1.Capacity{Cpus: 2, MemoryBytes: 1 << 40, Load1: 0.5},
			Providers: []*vendettav1.ProviderStatus{{Name: "docker", Usable: true, Capabilities: []string{"limits.memory"}}},
		},
		Spares: []store.Spares{{Provider: "docker", Image: "debian:12", Count: 2}, {Provider: "native", Count: 1}},
	}
}

// NewWorkspace returns a full record.
func NewWorkspace(id, name, node string) store.Workspace {
	return store.Workspace{
		ID: id, Name: name, NodeID: node,
		Spec: &vendettav1.WorkspaceSpec{
			Provider: "docker", Image: "debian:12",
			Resources: &vendettav1.Resources{Cpus: 1.5, MemoryBytes: 1 << 30, Pids: 100},
			Network:   vendettav1.Network_NETWORK_PRIVATE,
			Source:    &vendettav1.Source{Path: "/src", Commit: "abc", Branch: "main", Dirty: true},
		},
		Desired:     vendettav1.DesiredState_DESIRED_STATE_RUNNING,
		Generation:  1 << 40,
		State:       vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED,
		Instance:    "vendetta-" + id,
		ErrorCode:   "unavailable",
		Message:     "start: no",
		Next:        "do that",
		OperationID: "op-" + id,
		CreatedAt:   born,
		UpdatedAt:   born.Add(time.Hour),
		Spare:       true,
	}
}

// NewOperation returns a full record; its idempotency key is its own.
func NewOperation(id, workspace string) store.Operation {
	return store.Operation{
		ID: id, WorkspaceID: workspace, WorkspaceName: "name of " + workspace, NodeID: "n1", Verb: "stop",
		Principal: "local", IdempotencyKey: "key-" + id, Generation: 7, GraceSeconds: 30,
		State:    vendettav1.OperationState_OPERATION_STATE_PENDING,
		Argument: "clean", Before: store.Limits{CPUs: 0.1, MemoryBytes: 1 << 63, PIDs: 3, DiskBytes: 1<<30 + 1},
		ErrorCode: "internal", Message: "m", Next: "n", Note: "at the next start",
		CreatedAt: born, FinishedAt: born.Add(time.Minute),
	}
}

// NewAudit returns a full record without a number.
func NewAudit(workspace string) store.Audit {
	return store.Audit{At: born, Principal: "local", Method: "/vendetta.guest.v1.ProcessService/Start", Workspace: workspace, Fields: `{"argv":["true"]}`}
}
