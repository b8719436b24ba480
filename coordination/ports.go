package coordination

import (
	"context"
	"errors"
	"net"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// Target is a node as transports and installers need to know it.
type Target struct {
	// ID is the node's id; a transport keeps one connection for each.
	ID      string
	Name    string
	Address *vendettav1.NodeAddress
	// HostKeys are the accepted fingerprints of the node and its jump hosts.
	HostKeys []string
}

// ErrNoAgent says that a node was reached and no node agent listens there, so
// that starting it may help.
var ErrNoAgent = errors.New("no node agent is listening")

// Dialer reaches node agents.
type Dialer interface {
	// Dial returns a new stream to the node agent. Errors are *api.Error; one
	// whose cause is ErrNoAgent, by errors.Is, makes the server start the agent.
	Dial(ctx context.Context, target Target) (net.Conn, error)
	// Forget closes what is kept for a node.
	Forget(nodeID string)
}

// Installer puts node agents onto machines, over the same connections.
type Installer interface {
	// Probe connects as far as it can and reports the host keys it saw.
	Probe(ctx context.Context, target Target, login *vendettav1.Login) ([]*vendettav1.HostKey, error)
	// Install logs in with what the caller lent, leaves the server's key and the
	// programs on the machine, starts the agent, and returns the target with
	// its socket and program filled in. Repeating it is a repair.
	Install(ctx context.Context, target Target, login *vendettav1.Login) (Target, error)
	// Start starts an installed agent that does not answer.
	Start(ctx context.Context, target Target) error
	// Uninstall stops the agent and removes it, its state and the server's key.
	Uninstall(ctx context.Context, target Target) error
}
