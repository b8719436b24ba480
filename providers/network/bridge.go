//go:build linux

package network

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// See linux/if_link.h.
const (
	brportIsolated = 33
	nestedFlag     = 1 << 15
)

func nameAttribute(name string) []byte {
	return attribute(unix.IFLA_IFNAME, append([]byte(name), nulByte))
}

// Bridge makes a bridge and says whether it did; one of that name that is there
// stays.
func (n *Netlink) Bridge(name string) (made bool, err error) {
	err = n.request(unix.RTM_NEWLINK, createFlags, linkMessage(0, 0), nameAttribute(name),
		attribute(unix.IFLA_LINKINFO, attribute(infoKind, []byte("bridge"))))
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("make bridge %s: %w", name, err)
	}
	return true, nil
}

// Port makes a pair of interfaces here: name, a port of bridge that exchanges
// nothing with other such ports, and peer. alias is kept with name for Links to
// tell.
func (n *Netlink) Port(name, peer, bridge, alias string) error {
	at, err := net.InterfaceByName(bridge)
	if err != nil {
		return fmt.Errorf("join bridge %s: %w", bridge, err)
	}
	err = n.request(unix.RTM_NEWLINK, createFlags, linkMessage(0, 0), nameAttribute(name),
		attribute(unix.IFLA_MASTER, word(uint32(at.Index))),
		attribute(unix.IFLA_LINKINFO, concat(
			attribute(infoKind, []byte("veth")),
			attribute(infoData, attribute(vethPeer, concat(linkMessage(0, 0), nameAttribute(peer)))),
		)))
	if err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	// It carries nothing before it is up, and so nothing before it is isolated.
	if err := n.isolate(name); err != nil {
		return errors.Join(err, n.Remove(name))
	}
	err = n.request(unix.RTM_NEWLINK, 0, linkMessage(unix.IFF_UP, unix.IFF_UP), nameAttribute(name),
		attribute(unix.IFLA_IFALIAS, []byte(alias)))
	if err != nil {
		return errors.Join(fmt.Errorf("bring up %s: %w", name, err), n.Remove(name))
	}
	return nil
}

func (n *Netlink) isolate(name string) error {
	at, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	head := linkMessage(0, 0)
	head[0] = unix.AF_BRIDGE
	order.PutUint32(head[4:], uint32(at.Index))
	err = n.request(unix.RTM_SETLINK, 0, head,
		attribute(unix.IFLA_PROTINFO|nestedFlag, attribute(brportIsolated, []byte{1})))
	if err != nil {
		return fmt.Errorf("isolate %s: %w", name, err)
	}
	return nil
}

// Links returns the names of the machine's interfaces with their aliases.
func Links() (map[string]string, error) {
	raw, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := map[string]string{}
	for i := range messages {
		if messages[i].Header.Type != unix.RTM_NEWLINK {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&messages[i])
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		var name, alias string
		for _, a := range attributes {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				name = unix.ByteSliceToString(a.Value)
			case unix.IFLA_IFALIAS:
				alias = unix.ByteSliceToString(a.Value)
			}
		}
		links[name] = alias
	}
	return links, nil
}
