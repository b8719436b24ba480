package ssh_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
)

// command runs a program and returns its output.
func command(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

// startAgent serves an ssh-agent with the keys in files.
func startAgent(t *testing.T, files ...string) string {
	t.Helper()
	keyring := agent.NewKeyring()
	for _, f := range files {
		key, err := gossh.ParseRawPrivateKey([]byte(read(t, f)))
		if err != nil {
			t.Fatal(err)
		}
		if err := keyring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	return serveUnix(t, func(c net.Conn) { _ = agent.ServeAgent(keyring, c) })
}

// serveUnix serves connections on a socket.
func serveUnix(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return path
}

func TestLogin(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	dir := t.TempDir()
	stranger, strangerFile := newKey(t, dir, "stranger", "")
	_, lockedFile := newKey(t, dir, "locked", "secret")
	// The node's key, encrypted: only an agent can use it.
	nodeLocked := filepath.Join(dir, "node_locked")
	if err := os.WriteFile(nodeLocked, []byte(read(t, n.keyFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "ssh-keygen", "-q", "-p", "-N", "secret", "-f", nodeLocked)
	pub := write(t, authorized(n.key)...)
	many := []string{n.keyFile}
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		_, file := newKey(t, dir, name, "")
		many = append([]string{file}, many...)
	}
	goodAgent, strangeAgent, crowdedAgent := startAgent(t, n.keyFile), startAgent(t, strangerFile), startAgent(t, many...)
	deadAgent := serveUnix(t, func(net.Conn) {})

	for _, c := range []struct {
		name  string
		adapt func(*ssh.Options)
		words []string // of the refusal; none means that it works
	}{
		{"server's key", func(o *ssh.Options) { o.Key = n.key }, nil},
		{"identity", func(o *ssh.Options) { o.Identity = n.keyFile }, nil},
		{"identity of the config", func(o *ssh.Options) {
			o.Home = filepath.Dir(n.keyFile)
			o.ConfigFiles = []string{write(t, "IdentityFile ~/absent", "IdentityFile ~/user_key")}
		}, nil},
		{"agent", func(o *ssh.Options) { o.Login = &ssh.Login{AgentSocket: goodAgent} }, nil},
		{"lent identity after strange keys", func(o *ssh.Options) {
			o.Key = stranger
			o.Login = &ssh.Login{AgentSocket: strangeAgent, Identities: []string{n.keyFile}}
		}, nil},
		{"named identity before a crowded agent", func(o *ssh.Options) {
			o.Identity = n.keyFile
			o.Login = &ssh.Login{AgentSocket: crowdedAgent}
		}, nil},
		{"encrypted identity held by the agent", func(o *ssh.Options) {
			o.Identity = nodeLocked
			o.Login = &ssh.Login{AgentSocket: crowdedAgent}
		}, nil},
		{"public identity held by the agent", func(o *ssh.Options) {
			o.ConfigFiles = []string{write(t, "IdentitiesOnly yes", "IdentityFile "+pub)}
			o.Login = &ssh.Login{AgentSocket: crowdedAgent}
		}, nil},
		{"usual identities at the first login", func(o *ssh.Options) {
			o.Home = t.TempDir()
			if err := os.Mkdir(filepath.Join(o.Home, ".ssh"), 0o700); err != nil {
				t.Error(err)
			}
			if err := os.Link(n.keyFile, filepath.Join(o.Home, ".ssh", "id_ed25519")); err != nil {
				t.Error(err)
			}
			o.Login = &ssh.Login{}
		}, nil},

		{"no key at all", func(*ssh.Options) {}, []string{"no key to log in with", "--identity"}},
		{"strange key", func(o *ssh.Options) { o.Key = stranger }, []string{"refused", "the server's own key", "authorized_keys"}},
		{"too many keys", func(o *ssh.Options) { o.Login = &ssh.Login{AgentSocket: crowdedAgent} }, []string{"refused", "the ssh-agent's keys"}},
		{"wrong password", func(o *ssh.Options) { o.Login = &ssh.Login{Password: "wrong"} }, []string{"refused", "the password"}},
		{"encrypted identity", func(o *ssh.Options) { o.Identity = lockedFile }, []string{"is encrypted", "ssh-add " + lockedFile}},
		{"identity that is a public key", func(o *ssh.Options) { o.Identity = pub }, []string{"not a private key"}},
		{"absent identity", func(o *ssh.Options) { o.Identity = "/does/not/exist" }, []string{"/does/not/exist", "no such file"}},
		{"absent agent", func(o *ssh.Options) { o.Login = &ssh.Login{AgentSocket: "/does/not/exist"} }, []string{"nothing answers on /does/not/exist"}},
		{"agent that hangs up", func(o *ssh.Options) { o.Login = &ssh.Login{AgentSocket: deadAgent} }, []string{"ssh-add -l"}},
		{"match that is not evaluated", func(o *ssh.Options) {
			o.ConfigFiles = []string{write(t, "Match exec true", "IdentityFile "+n.keyFile)}
		}, []string{"not evaluated", ":1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := n.options()
			o.Key = nil
			c.adapt(&o)
			if c.words == nil {
				mustRun(t, o)
				return
			}
			_, err := run(t, o)
			wantError(t, err, transport.ErrLogin, c.words...)
		})
	}
}

// A real ssh-agent, as users have it.
func TestOpenSSHAgent(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent")
	cmd := exec.CommandContext(t.Context(), "ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "ssh-agent listens", func() bool { _, err := os.Stat(socket); return err == nil })
	add := exec.CommandContext(t.Context(), "ssh-add", "-q", n.keyFile)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v: %s", err, out)
	}
	o := n.options()
	o.Key, o.Login = nil, &ssh.Login{AgentSocket: socket}
	mustRun(t, o)
}

// passwordServer is an SSH server in this process: sshd would need the password
// of a real user of the machine.
func passwordServer(t *testing.T, config *gossh.ServerConfig) ssh.Options {
	t.Helper()
	key, _ := newKey(t, t.TempDir(), "host", "")
	config.AddHostKey(key)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveSSH(c, config) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	addr := l.Addr().(*net.TCPAddr)
	return ssh.Options{
		Host: "127.0.0.1", Port: addr.Port, User: "dev",
		HostKeys: []string{gossh.FingerprintSHA256(key.PublicKey())},
	}
}

// serveSSH answers each command with "here".
func serveSSH(c net.Conn, config *gossh.ServerConfig) {
	conn, channels, requests, err := gossh.NewServerConn(c, config)
	if err != nil {
		_ = c.Close()
		return
	}
	go gossh.DiscardRequests(requests)
	for nc := range channels {
		ch, reqs, err := nc.Accept()
		if err != nil {
			break
		}
		go func() {
			for r := range reqs {
				_ = r.Reply(true, nil)
				_, _ = io.WriteString(ch, "here\n")
				_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
				_ = ch.Close()
			}
		}()
	}
	_ = conn.Close()
}

func TestPassword(t *testing.T) {
	t.Parallel()
	check := func(password string) (*gossh.Permissions, error) {
		if password != "right" {
			return nil, errors.New("wrong")
		}
		return &gossh.Permissions{}, nil
	}
	direct := &gossh.ServerConfig{PasswordCallback: func(_ gossh.ConnMetadata, p []byte) (*gossh.Permissions, error) { return check(string(p)) }}
	asking := func(questions []string, echos []bool) *gossh.ServerConfig {
		return &gossh.ServerConfig{KeyboardInteractiveCallback: func(_ gossh.ConnMetadata, ask gossh.KeyboardInteractiveChallenge) (*gossh.Permissions, error) {
			if _, err := ask("", "welcome", nil, nil); err != nil {
				return nil, err
			}
			answers, err := ask("", "", questions, echos)
			if err != nil || len(answers) != len(questions) {
				return nil, errors.New("no answer")
			}
			return check(answers[0])
		}}
	}
	for _, c := range []struct {
		name     string
		server   *gossh.ServerConfig
		password string
		works    bool
	}{
		{"password", direct, "right", true},
		{"wrong password", direct, "wrong", false},
		{"asked for", asking([]string{"Password: "}, []bool{false}), "right", true},
		{"asked for more", asking([]string{"Password: ", "Code: "}, []bool{false, false}), "right", false},
		{"asked in the open", asking([]string{"Name: "}, []bool{true}), "right", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := passwordServer(t, c.server)
			o.Login = &ssh.Login{Password: c.password}
			if c.works {
				mustRun(t, o)
				return
			}
			_, err := run(t, o)
			wantError(t, err, transport.ErrLogin, "the password")
			if strings.Contains(err.Error(), c.password+" ") && c.password == "right" {
				t.Errorf("the password stands in %q", err)
			}
		})
	}
}

// The password is the node's: a jump host is not told it, even when it asks.
func TestPasswordBehindJump(t *testing.T) {
	t.Parallel()
	password := &gossh.ServerConfig{PasswordCallback: func(_ gossh.ConnMetadata, p []byte) (*gossh.Permissions, error) {
		if string(p) != "right" {
			return nil, errors.New("wrong")
		}
		return &gossh.Permissions{}, nil
	}}
	o := passwordServer(t, password)
	jump := startNode(t)
	o.Key, o.Login = jump.key, &ssh.Login{Password: "right"}
	o.Jump = []string{jump.User + "@" + jump.Addr}
	o.HostKeys = append(o.HostKeys, jump.Fingerprint)
	mustRun(t, o)

	var asked atomic.Int32
	greedy := passwordServer(t, &gossh.ServerConfig{
		PasswordCallback: func(gossh.ConnMetadata, []byte) (*gossh.Permissions, error) {
			asked.Add(1)
			return &gossh.Permissions{}, nil
		},
		KeyboardInteractiveCallback: func(_ gossh.ConnMetadata, ask gossh.KeyboardInteractiveChallenge) (*gossh.Permissions, error) {
			asked.Add(1)
			_, err := ask("", "", []string{"Password: "}, []bool{false})
			return &gossh.Permissions{}, err
		},
	})
	o.Jump = []string{fmt.Sprintf("%s@%s:%d", greedy.User, greedy.Host, greedy.Port)}
	o.HostKeys = greedy.HostKeys
	_, err := run(t, o)
	wantError(t, err, transport.ErrLogin, "the password is for the node only")
	_, err = ssh.Probe(t.Context(), o)
	wantError(t, err, transport.ErrLogin, "the password is for the node only")
	if n := asked.Load(); n != 0 {
		t.Errorf("the jump host was offered the password %d times", n)
	}
}
