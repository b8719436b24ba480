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
	"slices"
	"strings"
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
		// Nor what another pool's rules would, which stand ahead of these where that
		// pool was opened later: this chain comes before all of them.
		rule("mangle", "FORWARD", "-d", s, "-m", "conntrack", "!", "--ctstate", "RELATED,ESTABLISHED", "-j", "DROP"),
		rule("nat", "POSTROUTING", "-s", s, "!", "-d", s, "-j", "MASQUERADE"),
	}
}

// Open makes the machine forward for the pool, ahead of others' rules (dockerd
// sets the chain's policy to DROP), and says whether it had to switch forwarding
// on. The caller holds a lock against others who do.
func (w Way) Open(ctx context.Context) (switched bool, err error) {
	if w.restore(ctx, "-C") == nil { // all of them stand
		return forward()
	}
	return w.Begin(ctx)
}

// Begin is Open where none of the rules stands. Those of a process that died in
// the middle may, below the new ones: they say the same, and go with them.
func (w Way) Begin(ctx context.Context) (switched bool, err error) {
	if switched, err = forward(); err != nil {
		return switched, err
	}
	return switched, w.restore(ctx, "-I")
}

// forward switches IPv4 forwarding on, and says whether it was off.
func forward() (switched bool, err error) {
	const file = "/proc/sys/net/ipv4/ip_forward"
	now, err := os.ReadFile(file)
	if err != nil || string(bytes.TrimSpace(now)) == "1" {
		return false, err
	}
	return true, os.WriteFile(file, []byte("1"), 0)
}

// Close removes the rules. The caller holds the lock.
func (w Way) Close(ctx context.Context) error {
	for w.restore(ctx, "-D") == nil {
		if left, err := w.left(ctx); err != nil || !left {
			return err
		}
	}
	// Not all of them stood.
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

// left says whether there is still a rule of ours.
func (w Way) left(ctx context.Context) (bool, error) {
	for _, r := range [][]string{{"-t", "filter", "-S", "FORWARD"}, {"-t", "mangle", "-S", "FORWARD"}, {"-t", "nat", "-S", "POSTROUTING"}} {
		out, err := exec.CommandContext(ctx, w.Program, append([]string{"-w", "5"}, r...)...).Output()
		if err != nil {
			return false, fmt.Errorf("%s: %w", filepath.Base(w.Program), err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, w.Comment) && strings.Contains(line, w.Pool.String()) {
				return true, nil
			}
		}
	}
	return false, nil
}

func (w Way) restore(ctx context.Context, op string) error {
	return restore(ctx, w.Program, op, w.rules())
}

// restore does one thing with all rules at once, all or nothing in each table:
// starting a program for each of them would cost more than the rest of a start.
func restore(ctx context.Context, program, op string, rules [][]string) error {
	var text strings.Builder
	if op == "-I" {
		slices.Reverse(rules) // inserting puts a rule first, so the last goes first
	}
	for _, table := range []string{"filter", "mangle", "nat"} {
		text.WriteString("*" + table + "\n")
		for _, r := range rules {
			if r[0] == table {
				text.WriteString(op + " " + strings.Join(r[1:], " ") + "\n")
			}
		}
		text.WriteString("COMMIT\n")
	}
	cmd := exec.CommandContext(ctx, program+"-restore", "-w", "5", "--noflush")
	cmd.Stdin = strings.NewReader(text.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
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
