package ssh_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
)

// write makes a file of lines and returns its name.
func write(t *testing.T, lines ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// run runs a command on the node, which needs everything up to the login.
func run(t *testing.T, o ssh.Options) (string, error) {
	t.Helper()
	out, err := connect(t, o).Run(t.Context(), "echo here", nil)
	return strings.TrimSpace(string(out)), err
}

func mustRun(t *testing.T, o ssh.Options) {
	t.Helper()
	if out, err := run(t, o); err != nil || out != "here" {
		t.Fatalf("run = %q, %v (%v)", out, err, cause(err))
	}
}

func cause(err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		return te.Cause
	}
	return nil
}

// wantError checks an error's kind, and that its message and next step have the words.
func wantError(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	var te *transport.Error
	if !errors.Is(err, kind) || !errors.As(err, &te) {
		t.Fatalf("got %v (%v), want a *transport.Error of the kind %q", err, cause(err), kind)
	}
	for _, w := range append(words, "") {
		if !strings.Contains(te.Message+"\n"+te.Next, w) {
			t.Errorf("%q (next: %q) does not say %q", te.Message, te.Next, w)
		}
	}
	if te.Next == "" {
		t.Errorf("%q has no next step", te.Message)
	}
}

// keyLine is a known_hosts line; hosts is a pattern or a hash.
func keyLine(hosts, key string) string {
	return hosts + " " + strings.Join(strings.Fields(key)[:2], " ")
}

func otherKey(t *testing.T) (line, fingerprint string) {
	t.Helper()
	signer, _ := newKey(t, t.TempDir(), "other", "")
	return authorized(signer)[0], gossh.FingerprintSHA256(signer.PublicKey())
}

func TestHostKeys(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	name := knownhosts.Normalize(n.Addr)
	other, otherFingerprint := otherKey(t)
	damaged := []string{
		"# a comment", "", "not a line", "host ssh-xmss@openssh.com AAAA", "|2|abc|def " + other,
		"|1|?|? " + other, "[half " + other, "! " + other, "@revoked @revoked x " + other,
	}
	for _, c := range []struct {
		name     string
		known    []string
		accepted []string
		kind     error
		words    []string
	}{
		{name: "plain line", known: []string{keyLine(name, n.HostKey)}},
		{name: "hashed line", known: []string{keyLine(knownhosts.HashHostname(name), n.HostKey)}},
		{name: "pattern", known: []string{keyLine("[127.0.0.*]:"+fmt.Sprint(n.Port), n.HostKey)}},
		{name: "second of two keys", known: []string{keyLine(name, other), keyLine(name, n.HostKey)}},
		{name: "among damaged lines", known: append(damaged, keyLine(name, n.HostKey))},
		{name: "accepted", accepted: []string{otherFingerprint, n.Fingerprint}},
		{name: "accepted, other host known", known: []string{keyLine("[127.0.0.1]:1", other)}, accepted: []string{n.Fingerprint}},
		{name: "unknown", kind: transport.ErrHostKey, words: []string{"not known", n.Fingerprint, "vendetta node add build1 " + n.User + "@127.0.0.1 --host-key " + n.Fingerprint}},
		{name: "port 22 is another host", known: []string{keyLine("127.0.0.1", n.HostKey)}, kind: transport.ErrHostKey, words: []string{"not known"}},
		{name: "none of the accepted", accepted: []string{otherFingerprint}, kind: transport.ErrHostKey, words: []string{"none of the accepted", n.Fingerprint}},
		{name: "changed", known: []string{"# first", keyLine(name, other)}, kind: transport.ErrHostKey, words: []string{"has changed", ":2 has " + otherFingerprint, n.Fingerprint, "verify", "ssh-keygen -R '" + name + "' -f"}},
		{name: "changed, in a damaged file", known: append(damaged, keyLine(name, other)), kind: transport.ErrHostKey, words: []string{"has changed", ":10 has " + otherFingerprint}},
		{name: "changed, hashed", known: []string{keyLine(knownhosts.HashHostname(name), other)}, kind: transport.ErrHostKey, words: []string{"has changed"}},
		{name: "changed beats accepted", known: []string{keyLine(name, other)}, accepted: []string{n.Fingerprint}, kind: transport.ErrHostKey, words: []string{"has changed"}},
		{name: "revoked", known: []string{keyLine(name, n.HostKey), "@revoked " + keyLine("*", n.HostKey)}, kind: transport.ErrHostKey, words: []string{"revoked", ":2"}},
		{name: "revoked beats accepted", known: append(damaged, "@revoked "+keyLine("*", n.HostKey)), accepted: []string{n.Fingerprint}, kind: transport.ErrHostKey, words: []string{"revoked", ":10"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := n.options()
			o.Name = "build1"
			o.HostKeys = c.accepted
			o.KnownHosts = []string{filepath.Join(t.TempDir(), "absent"), write(t, c.known...)}
			if c.kind == nil {
				mustRun(t, o)
				return
			}
			_, err := run(t, o)
			wantError(t, err, c.kind, c.words...)
			for _, file := range o.KnownHosts[1:] {
				if strings.Contains(err.Error(), "changed:") && !strings.Contains(err.Error(), file) {
					t.Errorf("%q does not name the file %s", err, file)
				}
			}
		})
	}
}

func TestKnownHostsUnreadable(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	o := n.options()
	o.KnownHosts = []string{t.TempDir()}
	if _, err := run(t, o); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("got %v", err)
	}
}

