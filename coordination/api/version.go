package api

import "fmt"

// Protocol is the version of the wire contract that this program speaks on
// every link: CLI to server, server to node agent, node agent to guest.
//
//	1  2026-11-22  first version
const Protocol = 1

// ProtocolOldest is the oldest version that this program still understands.
const ProtocolOldest = 1

// ServerHeader names the server that a call to a node agent comes from. The
// agent keeps a journal and a set of instances for each server apart.
const ServerHeader = "Vendetta-Server"

// Version is the program's release, set by the linker in releases.
var Version = "dev"

// Negotiate returns the highest protocol that both sides speak. upgrade is the
// command that brings the older side up; it becomes the error's next step.
func Negotiate(lowest, highest int32, upgrade string) (int32, error) {
	if highest < ProtocolOldest || lowest > Protocol || lowest > highest {
		return 0, &Error{
			Code:    FailedPrecondition,
			Message: fmt.Sprintf("protocol: the other side speaks %d to %d, this one %d to %d", lowest, highest, ProtocolOldest, Protocol),
			Next:    upgrade,
		}
	}
	return min(highest, Protocol), nil
}
