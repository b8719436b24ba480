//go:build linux

package network

import (
	"net"
	"net/netip"
	"os"
	"strings"
)

// Addresses are those of the machine's interfaces.
func Addresses() ([]netip.Prefix, error) {
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

// Where the machine's name servers are written down. A resolver on the machine's
// loopback is out of reach from another network namespace; systemd keeps the real
// ones in the second file.
const (
	ResolvConf = "/etc/resolv.conf"
	Upstreams  = "/run/systemd/resolve/resolv.conf"
)

// Resolver is the text of the first of files that has a name server which another
// network namespace reaches.
func Resolver(files ...string) string {
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
