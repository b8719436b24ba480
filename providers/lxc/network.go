//go:build linux

package lxc

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/network"
)

const (
	guestInterface = "eth0"
	// ownBridge is all lxc providers' of the machine.
	ownBridge = "vdlbr0"
	// vethPrefix tells our links from others', whichever server's they are;
	// peerPrefix is of their other ends, until a container has them.
	vethPrefix = "vdl-"
	peerPrefix = "vdp-"
	// networkLock serialises all lxc providers of the machine, since links,
	// addresses and rules are the machine's.
	networkLock = "/run/vendetta-lxc.lock"
	ruleComment = "vendetta-lxc"
	// wayEvery is how often it is looked at whether the rules still stand.
	wayEvery = 30 * time.Second
)

// vethName is derived from the workspace alone and fits IFNAMSIZ.
func vethName(ws string) string {
	sum := sha256.Sum256([]byte(ws))
	return vethPrefix + hex.EncodeToString(sum[:5])
}

func peerName(veth string) string { return peerPrefix + strings.TrimPrefix(veth, vethPrefix) }

func (p *Provider) bridgeName() string {
	if p.bridge != "" {
		return p.bridge
	}
	return ownBridge
}

// way is the private networks' way out.
func (p *Provider) way() network.Way {
	return network.Way{Program: p.machine.iptables, Pool: p.subnet, Comment: ruleComment}
}

// joint is what a container's joining of a network made.
type joint struct {
	// resolver is the text of resolv.conf.
	resolver string
	// rules: there have to be some; fresh, when the bridge was made just now.
	rules, fresh bool
}

// join makes the link of a private network and notes it in r.
func (p *Provider) join(ws string, kind providers.Network, r *run) (joint, error) {
	none := joint{}
	if kind == providers.NetworkNone {
		return joint{resolver: "# no name server: this workspace has no network\n"}, nil
	}
	if p.bridge == "" && p.machine.iptables == "" {
		return none, &providers.Error{
			Kind:    providers.ErrUnusable,
			Message: fmt.Sprintf("start lxc workspace %s: a private network needs iptables, which is not installed", ws),
			Next:    "install it on the node: sudo apt-get install iptables; or create the workspace with --network none",
		}
	}
	release, err := host.Lock(networkLock)
	if err != nil {
		return none, err
	}
	defer release()
	nl, err := network.Dial()
	if err != nil {
		return none, err
	}
	defer nl.Close()
	veth := vethName(ws)
	// The dying namespace of a container that was killed may still hold the name.
	if err := nl.Remove(veth); err != nil {
		return none, err
	}
	fresh, err := p.raise(nl)
	if err != nil {
		return none, err
	}
	links, err := network.Links()
	if err != nil {
		return none, err
	}
	near, err := p.neighbours()
	if err != nil {
		return none, err
	}
	address, err := near.free(ws, links)
	if err != nil {
		return none, err
	}
	r.Veth, r.Address, r.Gateway = veth, netip.PrefixFrom(address, near.bits).String(), near.gateway.String()
	if err := nl.Port(veth, peerName(veth), p.bridgeName(), alias(address)); err != nil {
		return none, err
	}
	return joint{network.Resolver(network.ResolvConf, network.Upstreams), p.bridge == "", fresh}, nil
}

// raise makes the provider's own bridge where it is missing, and says whether it
// did. The caller holds the lock.
func (p *Provider) raise(nl *network.Netlink) (fresh bool, err error) {
	if p.bridge != "" {
		return false, nil
	}
	fresh, err = nl.Bridge(ownBridge)
	if err != nil || !fresh {
		return false, err
	}
	// Private networks are IPv4's alone.
	quiet := filepath.Join(p.machine.sysctl, "net/ipv6/conf", ownBridge, "disable_ipv6")
	err = os.WriteFile(quiet, []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = nl.Address(ownBridge, netip.PrefixFrom(p.subnet.Addr().Next(), p.subnet.Bits()).String())
	}
	if err == nil {
		err = nl.Up(ownBridge)
	}
	if err != nil {
		return false, errors.Join(err, nl.Remove(ownBridge))
	}
	return true, nil
}

