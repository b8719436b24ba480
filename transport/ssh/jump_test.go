package ssh_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
)

func TestJump(t *testing.T) {
	t.Parallel()
	outer := startNode(t)
	inner := startNode(t)
	shared := authorized(outer.key)
	n := startNodeWith(t, testbed.SSHDOptions{AuthorizedKeys: shared})
	jumps := []string{fmt.Sprintf("%s@%s", outer.User, outer.Addr), fmt.Sprintf("%s@%s", inner.User, inner.Addr)}
	o := n.options()
	o.Key = outer.key
	o.Login = &ssh.Login{Identities: []string{inner.keyFile}}
	o.Jump, o.Socket, o.Name = jumps, echoAgent(t), "far"
	o.HostKeys = []string{outer.Fingerprint, inner.Fingerprint, n.Fingerprint}

	tr := connect(t, o)
	mustEcho(t, mustDial(t, tr))
	hosts, err := tr.Jumps(t.Context())
	if err != nil || len(hosts) != 2 || hosts[0].Host != jumps[0] || !hosts[0].OwnKey || hosts[1].OwnKey {
		t.Fatalf("jumps = %+v, %v", hosts, err)
	}
	for _, h := range hosts {
		if out, err := h.Run(t.Context(), "echo on a jump host", nil); err != nil || string(out) != "on a jump host\n" {
			t.Errorf("run = %q, %v", out, err)
		}
	}

	// The way breaks in the middle, and is made anew.
	inner.Disconnect()
	mustEcho(t, mustDial(t, tr))

	// From the config instead.
	o.Jump = nil
	o.ConfigFiles = []string{write(t,
		"Host node", "HostName "+n.Host, fmt.Sprintf("Port %d", n.Port), "ProxyJump "+strings.Join(jumps, ","),
	)}
	o.Host, o.Port = "node", 0
	mustEcho(t, mustDial(t, connect(t, o)))

	// Each host's key is verified.
	for i, wrong := range []*node{outer, inner, n} {
		p := o
		p.HostKeys = nil
		for _, h := range []*node{outer, inner, n} {
			if h != wrong {
				p.HostKeys = append(p.HostKeys, h.Fingerprint)
			}
		}
		_, err := run(t, p)
		wantError(t, err, transport.ErrHostKey, wrong.Fingerprint, "vendetta node add far")
		seen, err := ssh.Probe(t.Context(), p)
		if err != nil || len(seen) != i+1 || seen[i].Known || seen[i].Fingerprint != wrong.Fingerprint || seen[i].Jump != (i < 2) {
			t.Errorf("probe = %+v, %v", seen, err)
		}
	}
	other, _ := otherKey(t)
	p := o
	p.KnownHosts = []string{write(t, keyLine(knownhosts.Normalize(inner.Addr), other))}
	seen, err := ssh.Probe(t.Context(), p)
	wantError(t, err, transport.ErrHostKey, "has changed", inner.Addr)
	if len(seen) != 2 || !seen[0].Known {
		t.Errorf("probe = %+v", seen)
	}

	// A jump host refuses the login.
	p = o
	p.Login = nil
	_, err = run(t, p)
	wantError(t, err, transport.ErrLogin, inner.Addr)
	_, err = ssh.Probe(t.Context(), p)
	wantError(t, err, transport.ErrLogin, inner.Addr)

	// The node cannot be reached from the jump host.
	p = o
	p.Host, p.Port, p.Jump = "127.0.0.1", 1, jumps
	_, err = run(t, p)
	wantError(t, err, transport.ErrUnreachable, "127.0.0.1:1 from "+jumps[1], "could not connect")

	_ = tr.Close()
	if _, err := tr.Jumps(t.Context()); err == nil {
		t.Error("a closed transport has jump hosts")
	}
	if _, err := hosts[0].Run(t.Context(), "true", nil); err == nil {
		t.Error("a closed transport runs commands")
	}
}

