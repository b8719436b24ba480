//go:build linux

package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Netlink speaks rtnetlink(7): a handful of requests, less than a library's weight in a
// program whose start is on the way of every workspace.
type Netlink struct {
	fd  int
	seq uint32
}

// Dial opens a socket to the kernel. Close it.
func Dial() (*Netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Netlink{fd: fd}, nil
}

// Close ends it.
func (n *Netlink) Close() { _ = unix.Close(n.fd) }

var order = binary.NativeEndian

// attribute encodes a struct rtattr, padded to four bytes.
func attribute(kind uint16, data []byte) []byte {
	size := 4 + len(data)
	b := make([]byte, (size+3)&^3)
	order.PutUint16(b, uint16(size))
	order.PutUint16(b[2:], kind)
	copy(b[4:], data)
	return b
}

func word(v uint32) []byte { return order.AppendUint32(nil, v) }

func concat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// request sends one message and waits for its acknowledgement.
func (n *Netlink) request(kind, flags uint16, body ...[]byte) error {
	n.seq++
	payload := concat(body...)
	head := make([]byte, unix.SizeofNlMsghdr)
	order.PutUint32(head, uint32(len(head)+len(payload)))
	order.PutUint16(head[4:], kind)
	order.PutUint16(head[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	order.PutUint32(head[8:], n.seq)
	if err := unix.Sendto(n.fd, concat(head, payload), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 8192)
	for {
		size, _, err := unix.Recvfrom(n.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if size < unix.SizeofNlMsghdr+4 || order.Uint32(buf[8:]) != n.seq || order.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			continue
		}
		if code := int32(order.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
}

// linkMessage is a struct ifinfomsg of a link that goes by its name.
func linkMessage(flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	order.PutUint32(b[8:], flags)
	order.PutUint32(b[12:], change)
	return b
}

// See linux/veth.h and linux/if_link.h.
const (
	vethPeer         = 1
	infoKind         = 1
	infoData         = 2
	netNSPID         = 19
	createFlags      = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	nulByte     byte = 0
)

// Veth makes a pair: name here and inside in the network namespace of pid.
func (n *Netlink) Veth(name, inside string, pid int) error {
	info := attribute(unix.IFLA_LINKINFO, concat(
		attribute(infoKind, []byte("veth")),
		attribute(infoData, attribute(vethPeer, concat(
			linkMessage(0, 0),
			attribute(unix.IFLA_IFNAME, append([]byte(inside), nulByte)),
			attribute(netNSPID, word(uint32(pid))),
		))),
	))
	err := n.request(unix.RTM_NEWLINK, createFlags, linkMessage(0, 0),
		attribute(unix.IFLA_IFNAME, append([]byte(name), nulByte)), info)
	if err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	return nil
}

// Remove deletes an interface; an absent one is success.
func (n *Netlink) Remove(name string) error {
	err := n.request(unix.RTM_DELLINK, 0, linkMessage(0, 0), attribute(unix.IFLA_IFNAME, append([]byte(name), nulByte)))
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// Up brings an interface up.
func (n *Netlink) Up(name string) error {
	err := n.request(unix.RTM_NEWLINK, 0, linkMessage(unix.IFF_UP, unix.IFF_UP),
		attribute(unix.IFLA_IFNAME, append([]byte(name), nulByte)))
	if err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// Address gives an interface a prefix like 10.0.0.2/30.
func (n *Netlink) Address(name, prefix string) error {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0], body[1] = unix.AF_INET, byte(p.Bits())
	order.PutUint32(body[4:], uint32(iface.Index))
	ip := p.Addr().As4()
	err = n.request(unix.RTM_NEWADDR, createFlags, body,
		attribute(unix.IFA_LOCAL, ip[:]), attribute(unix.IFA_ADDRESS, ip[:]))
	if err != nil {
		return fmt.Errorf("give %s to %s: %w", prefix, name, err)
	}
	return nil
}

// DefaultRoute sends through gateway what has no other way.
func (n *Netlink) DefaultRoute(gateway string) error {
	addr, err := netip.ParseAddr(gateway)
	if err != nil {
		return err
	}
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = unix.AF_INET
	body[4], body[5] = unix.RT_TABLE_MAIN, unix.RTPROT_BOOT
	body[6], body[7] = unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	ip := addr.As4()
	if err := n.request(unix.RTM_NEWROUTE, createFlags, body, attribute(unix.RTA_GATEWAY, ip[:])); err != nil {
		return fmt.Errorf("route through %s: %w", gateway, err)
	}
	return nil
}