// lookAfter sees to the rules: when the bridge is new, and now and then. It takes
// as long as a container's start, so it is done beside that; the link that is there
// already keeps others from taking the rules away.
func (p *Provider) lookAfter(ctx context.Context, j joint) error {
	if !j.rules {
		return nil
	}
	p.wayMu.Lock()
	defer p.wayMu.Unlock()
	now := p.wayNow()
	if !j.fresh && now.Sub(p.wayAt) <= wayEvery {
		return nil
	}
	release, err := host.Lock(networkLock)
	if err != nil {
		return err
	}
	defer release()
	open := p.way().Open
	if j.fresh {
		open = p.way().Begin
	}
	switched, err := open(ctx)
	if err != nil {
		return err
	}
	if switched {
		p.log.Info("switched on IPv4 forwarding for private networks")
	}
	p.wayAt = now
	return nil
}

// leave removes the link of a run and, with the last link of all providers', the
// bridge and the rules.
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
	if p.bridge != "" {
		return nil
	}
	links, err := network.Links()
	if err != nil {
		return err
	}
	for name := range links {
		if strings.HasPrefix(name, vethPrefix) {
			return nil
		}
	}
	if p.machine.iptables != "" {
		if err := p.way().Close(ctx); err != nil {
			return err
		}
	}
	return nl.Remove(ownBridge)
}

// neighbours is what there is to know of a bridge's network.
type neighbours struct {
	// pool is where addresses come from, bits the size of the network, which may
	// be larger, gateway the bridge's own address.
	pool    netip.Prefix
	bits    int
	gateway netip.Addr
}

func (p *Provider) neighbours() (neighbours, error) {
	if p.bridge == "" {
		return neighbours{p.subnet, p.subnet.Bits(), p.subnet.Addr().Next()}, nil
	}
	missing := func(what, next string) error {
		return &providers.Error{
			Kind:    providers.ErrUnusable,
			Message: fmt.Sprintf("join lxc workspaces to the bridge %s: %s", p.bridge, what),
			Next:    next,
		}
	}
	at, err := net.InterfaceByName(p.bridge)
	if err != nil {
		return neighbours{}, missing("there is no such interface on the node",
			"make it there: sudo ip link add "+p.bridge+" type bridge && sudo ip link set "+p.bridge+" up")
	}
	addresses, err := at.Addrs()
	if err != nil {
		return neighbours{}, err
	}
	for _, a := range addresses {
		own, err := netip.ParsePrefix(a.String())
		if err != nil || !own.Addr().Is4() || p.subnet.IsValid() && !own.Contains(p.subnet.Addr()) {
			continue
		}
		n := neighbours{own.Masked(), own.Bits(), own.Addr()}
		if p.subnet.IsValid() {
			n.pool = p.subnet
		}
		return n, nil
	}
	return neighbours{}, missing("it has no IPv4 address that instances could be neighbours of",
		"give it one: sudo ip addr add 10.233.0.1/16 dev "+p.bridge)
}

func alias(a netip.Addr) string { return ruleComment + " " + a.String() }

// free finds an address in the pool that no link of ours goes by: the kernel's own
// state is the register, which neither a crash nor a reboot can make wrong. It
// begins where the workspace's id hashes to, so that an address is seldom another
// one's soon after.
func (n neighbours) free(ws string, links map[string]string) (netip.Addr, error) {
	used := map[string]bool{alias(n.gateway): true}
	for name, text := range links {
		if strings.HasPrefix(name, vethPrefix) {
			used[text] = true
		}
	}
	first := n.pool.Masked().Addr().As4()
	base := binary.BigEndian.Uint32(first[:])
	size := uint32(1) << (32 - n.pool.Bits())
	sum := sha256.Sum256([]byte(ws))
	start := binary.BigEndian.Uint32(sum[:])
	for i := range size {
		offset := (start + i) % size
		if offset == 0 || offset == size-1 { // the network's own, and all's
			continue
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+offset)
		if a := netip.AddrFrom4(b); !used[alias(a)] {
			return a, nil
		}
	}
	return netip.Addr{}, &providers.Error{
		Kind:    providers.ErrExhausted,
		Message: fmt.Sprintf("start lxc workspace %s: all addresses of %s are in use", ws, n.pool),
		Next:    "stop other workspaces on the node",
	}
}
