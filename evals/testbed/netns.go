//go:build linux

package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Network is a set of network namespaces with links between them. It needs root.
type Network struct {
	id         string
	namespaces []*Namespace
	links      int
}

// Namespace is a network namespace. A nil *Namespace is the one that the caller
// is in.
type Namespace struct {
	// Name is the one that `ip netns` knows.
	Name string
}

// Link joins two namespaces.
type Link struct {
	a, b *Namespace
	// AddressA and AddressB are the addresses of its ends.
	AddressA, AddressB string
	interfaceA         string
	interfaceB         string
}

// NewNetwork returns an empty network.
func NewNetwork() *Network {
	var id [3]byte
	_, _ = rand.Read(id[:])
	return &Network{id: hex.EncodeToString(id[:])}
}

// Add makes a namespace with its loopback up.
func (n *Network) Add(ctx context.Context, name string) (*Namespace, error) {
	ns := &Namespace{Name: fmt.Sprintf("vt%s-%s", n.id, name)}
	if err := run(ctx, "ip", "netns", "add", ns.Name); err != nil {
		return nil, err
	}
	n.namespaces = append(n.namespaces, ns)
	if err := run(ctx, "ip", "-n", ns.Name, "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	return ns, nil
}

// Connect links a and b. The addresses have a prefix length: 192.0.2.1/24.
func (n *Network) Connect(ctx context.Context, a *Namespace, addressA string, b *Namespace, addressB string) (*Link, error) {
	l := &Link{
		a: a, b: b,
		interfaceA: fmt.Sprintf("v%s%da", n.id, n.links),
		interfaceB: fmt.Sprintf("v%s%db", n.id, n.links),
	}
	n.links++
	if err := run(ctx, "ip", "link", "add", l.interfaceA, "netns", a.Name, "type", "veth", "peer", "name", l.interfaceB, "netns", b.Name); err != nil {
		return nil, err
	}
	for _, end := range []struct {
		ns          *Namespace
		iface, cidr string
		address     *string
	}{{a, l.interfaceA, addressA, &l.AddressA}, {b, l.interfaceB, addressB, &l.AddressB}} {
		ip, _, err := net.ParseCIDR(end.cidr)
		if err != nil {
			return nil, fmt.Errorf("connect namespaces: %w", err)
		}
		*end.address = ip.String()
		if err := run(ctx, "ip", "-n", end.ns.Name, "address", "add", end.cidr, "dev", end.iface); err != nil {
			return nil, err
		}
		if err := run(ctx, "ip", "-n", end.ns.Name, "link", "set", end.iface, "up"); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Route sends what goes from ns to destination (192.0.2.0/24) by way of gateway.
func (ns *Namespace) Route(ctx context.Context, destination, gateway string) error {
	return run(ctx, "ip", "-n", ns.Name, "route", "add", destination, "via", gateway)
}

// Forward lets ns pass packets on between its links.
func (ns *Namespace) Forward(ctx context.Context) error {
	return run(ctx, ns.Argv("sysctl", "-qw", "net.ipv4.ip_forward=1")...)
}

// Cut loses every packet of the link, in both directions, without a word to
// either end: what arrives is dropped. (Dropped where it is sent, a packet would
// be kept and sent at once after the repair.)
func (l *Link) Cut(ctx context.Context) error { return l.rules(ctx, "-I") }

// Repair undoes Cut.
func (l *Link) Repair(ctx context.Context) error { return l.rules(ctx, "-D") }

func (l *Link) rules(ctx context.Context, verb string) error {
	var errs []error
	for _, end := range []struct {
		ns    *Namespace
		iface string
	}{{l.a, l.interfaceA}, {l.b, l.interfaceB}} {
		for _, chain := range []string{"INPUT", "FORWARD"} {
			argv := end.ns.Argv("iptables", "-w", verb, chain, "-i", end.iface, "-j", "DROP")
			errs = append(errs, run(ctx, argv...))
		}
	}
	return errors.Join(errs...)
}

// Close removes the namespaces and with them their links. Processes that run in
// them must have been ended before.
func (n *Network) Close(ctx context.Context) error {
	var errs []error
	for _, ns := range n.namespaces {
		errs = append(errs, run(ctx, "ip", "netns", "delete", ns.Name))
	}
	n.namespaces = nil
	return errors.Join(errs...)
}

// Argv is the command that runs argv inside the namespace.
func (ns *Namespace) Argv(argv ...string) []string {
	if ns == nil {
		return argv
	}
	return append([]string{"ip", "netns", "exec", ns.Name}, argv...)
}

// Do runs f on a thread inside the namespace. Sockets that f makes stay there;
// goroutines that it starts do not run there.
func (ns *Namespace) Do(f func() error) error {
	if ns == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked when it could not be brought back: it ends
		// with the goroutine.
		runtime.LockOSThread()
		back, err := ns.enter()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if back() == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (ns *Namespace) enter() (back func() error, err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("enter namespace: %w", err)
	}
	there, err := os.Open(filepath.Join("/run/netns", ns.Name))
	if err != nil {
		_ = home.Close()
		return nil, fmt.Errorf("enter namespace: %w", err)
	}
	err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
	_ = there.Close()
	if err != nil {
		_ = home.Close()
		return nil, fmt.Errorf("enter namespace %s: %w", ns.Name, err)
	}
	return func() error {
		err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		_ = home.Close()
		return err
	}, nil
}

// Dial connects from inside the namespace. The address must be numeric: looking
// up a name would take place outside.
func (ns *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := ns.Do(func() error {
		var err error
		// Without Happy Eyeballs the socket is made by this goroutine.
		d := net.Dialer{FallbackDelay: -1}
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
