//go:build linux

package native

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/network"
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
		raw, err := os.ReadFile(network.ResolvConf)
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
	release, err := host.Lock(networkLock)
	if err != nil {
		return err
	}
	defer release()
	nl, err := network.Dial()
	if err != nil {
		return err
	}
	defer nl.Close()
	r.Veth = vethName(ws)
	// The dying namespace of a guest that was killed may still hold the name.
	if err := nl.Remove(r.Veth); err != nil {
		return err
	}
	taken, err := network.Addresses()
	if err != nil {
		return err
	}
	block, err := freeBlock(p.subnet, taken)
	if err != nil {
		return err
	}
	host := block.Addr().Next()
	inside := host.Next()
	if err := nl.Veth(r.Veth, guestInterface, r.PID); err != nil {
		return err
	}
	if err := nl.Address(r.Veth, netip.PrefixFrom(host, block.Bits()).String()); err != nil {
		return err
	}
	if err := nl.Up(r.Veth); err != nil {
		return err
	}
	if switched, err := p.way().Open(ctx); err != nil {
		return err
	} else if switched {
		p.log.Info("switched on IPv4 forwarding for private networks")
	}
	pl.Address = netip.PrefixFrom(inside, block.Bits()).String()
	pl.Gateway = host.String()
	pl.Files["resolv.conf"] = network.Resolver(network.ResolvConf, network.Upstreams)
	return nil
}

// leave removes the link of a run and, with the last link, the rules.
func (p *Provider) leave(ctx context.Context, r run) error {
	if r.Veth == "" {
		return nil
	}
	release, err := host.Lock(networkLock)
	if err != nil {
		return err
	}
	defer release()
	nl, err := network.Dial()
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := nl.Remove(r.Veth); err != nil {
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
	return p.way().Close(ctx)
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

// way is the private networks' way out.
func (p *Provider) way() network.Way {
	return network.Way{Program: p.machine.iptables, Pool: p.subnet, Comment: ruleComment}
}
