package ssh

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vendetta-dev/vendetta/transport"
)

// maxHops bounds a chain of jump hosts; a config in which hosts jump through
// each other ends here.
const maxHops = 8

// hop is one host on the way, the node last.
type hop struct {
	// alias is what the user wrote.
	alias string
	host  string
	port  int
	user  string
	// keyName is the name under which known_hosts lists it, with its port.
	keyName string
	// given files come from the caller, configured ones from the config files.
	given      []string
	configured []string
	// onlyConfigured: of an ssh-agent's keys only those of identity files count.
	onlyConfigured bool
	jump           bool
	ignored        []string
}

func (h *hop) addr() string { return net.JoinHostPort(h.host, strconv.Itoa(h.port)) }

// String is the hop in messages: user@host, and the port where it is not 22.
func (h *hop) String() string {
	if h.port == 22 {
		return h.user + "@" + h.host
	}
	return h.user + "@" + h.addr()
}

// target is a host as somebody wrote it.
type target struct {
	host string
	user string
	port int
}

// parseJump reads [user@]host[:port] and ssh://[user@]host[:port].
func parseJump(s string) (target, error) {
	var t target
	rest := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "ssh://"), "/")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		t.user, rest = rest[:i], rest[i+1:]
		if t.user == "" {
			return t, fmt.Errorf("jump host %q: empty user", s)
		}
	}
	switch {
	case strings.HasPrefix(rest, "["):
		host, port, ok := strings.Cut(rest[1:], "]")
		if !ok || port != "" && port[0] != ':' {
			return t, fmt.Errorf("jump host %q: bracket is not closed", s)
		}
		t.host, rest = host, strings.TrimPrefix(port, ":")
	case strings.Count(rest, ":") == 1:
		t.host, rest, _ = strings.Cut(rest, ":")
		if rest == "" {
			return t, fmt.Errorf("jump host %q: empty port", s)
		}
	default:
		// Several colons are an IPv6 address.
		t.host, rest = rest, ""
	}
	if rest != "" {
		port, err := parsePort(rest)
		if err != nil {
			return t, fmt.Errorf("jump host %q: %w", s, err)
		}
		t.port = port
	}
	if err := checkHost(t.host); err != nil {
		return t, fmt.Errorf("jump host %q: %w", s, err)
	}
	return t, nil
}

// route finds the hosts on the way to the node.
func (o Options) route() ([]*hop, error) {
	var jumps []target
	for _, s := range o.Jump {
		t, err := parseJump(s)
		if err != nil {
			return nil, err
		}
		jumps = append(jumps, t)
	}
	hops, err := o.hops(target{host: o.Host, user: o.User, port: o.Port}, jumps, len(o.Jump) > 0, 0)
	if err != nil {
		return nil, err
	}
	for _, h := range hops[:len(hops)-1] {
		h.jump = true
	}
	return hops, nil
}

// hops resolves t and what lies before it. Only the first jump host of a list
// may have jump hosts of its own: the others are reached from the one before.
func (o Options) hops(t target, jumps []target, explicit bool, depth int) ([]*hop, error) {
	if depth >= maxHops {
		return nil, fmt.Errorf("connect to %s: more than %d jump hosts; look for a circle of ProxyJump in %s", o.Host, maxHops, strings.Join(o.ConfigFiles, ", "))
	}
	s, err := readConfig(o.ConfigFiles, o.Home, o.LocalUser, t.host, t.user)
	if err != nil {
		return nil, err
	}
	if !explicit {
		if jumps, err = configuredJumps(s, t.host); err != nil {
			return nil, err
		}
	}
	h, err := o.hop(t, s)
	if err != nil {
		return nil, err
	}
	if len(jumps) == 0 {
		return []*hop{h}, nil
	}
	var way []*hop
	for i, j := range jumps {
		// The first is resolved with its own ProxyJump, the rest without.
		more, err := o.hops(j, nil, i > 0, depth+1+i)
		if err != nil {
			return nil, err
		}
		way = append(way, more...)
	}
	return append(way, h), nil
}

func configuredJumps(s settings, host string) ([]target, error) {
	if s.proxyCommand != "" && !strings.EqualFold(s.proxyCommand, "none") {
		return nil, &transport.Error{
			Kind:    transport.ErrUnreachable,
			Message: fmt.Sprintf("connect to %s: %s asks for a ProxyCommand, which vendetta does not run", host, s.proxyCommandAt),
			Next:    "use ProxyJump in the ssh config, or pass --jump",
		}
	}
	if s.proxyJump == "" || strings.EqualFold(s.proxyJump, "none") {
		return nil, nil
	}
	var jumps []target
	for j := range strings.SplitSeq(s.proxyJump, ",") {
		t, err := parseJump(j)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: ProxyJump: %w", host, err)
		}
		jumps = append(jumps, t)
	}
	return jumps, nil
}

// hop puts together what was asked for and what the config says.
func (o Options) hop(t target, s settings) (*hop, error) {
	h := &hop{
		alias: t.host, host: t.host, user: t.user, port: t.port, ignored: s.ignored,
		onlyConfigured: strings.EqualFold(s.identitiesOnly, "yes"),
	}
	if s.hostName != "" {
		h.host = expand(s.hostName, map[byte]string{'h': t.host})
	}
	if err := checkHost(h.host); err != nil {
		return nil, err
	}
	for _, user := range []string{s.user, o.LocalUser} {
		if h.user == "" {
			h.user = user
		}
	}
	if h.user == "" {
		return nil, fmt.Errorf("connect to %s: no user given; write it as user@%s", t.host, t.host)
	}
	for _, port := range []int{s.port, 22} {
		if h.port == 0 {
			h.port = port
		}
	}
	h.keyName = h.addr()
	if s.hostKeyAlias != "" {
		h.keyName = net.JoinHostPort(s.hostKeyAlias, "22")
	}
	o.identities(h, s)
	return h, nil
}

// identities are the files of keys to try on h.
func (o Options) identities(h *hop, s settings) {
	if o.Identity != "" {
		h.given = append(h.given, o.Identity)
	}
	if o.Login != nil {
		h.given = append(h.given, o.Login.Identities...)
	}
	tokens := map[byte]string{'h': h.host, 'n': h.alias, 'r': h.user, 'u': o.LocalUser, 'd': o.Home, 'p': strconv.Itoa(h.port)}
	for _, file := range s.identityFiles {
		if strings.EqualFold(file, "none") {
			continue
		}
		h.configured = append(h.configured, expand(expandHome(file, o.Home), tokens))
	}
	if len(s.identityFiles) > 0 || o.Login == nil || o.Home == "" {
		return
	}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		file := filepath.Join(o.Home, ".ssh", name)
		if _, err := os.Stat(file); err == nil {
			h.configured = append(h.configured, file)
		}
	}
}
