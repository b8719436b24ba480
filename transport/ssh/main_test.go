package ssh_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
	"github.com/vendetta-dev/vendetta/transport/unix"
)

// TestMain lets the test's program stand in for the node agent's where a stream
// goes over stdio: PROGRAM nodeagent connect --socket PATH.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && slices.Equal(os.Args[1:4], []string{"nodeagent", "connect", "--socket"}) {
		if err := unix.Pipe(context.Background(), os.Args[4], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// node is an sshd with the key that may log in.
type node struct {
	*testbed.SSHD
	key     gossh.Signer
	keyFile string
	dir     string
}

// newKey makes a key and its file, encrypted with the passphrase if there is one.
func newKey(t *testing.T, dir, name, passphrase string) (gossh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = gossh.MarshalPrivateKey(private, name)
	} else {
		block, err = gossh.MarshalPrivateKeyWithPassphrase(private, name, []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, file
}

func authorized(keys ...gossh.Signer) []string {
	var lines []string
	for _, k := range keys {
		lines = append(lines, strings.TrimSpace(string(gossh.MarshalAuthorizedKey(k.PublicKey()))))
	}
	return lines
}

// startNode starts an sshd that takes a new key.
func startNode(t *testing.T, config ...string) *node {
	t.Helper()
	return startNodeWith(t, testbed.SSHDOptions{Config: config})
}

func startNodeWith(t *testing.T, o testbed.SSHDOptions) *node {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	n := &node{dir: o.Dir}
	n.key, n.keyFile = newKey(t, o.Dir, "user_key", "")
	o.AuthorizedKeys = append(o.AuthorizedKeys, authorized(n.key)...)
	var err error
	if n.SSHD, err = testbed.StartSSHD(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Stop()
		if t.Failed() {
			t.Logf("sshd's log:\n%s", n.Log())
		}
	})
	return n
}

// options log in to n with its key, its host key accepted.
func (n *node) options() ssh.Options {
	return ssh.Options{
		Host: n.Host, User: n.User, Port: n.Port, Key: n.key,
		HostKeys: []string{n.Fingerprint}, LocalUser: n.User,
	}
}

// connect makes a transport that ends with the test.
func connect(t *testing.T, o ssh.Options) *ssh.Transport {
	t.Helper()
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	tr, err := ssh.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// program is this test's own, standing in for the agent's.
func program(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var _ transport.Transport = (*ssh.Transport)(nil)

// requireRoot ends a test that makes network namespaces; without root the test
// runner says what it leaves out.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}
