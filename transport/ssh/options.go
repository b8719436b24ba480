package ssh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// Options say where a node is and what may be used to log in.
type Options struct {
	// Name is the node's name, for the next steps that errors name; "" is NAME.
	Name string
	// Host is an address, a host name or a Host of the config files.
	Host string
	// User, "" for what the config files say, else LocalUser.
	User string
	// Port, 0 for what the config files say, else 22.
	Port int
	// Jump hosts in order, each [user@]host[:port]; none means what ProxyJump says.
	Jump []string
	// Identity is a private key's file that is tried right after Key.
	Identity string

	// Socket is the node agent's, on the node. Dial needs it.
	Socket string
	// Program is the agent's program on the node, for the way over stdio; "" if
	// there is none yet.
	Program string

	// HostKeys are the accepted fingerprints, SHA256:..., of the node and its jump hosts.
	// On one way each is good for one host.
	HostKeys []string
	// KnownHosts are known_hosts files; absent ones are passed over.
	KnownHosts []string
	// ConfigFiles are ssh_config files; in the first one a value is found in, it
	// counts. Absent ones are passed over.
	ConfigFiles []string
	// Home is what ~ means in ConfigFiles; with it, and a Login, the usual
	// identity files are tried.
	Home string
	// LocalUser is the user who runs this program.
	LocalUser string

	// Key is the server's own, tried first.
	Key gossh.Signer
	// Login is what a caller lends for a first login, nil otherwise.
	Login *Login

	Keepalive Keepalive
	// Dial makes TCP connections; nil is a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger, nil for none.
	Logger *slog.Logger
}

// Login is what a caller lends for a first login. It is never stored.
type Login struct {
	// AgentSocket is the socket of the caller's ssh-agent.
	AgentSocket string
	// Identities are files of private keys.
	Identities []string
	// Password is the user's on the node. Jump hosts are not offered it: they
	// would learn it, and have no use for it.
	Password string
}

// Keepalive finds dead connections. The zero value means the defaults, which
// find one within 13 seconds.
type Keepalive struct {
	// Interval of silence after which the other side is asked for an answer: 5 s.
	Interval time.Duration
	// Limit of silence after which the connection is dead: 10 s.
	Limit time.Duration
}

const (
	keepaliveInterval = 5 * time.Second
	keepaliveLimit    = 10 * time.Second
)

// connectTimeout bounds one attempt to connect by TCP. Lost SYNs are sent again
// after 1, 3, 7 seconds: a new attempt every four seconds finds a repaired link
// sooner than waiting for the third.
const connectTimeout = 4 * time.Second

// handshakeTimeout bounds key exchange and login on one host; sshd may look the
// client's name up first, and punishes wrong keys with delays.
const handshakeTimeout = 15 * time.Second

// loginTimeout takes its place when a person may have to touch a key.
const loginTimeout = 60 * time.Second

func (o Options) withDefaults() (Options, error) {
	if err := checkHost(o.Host); err != nil {
		return o, err
	}
	if o.Keepalive.Interval <= 0 {
		o.Keepalive.Interval = keepaliveInterval
	}
	if o.Keepalive.Limit <= 0 {
		o.Keepalive.Limit = keepaliveLimit
	}
	if o.Dial == nil {
		var d net.Dialer
		o.Dial = d.DialContext
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Name == "" {
		o.Name = "NAME"
	}
	return o, nil
}

// checkHost refuses what cannot be a host: names reach messages and files.
func checkHost(host string) error {
	if host == "" {
		return errors.New("connect over ssh: no host given")
	}
	if strings.HasPrefix(host, "-") || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == '\\' }) {
		return fmt.Errorf("connect over ssh: %q is not a host", host)
	}
	return nil
}

// address is how a user would write the node.
func (o Options) address() string {
	if o.User == "" {
		return o.Host
	}
	return o.User + "@" + o.Host
}