// A host with several keys shows the one that is known, or was accepted.
func TestHostKeyTypes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ecdsa := hostKey(t, dir, "ecdsa")
	rsa := hostKey(t, dir, "rsa")
	n := startNodeWith(t, testbed.SSHDOptions{Dir: dir, Config: []string{"HostKey " + ecdsa.file, "HostKey " + rsa.file}})
	name := knownhosts.Normalize(n.Addr)
	for _, k := range []hostKeyFile{ecdsa, rsa} {
		o := n.options()
		o.HostKeys, o.KnownHosts = nil, []string{write(t, keyLine(name, k.line))}
		mustRun(t, o)
		o.HostKeys, o.KnownHosts = []string{k.fingerprint}, nil
		mustRun(t, o)
		seen, err := ssh.Probe(t.Context(), o)
		if err != nil || len(seen) != 1 || seen[0].Fingerprint != k.fingerprint || !seen[0].Known {
			t.Errorf("probe = %+v, %v", seen, err)
		}
	}
	// Another type is known than the accepted one.
	o := n.options()
	o.KnownHosts = []string{write(t, keyLine(name, rsa.line))}
	mustRun(t, o)

	_, fingerprint := otherKey(t)
	o.KnownHosts, o.HostKeys = nil, []string{fingerprint}
	_, err := run(t, o)
	wantError(t, err, transport.ErrHostKey, n.Fingerprint)
	seen, err := ssh.Probe(t.Context(), o)
	if err != nil || len(seen) != 1 || seen[0].Fingerprint != n.Fingerprint || seen[0].Known {
		t.Errorf("probe = %+v, %v", seen, err)
	}

	// The right key does not excuse a refused login.
	o = n.options()
	o.HostKeys = []string{rsa.fingerprint}
	o.Key, _ = newKey(t, t.TempDir(), "stranger", "")
	_, err = run(t, o)
	wantError(t, err, transport.ErrLogin, "refused")
}

type hostKeyFile struct{ file, line, fingerprint string }

func hostKey(t *testing.T, dir, kind string) hostKeyFile {
	t.Helper()
	k := hostKeyFile{file: filepath.Join(dir, "host_"+kind)}
	command(t, "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", k.file)
	k.line = strings.TrimSpace(read(t, k.file+".pub"))
	key, _, _, _, err := gossh.ParseAuthorizedKey([]byte(k.line))
	if err != nil {
		t.Fatal(err)
	}
	k.fingerprint = gossh.FingerprintSHA256(key)
	return k
}

func TestHostCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, ca := newKey(t, dir, "ca", "")
	authority := command(t, "ssh-keygen", "-y", "-f", ca)
	n := startNodeWith(t, testbed.SSHDOptions{Dir: dir})
	command(t, "ssh-keygen", "-q", "-s", ca, "-I", "node", "-h", "-n", "127.0.0.1", filepath.Join(dir, "host_ed25519.pub"))
	n.Stop()
	config := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(config, []byte("HostCertificate "+filepath.Join(dir, "host_ed25519-cert.pub")+"\n"+read(t, config)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := n.options()
	o.HostKeys = nil
	o.KnownHosts = []string{write(t, "@cert-authority "+keyLine("[127.0.0.1]:*", authority), "@cert-authority "+keyLine(knownhosts.Normalize(n.Addr), authority))}
	mustRun(t, o)

	o.KnownHosts = []string{write(t, "@cert-authority "+keyLine("elsewhere", authority))}
	_, err := run(t, o)
	wantError(t, err, transport.ErrHostKey, "certificate", "@cert-authority")
}

func TestHostKeyAlias(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	o := n.options()
	o.HostKeys = nil
	o.KnownHosts = []string{write(t, keyLine("build-machine", n.HostKey))}
	o.ConfigFiles = []string{write(t, "HostKeyAlias build-machine")}
	mustRun(t, o)
}

func TestProbe(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	o := n.options()
	o.Key = nil
	want := ssh.HostKeySeen{Host: n.User + "@" + n.Addr, Type: "ssh-ed25519", Fingerprint: n.Fingerprint, Known: true}
	seen, err := ssh.Probe(t.Context(), o)
	if err != nil || len(seen) != 1 || seen[0] != want {
		t.Errorf("probe of a known host = %+v, %v", seen, err)
	}
	o.HostKeys = nil
	want.Known = false
	seen, err = ssh.Probe(t.Context(), o)
	if err != nil || len(seen) != 1 || seen[0] != want {
		t.Errorf("probe of an unknown host = %+v, %v", seen, err)
	}
	other, _ := otherKey(t)
	o.KnownHosts = []string{write(t, keyLine(knownhosts.Normalize(n.Addr), other))}
	_, err = ssh.Probe(t.Context(), o)
	wantError(t, err, transport.ErrHostKey, "has changed")
	if strings.Contains(n.Log(), "Accepted publickey") {
		t.Error("a probe has logged in")
	}
	n.Stop()
	o.KnownHosts = nil
	_, err = ssh.Probe(t.Context(), o)
	wantError(t, err, transport.ErrUnreachable, "connection refused")
	if _, err := ssh.Probe(t.Context(), ssh.Options{}); err == nil {
		t.Error("probed nothing")
	}
	o.Jump = []string{"@"}
	if _, err := ssh.Probe(t.Context(), o); err == nil {
		t.Error("probed through nothing")
	}
	o.Jump, o.KnownHosts = nil, []string{t.TempDir()}
	if _, err := ssh.Probe(t.Context(), o); err == nil {
		t.Error("probed with unreadable files")
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
