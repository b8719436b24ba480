//go:build linux

package native

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
)

const (
	guestInterface = "eth0"
	// vethPrefix tells our links from others', whichever server's they are.
	vethPrefix = "vdn"
	// networkLock serialises all native providers of the machine, since links,
	// addresses and rules are the machine's.
	networkLock = "/run/vendetta-native.lock"
	// ruleComment marks our rules, so that they can be found and nobody wonders.
	ruleComment = "vendetta-native"
)

// vethName is derived from the workspace alone and fits IFNAMSIZ.
func vethName(ws string) string {
	sum := sha256.Sum256([]byte(ws))
	return vethPrefix + hex.EncodeToString(sum[:5])
}

// canNAT says whether private networks have a way out here.
func (m machine) canNAT() bool { return m.root && m.iptables != "" }

// join connects the child to its network and notes in pl what Init shall do.
func (p *Provider) join(ctx context.Context, ws string, kind providers.Network, pl *plan, r *run) error {
	if kind == providers.NetworkHost {
		raw, err := os.ReadFile(resolvConf)
		if err == nil {
			pl.Files["resolv.conf"] = string(raw)
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	if kind != providers.NetworkPrivate || !p.machine.canNAT() {
		return nil
	}
	release, err := lockFile(networkLock)
	if err != nil {
		return err
	}
	defer release()
	nl, err := dialNetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	r.Veth = vethName(ws)
	// The dying namespace of a guest that was killed may still hold the name.
	if err := nl.remove(r.Veth); err != nil {
		return err
	}
	taken, err := addresses()
	if err != nil {
		return err
	}
	block, err := freeBlock(p.subnet, taken)
	if err != nil {
		return err
	}
	host := block.Addr().Next()
	inside := host.Next()
	if err := nl.veth(r.Veth, r.PID); err != nil {
		return err
	}
	if err := nl.address(r.Veth, netip.PrefixFrom(host, block.Bits()).String()); err != nil {
		return err
	}
	if err := nl.up(r.Veth); err != nil {
		return err
	}
	if err := p.openWay(ctx); err != nil {
		return err
	}
	pl.Address = netip.PrefixFrom(inside, block.Bits()).String()
	pl.Gateway = host.String()
	pl.Files["resolv.conf"] = resolver(resolvConf, upstreams)
	return nil
}

// leave removes the link of a run and, with the last link, the rules.
func (p *Provider) leave(ctx context.Context, r run) error {
	if r.Veth == "" {
		return nil
	}
	release, err := lockFile(networkLock)
	if err != nil {
		return err
	}
	defer release()
	nl, err := dialNetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	if err := nl.remove(r.Veth); err != nil {
		return err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		if strings.HasPrefix(i.Name, vethPrefix) {
			return nil
		}
	}
	return p.closeWay(ctx)
}

func addresses() ([]netip.Prefix, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var taken []netip.Prefix
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, prefix)
		}
	}
	return taken, nil
}

// freeBlock finds four addresses in pool that no interface of the machine has
// any of: the kernel's own state is the register, which neither a crash nor a
// reboot can make wrong. An interface's larger network around the pool does not
// count; the smaller network is what routes prefer.
func freeBlock(pool netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	used := map[netip.Addr]bool{}
	for _, t := range taken {
		if pool.Contains(t.Addr()) {
			used[netip.PrefixFrom(t.Addr(), 30).Masked().Addr()] = true
		}
	}
	for at := pool.Addr(); pool.Contains(at); at = at.Next().Next().Next().Next() {
		if !used[at] {
			return netip.PrefixFrom(at, 30), nil
		}
	}
	return netip.Prefix{}, &providers.Error{
		Kind:    providers.ErrExhausted,
		Message: fmt.Sprintf("start native workspace: all addresses of %s are in use", pool),
		Next:    "stop other workspaces on the node",
	}
}

// rules of the pool, one for all instances: reach out by the machine's address,
// but not each other. The order is that of the finished chain.
func rules(pool netip.Prefix) [][]string {
	s := pool.String()
	mark := []string{"-m", "comment", "--comment", ruleComment}
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

// openWay makes the machine forward for the pool, ahead of others' rules (dockerd
// sets the chain's policy to DROP). The caller holds the lock.
func (p *Provider) openWay(ctx context.Context) error {
	const forward = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(forward); err != nil {
		return err
	} else if string(bytes.TrimSpace(now)) != "1" {
		if err := os.WriteFile(forward, []byte("1"), 0); err != nil {
			return err
		}
		p.log.Info("switched on IPv4 forwarding for private networks")
	}
	wanted := rules(p.subnet)
	// Inserting puts a rule first, so the last goes first.
	for i := len(wanted) - 1; i >= 0; i-- {
		r := wanted[i]
		if p.iptables(ctx, append([]string{"-t", r[0], "-C"}, r[1:]...)) == nil {
			continue
		}
		if err := p.iptables(ctx, append([]string{"-t", r[0], "-I"}, r[1:]...)); err != nil {
			return err
		}
	}
	return nil
}

// closeWay removes the rules. The caller holds the lock.
func (p *Provider) closeWay(ctx context.Context) error {
	for _, r := range rules(p.subnet) {
		args := func(op string) []string { return append([]string{"-t", r[0], op}, r[1:]...) }
		for p.iptables(ctx, args("-C")) == nil {
			if err := p.iptables(ctx, args("-D")); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Provider) iptables(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, p.machine.iptables, append([]string{"-w", "5"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(p.machine.iptables), err, bytes.TrimSpace(out))
	}
	return nil
}

// Where the machine's name servers are written down. A resolver on the machine's
// loopback is out of reach from another network namespace; systemd keeps the real
// ones in the second file.
const (
	resolvConf = "/etc/resolv.conf"
	upstreams  = "/run/systemd/resolve/resolv.conf"
)

// resolver is the text of the first of files that has a name server which another
// network namespace reaches.
func resolver(files ...string) string {
	for _, file := range files {
		if raw, err := os.ReadFile(file); err == nil {
			if text := reachable(string(raw)); text != "" {
				return text
			}
		}
	}
	return "# the machine's name server is missing or listens on its loopback only\n"
}

// reachable drops name servers on loopback; "" when none is left.
func reachable(text string) string {
	var out []string
	found := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "nameserver" {
			addr, err := netip.ParseAddr(f[1])
			if err != nil || addr.IsLoopback() {
				continue
			}
			found = true
		}
		out = append(out, strings.TrimRight(line, "\n"))
	}
	if !found {
		return ""
	}
	return strings.Join(out, "\n") + "\n"
}
