//go:build linux

package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
)

// Way is the way out of a pool of addresses: rules of the machine's firewall that
// stand while an instance needs them.
type Way struct {
	// Program is iptables, as FindIPTables found it.
	Program string
	Pool    netip.Prefix
	// Comment marks the rules, so that they can be found and nobody wonders.
	Comment string
}

// FindIPTables returns the path of the machine's iptables, "" when there is none.
func FindIPTables() string {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if path, err := exec.LookPath(dir + "/iptables"); err == nil {
			return path
		}
	}
	return ""
}

// rules of the pool, one for all instances: reach out by the machine's address,
// but not each other. The order is that of the finished chain.
func (w Way) rules() [][]string {
	s := w.Pool.String()
	mark := []string{"-m", "comment", "--comment", w.Comment}
	rule := func(words ...string) []string { return append(words, mark...) }
	return [][]string{
		rule("filter", "FORWARD", "-s", s, "-d", s, "-j", "DROP"),
		rule("filter", "FORWARD", "-s", s, "-j", "ACCEPT"),
		rule("filter", "FORWARD", "-d", s, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
		// Nobody reaches in, whatever the machine's own rules would allow.
		rule("filter", "FORWARD", "-d", s, "-j", "DROP"),
		rule("nat", "POSTROUTING", "-s", s, "!", "-d", s, "-j", "MASQUERADE"),
	}
}

// Open makes the machine forward for the pool, ahead of others' rules (dockerd
// sets the chain's policy to DROP), and says whether it had to switch forwarding
// on. The caller holds a lock against others who do.
func (w Way) Open(ctx context.Context) (switched bool, err error) {
	const forward = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(forward); err != nil {
		return false, err
	} else if string(bytes.TrimSpace(now)) != "1" {
		if err := os.WriteFile(forward, []byte("1"), 0); err != nil {
			return false, err
		}
		switched = true
	}
	wanted := w.rules()
	// Inserting puts a rule first, so the last goes first.
	for i := len(wanted) - 1; i >= 0; i-- {
		r := wanted[i]
		if w.iptables(ctx, append([]string{"-t", r[0], "-C"}, r[1:]...)) == nil {
			continue
		}
		if err := w.iptables(ctx, append([]string{"-t", r[0], "-I"}, r[1:]...)); err != nil {
			return switched, err
		}
	}
	return switched, nil
}

// Close removes the rules. The caller holds the lock.
func (w Way) Close(ctx context.Context) error {
	for _, r := range w.rules() {
		args := func(op string) []string { return append([]string{"-t", r[0], op}, r[1:]...) }
		for w.iptables(ctx, args("-C")) == nil {
			if err := w.iptables(ctx, args("-D")); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w Way) iptables(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, w.Program, append([]string{"-w", "5"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(w.Program), err, bytes.TrimSpace(out))
	}
	return nil
}
