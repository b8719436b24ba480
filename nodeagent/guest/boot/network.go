//go:build linux

package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// netlink speaks rtnetlink(7) with the kernel, one request at a time.
type netlink struct {
	fd  int
	seq uint32
}

func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { _ = unix.Close(n.fd) }

// request sends one message and waits for its acknowledgement.
func (n *netlink) request(kind uint16, flags uint16, body []byte) error {
	n.seq++
	message := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(message[0:], uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(message[4:], kind)
	binary.NativeEndian.PutUint16(message[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(message[8:], n.seq)
	if err := unix.Sendto(n.fd, append(message, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 8192)
	for {
		got, _, err := unix.Recvfrom(n.fd, answer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if got < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint32(answer[8:]) != n.seq {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
}

// attribute is one rtattr with its padding.
func attribute(kind uint16, value []byte) []byte {
	size := unix.SizeofRtAttr + len(value)
	b := make([]byte, (size+3)&^3)
	binary.NativeEndian.PutUint16(b[0:], uint16(size))
	binary.NativeEndian.PutUint16(b[2:], kind)
	copy(b[unix.SizeofRtAttr:], value)
	return b
}

// up switches an interface on.
func (n *netlink) up(index int) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	return n.request(unix.RTM_NEWLINK, 0, body)
}

// address gives an interface an IPv4 address.
func (n *netlink) address(index int, p netip.Prefix) error {
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0], body[1] = unix.AF_INET, byte(p.Bits())
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	ip := p.Addr().AsSlice()
	body = append(body, attribute(unix.IFA_LOCAL, ip)...)
	body = append(body, attribute(unix.IFA_ADDRESS, ip)...)
	err := n.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
	return err
}

// route sends everything else to a gateway.
func (n *netlink) route(index int, gateway netip.Addr) error {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = unix.AF_INET
	body[4] = unix.RT_TABLE_MAIN
	body[5] = unix.RTPROT_BOOT
	body[6] = unix.RT_SCOPE_UNIVERSE
	body[7] = unix.RTN_UNICAST
	body = append(body, attribute(unix.RTA_GATEWAY, gateway.AsSlice())...)
	oif := make([]byte, 4)
	binary.NativeEndian.PutUint32(oif, uint32(index))
	body = append(body, attribute(unix.RTA_OIF, oif)...)
	return n.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// setUpNetwork brings up loopback and, where there is an address, the one
// interface beside it.
func setUpNetwork(c Config) error {
	n, err := openNetlink()
	if err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	defer n.close()
	if err := n.up(1); err != nil { // lo is always the first
		return fmt.Errorf("set up loopback: %w", err)
	}
	if c.Address == "" {
		return nil
	}
	p, err := netip.ParsePrefix(c.Address)
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(c.Gateway)
	if err != nil {
		return err
	}
	card, err := card()
	if err != nil {
		return err
	}
	if err := errors.Join(n.up(card), n.address(card, p), n.route(card, gateway)); err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	return nil
}

// card is the index of the first interface that is not loopback.
func card() (int, error) {
	all, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) > 0 {
			return i.Index, nil
		}
	}
	return 0, errors.New("set up the network: the machine has no network card")
}