// A jump host answers with its own key for the host behind it: the key may have
// been accepted, but not for that one.
func TestJumpSameKey(t *testing.T) {
	t.Parallel()
	jump := startNode(t)
	dir := t.TempDir()
	for _, name := range []string{"host_ed25519", "host_ed25519.pub"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(read(t, filepath.Join(jump.dir, name))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rsa := hostKey(t, dir, "rsa")
	n := startNodeWith(t, testbed.SSHDOptions{Dir: dir, AuthorizedKeys: authorized(jump.key)})
	middle := startNodeWith(t, testbed.SSHDOptions{AuthorizedKeys: authorized(jump.key)})
	if n.Fingerprint != jump.Fingerprint {
		t.Fatal("the hosts have different keys")
	}
	first, second := fmt.Sprintf("%s@%s", jump.User, jump.Addr), fmt.Sprintf("%s@%s", middle.User, middle.Addr)
	jumpKnown := keyLine(knownhosts.Normalize(jump.Addr), jump.HostKey)
	nodeKnown := keyLine(knownhosts.Normalize(n.Addr), jump.HostKey)
	for _, c := range []struct {
		name     string
		jumps    []string
		known    []string
		accepted []string
		works    bool
	}{
		{name: "accepted", jumps: []string{first}, accepted: []string{jump.Fingerprint}},
		{name: "another key of the node accepted", jumps: []string{first}, accepted: []string{jump.Fingerprint, rsa.fingerprint}},
		{name: "not from the host before", jumps: []string{first, second}, accepted: []string{jump.Fingerprint, middle.Fingerprint}},
		{name: "jump host known, accepted", jumps: []string{first}, known: []string{jumpKnown}, accepted: []string{jump.Fingerprint}},
		{name: "jump host known", jumps: []string{first}, known: []string{jumpKnown}},
		{name: "node known, jump host accepted", jumps: []string{first}, known: []string{nodeKnown}, accepted: []string{jump.Fingerprint}, works: true},
		{name: "both known", jumps: []string{first}, known: []string{jumpKnown, nodeKnown}, works: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := n.options()
			o.Key, o.Jump, o.HostKeys, o.KnownHosts = jump.key, c.jumps, c.accepted, []string{write(t, c.known...)}
			seen, probed := ssh.Probe(t.Context(), o)
			if len(seen) != len(c.jumps)+1 {
				t.Fatalf("probe = %+v, %v", seen, probed)
			}
			last := seen[len(seen)-1]
			if !seen[0].Known || last.Known != c.works || last.Fingerprint != jump.Fingerprint {
				t.Errorf("probe = %+v, %v", seen, probed)
			}
			if c.works {
				if probed != nil {
					t.Error(probed)
				}
				mustRun(t, o)
				return
			}
			_, err := run(t, o)
			for _, err := range []error{err, probed} {
				wantError(t, err, transport.ErrHostKey, "connect to "+n.User+"@"+n.Addr, "the same key as jump host "+first)
			}
		})
	}

	// A key of the node's own helps.
	config := filepath.Join(dir, "sshd_config")
	n.Stop()
	if err := os.WriteFile(config, []byte("HostKey "+rsa.file+"\n"+read(t, config)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := n.options()
	o.Key, o.Jump, o.HostKeys = jump.key, []string{first}, []string{jump.Fingerprint, rsa.fingerprint}
	mustRun(t, o)
}

func TestJumpForbidden(t *testing.T) {
	t.Parallel()
	jump := startNode(t, "AllowTcpForwarding no")
	o := jump.options()
	o.Jump = []string{fmt.Sprintf("%s@%s", jump.User, jump.Addr)}
	_, err := run(t, o)
	wantError(t, err, transport.ErrUnreachable, "the jump host forbids TCP forwarding")
}

// The link of a machine is cut in a network between two namespaces, and
// repaired: the promise of 15 seconds, and of 5 after the repair.
func TestCutLink(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ctx := t.Context()
	network := testbed.NewNetwork()
	t.Cleanup(func() {
		if err := network.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	client, err := network.Add(ctx, "client")
	if err != nil {
		t.Fatal(err)
	}
	host, err := network.Add(ctx, "node")
	if err != nil {
		t.Fatal(err)
	}
	l, err := network.Connect(ctx, client, "192.0.2.1/24", host, "192.0.2.7/24")
	if err != nil {
		t.Fatal(err)
	}
	n := startNodeWith(t, testbed.SSHDOptions{Namespace: host, Address: "192.0.2.7", Port: 22})
	if n.Addr != "192.0.2.7:22" {
		t.Fatal(n.Addr)
	}
	o := n.options()
	o.Dial, o.Socket, o.Keepalive = client.Dial, echoAgent(t), quick
	tr := connect(t, o)
	c := mustDial(t, tr)
	mustEcho(t, c)
	if err := l.Cut(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("bytes from nowhere")
	}
	// An attempt into the void, then the repair in the middle of the next.
	_, err = tr.Dial(ctx)
	wantError(t, err, transport.ErrUnreachable, "no answer within")
	if err := l.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	mustEcho(t, mustDial(t, tr))
}
