//go:build linux

package network

import (
	"context"
	"strconv"
)

// Fence keeps the processes of one user away from what listens on the machine's
// loopback, which is meant for the machine's own people. Name servers there stay
// in reach: those processes look names up as the machine does.
type Fence struct {
	// Program is iptables, as FindIPTables found it.
	Program string
	UID     uint32
	// Comment marks the rules and tells them from those of another fence.
	Comment string
}

func (f Fence) rules() [][]string {
	var all [][]string
	for _, protocol := range []string{"tcp", "udp"} {
		all = append(all, []string{
			"filter", "OUTPUT", "-d", "127.0.0.0/8", "-m", "owner", "--uid-owner", strconv.FormatUint(uint64(f.UID), 10),
			"-p", protocol, "!", "--dport", "53", "-m", "comment", "--comment", f.Comment, "-j", "REJECT",
		})
	}
	return all
}

// Raise puts the fence up. One that stands is success.
func (f Fence) Raise(ctx context.Context) error {
	if restore(ctx, f.Program, "-C", f.rules()) == nil {
		return nil
	}
	return restore(ctx, f.Program, "-I", f.rules())
}

// Lower takes it down. One that does not stand is success.
func (f Fence) Lower(ctx context.Context) error {
	err := restore(ctx, f.Program, "-D", f.rules())
	if err == nil || restore(ctx, f.Program, "-C", f.rules()) != nil { // gone already with a restart of the firewall
		return ctx.Err()
	}
	return err
}
