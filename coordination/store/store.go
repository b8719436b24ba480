package store

import (
	"context"
	"errors"
	"time"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// The failures that callers tell apart, by errors.Is.
var (
	// ErrNotFound: no such record.
	ErrNotFound = errors.New("no such record")
	// ErrExists: a record with this id, name or idempotency key is there already.
	ErrExists = errors.New("record exists")
	// ErrReadOnly: a write through the Tx of a View.
	ErrReadOnly = errors.New("write in a view")
	// ErrTxEnded: a Tx was used after its function had returned.
	ErrTxEnded = errors.New("transaction has ended")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store is closed")
)

// Store keeps the server's records.
//
// A transaction is the unit of everything: it is applied whole or not at all,
// and Update returns nil only after it is on disk. Transactions of Update are
// serial; several waiting ones may share one commit. View sees one consistent
// state and never waits for Update. A Tx ends with its function and is used by
// one goroutine.
type Store interface {
	// Update runs fn and commits when it returns nil. fn's error comes back as
	// it is and nothing was changed; so it is when fn panics, and the panic goes
	// on in the caller. fn is called once at most, may be called on another
	// goroutine, must not block on anything but the Tx, and must not call the
	// Store. ctx ends the wait for fn's turn, never what has begun.
	Update(ctx context.Context, fn func(Tx) error) error
	// View runs fn on a consistent state; writes through its Tx are ErrReadOnly.
	// fn must not call the Store.
	View(ctx context.Context, fn func(Tx) error) error
	// Close waits for what runs, then releases the store. Later calls fail with
	// ErrClosed; closing again is success.
	Close() error
}

// Tx is the access inside one transaction. Records that are returned belong to
// the caller: changing one changes nothing in the store until it is put back.
// Times come back in UTC and to the nanosecond, empty maps and lists as nil.
// A limit of 0 or less is no limit. An error of a write leaves the transaction
// as it was before that write.
type Tx interface {
	// Meta returns a value of the server's own, ErrNotFound when it was not set.
	Meta(key string) (string, error)
	SetMeta(key, value string) error

	// CreateNode fails with ErrExists when id or name is taken.
	CreateNode(Node) error
	// UpdateNode fails with ErrNotFound, and with ErrExists when another node has
	// the name. So do its siblings below.
	UpdateNode(Node) error
	Node(id string) (Node, error)
	NodeByName(name string) (Node, error)
	// Nodes in the order of their names.
	Nodes() ([]Node, error)
	// DeleteNode of an absent node is success.
	DeleteNode(id string) error

	CreateWorkspace(Workspace) error
	UpdateWorkspace(Workspace) error
	Workspace(id string) (Workspace, error)
	WorkspaceByName(name string) (Workspace, error)
	// Workspaces in the order of their names; node "" means all.
	Workspaces(node string) ([]Workspace, error)
	DeleteWorkspace(id string) error

	// CreateOperation fails with ErrExists when the id is taken, or the pair of
	// principal and idempotency key, unless that key is empty.
	CreateOperation(Operation) error
	UpdateOperation(Operation) error
	Operation(id string) (Operation, error)
	// OperationByKey of an empty key is ErrNotFound.
	OperationByKey(principal, key string) (Operation, error)
	// Operations, the last created first; workspace id "" means all.
	Operations(workspace string, limit int) ([]Operation, error)
	// PendingOperations, the first created first.
	PendingOperations() ([]Operation, error)

	// AppendAudit gives the entry the next sequence number, from 1 without gaps.
	// The entry's own number is not looked at.
	AppendAudit(Audit) (int64, error)
	// AuditAfter returns entries with a greater number, in order; workspace "" means all.
	AuditAfter(seq int64, workspace string, limit int) ([]Audit, error)
}

// Node is a machine that was added. What its agent reports stays in memory.
type Node struct {
	ID      string
	Name    string
	Address *vendettav1.NodeAddress
	Labels  map[string]string
	// State is joining until the agent first answered, then ready or lost;
	// draining is kept apart.
	State    vendettav1.NodeState
	Message  string
	Draining bool
	// HostKeys are the accepted fingerprints, SHA256:...
	HostKeys  []string
	CreatedAt time.Time
	UpdatedAt time.Time
	// Report is the last one before the last change of state.
	Report *vendettav1.NodeReport
	// Spares are the settings of what the node keeps ready.
	Spares []Spares
}

// Spares says how many spares of a provider and image a node keeps.
type Spares struct {
	Provider string
	Image    string
	Count    int32
}

// Workspace is what should be, with the last known of what is.
type Workspace struct {
	ID         string
	Name       string
	NodeID     string
	Spec       *vendettav1.WorkspaceSpec
	Desired    vendettav1.DesiredState
	Generation int64
	// State is the last observed.
	State     vendettav1.WorkspaceState
	Instance  string
	ErrorCode string
	Message   string
	Next      string
	// OperationID is the latest accepted operation.
	OperationID string
	CreatedAt   time.Time
	UpdatedAt   time.Time
	// Spare: it waits for a create that takes it. Its name is none that a user
	// could give.
	Spare bool
}

// Operation is one accepted change.
type Operation struct {
	ID             string
	WorkspaceID    string
	WorkspaceName  string
	NodeID         string
	Verb           string
	Principal      string
	IdempotencyKey string
	Generation     int64
	GraceSeconds   int32
	// Argument is what the verb is about beside the workspace: the name of a
	// snapshot, or the id of the workspace that a fork is made from.
	Argument string
	// Before holds the limits that a resize has changed, which count again when
	// it fails.
	Before    Limits
	State     vendettav1.OperationState
	ErrorCode string
	Message   string
	Next      string
	// Note is what a person should know of a success.
	Note       string
	CreatedAt  time.Time
	FinishedAt time.Time
}

// Limits are a workspace's resources, as its spec has them: zero is none set.
type Limits struct {
	CPUs        float64 `json:"cpus,omitempty"`
	MemoryBytes uint64  `json:"memory_bytes,omitempty"`
	PIDs        int64   `json:"pids,omitempty"`
	DiskBytes   uint64  `json:"disk_bytes,omitempty"`
}

// Audit is one recorded call.
type Audit struct {
	Seq       int64
	At        time.Time
	Principal string
	Method    string
	Workspace string
	// Fields are the recorded request fields, as JSON.
	Fields string
}
