//go:build linux

package testbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// SSHDOptions describe an OpenSSH server.
type SSHDOptions struct {
	// Dir holds its keys, config and log; it must exist and stay until Stop. It
	// and the folders above it must not be writable for others.
	Dir string
	// Namespace in which it listens; nil means this one.
	Namespace *Namespace
	// Address and Port to listen on; "" is 127.0.0.1 and 0 a free one.
	Address string
	Port    int
	// AuthorizedKeys are lines of its authorized keys, which lie in
	// Dir/authorized_keys whatever the login user's home is.
	AuthorizedKeys []string
	// AuthorizedKeysFile is used instead of Dir/authorized_keys.
	AuthorizedKeysFile string
	// Environment of each login, e.g. HOME: a home of the node's own.
	Environment map[string]string
	// Config are lines put before ours, so they win over them.
	Config []string
}

// SSHD is a running OpenSSH server.
type SSHD struct {
	// Addr is host:port.
	Addr string
	Host string
	Port int
	// User is who can log in: the test's own.
	User string
	// HostKey is the public key's line, Fingerprint its SHA256:... form.
	HostKey     string
	Fingerprint string
	// AuthorizedKeys is the file it reads.
	AuthorizedKeys string

	options SSHDOptions
	program string
	cmd     *exec.Cmd
	logFile *os.File
	stopped sync.Once
}

// StartSSHD makes host keys, unless Dir has some, and starts a server. It
// returns when the server accepts connections.
func StartSSHD(ctx context.Context, o SSHDOptions) (*SSHD, error) {
	program, err := findSSHD()
	if err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("find the user: %w", err)
	}
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	if o.Port == 0 {
		if o.Port, err = freePort(ctx, o.Namespace, o.Address); err != nil {
			return nil, err
		}
	}
	s := &SSHD{
		Host: o.Address, Port: o.Port, Addr: net.JoinHostPort(o.Address, strconv.Itoa(o.Port)),
		User: me.Username, AuthorizedKeys: o.AuthorizedKeysFile, options: o, program: program,
	}
	if s.AuthorizedKeys == "" {
		s.AuthorizedKeys = filepath.Join(o.Dir, "authorized_keys")
	}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// findSSHD: sshd must be called by its absolute path, and often is not in PATH.
func findSSHD() (string, error) {
	if path, err := exec.LookPath("sshd"); err == nil {
		return filepath.Abs(path)
	}
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("find sshd: not installed; apt-get install openssh-server")
}

func freePort(ctx context.Context, ns *Namespace, address string) (int, error) {
	var port int
	err := ns.Do(func() error {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			return fmt.Errorf("find a free port: %w", err)
		}
		port = l.Addr().(*net.TCPAddr).Port
		return l.Close()
	})
	return port, err
}

func (s *SSHD) prepare(ctx context.Context) error {
	// sshd wants its privilege separation folder, which a boot makes.
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return fmt.Errorf("prepare sshd: %w", err)
		}
	}
	key := s.hostKeyFile()
	if _, err := os.Stat(key); err != nil {
		if err := run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", key); err != nil {
			return err
		}
	}
	if err := s.readHostKey(ctx); err != nil {
		return err
	}
	if len(s.options.AuthorizedKeys) > 0 || s.options.AuthorizedKeysFile == "" {
		lines := strings.Join(s.options.AuthorizedKeys, "\n") + "\n"
		if err := os.WriteFile(s.AuthorizedKeys, []byte(lines), 0o600); err != nil {
			return fmt.Errorf("write authorized keys: %w", err)
		}
	}
	return os.WriteFile(s.configFile(), []byte(s.config()), 0o600)
}

func (s *SSHD) hostKeyFile() string { return filepath.Join(s.options.Dir, "host_ed25519") }
func (s *SSHD) configFile() string  { return filepath.Join(s.options.Dir, "sshd_config") }

func (s *SSHD) readHostKey(ctx context.Context) error {
	line, err := os.ReadFile(s.hostKeyFile() + ".pub")
	if err != nil {
		return fmt.Errorf("read host key: %w", err)
	}
	s.HostKey = strings.TrimSpace(string(line))
	out, err := exec.CommandContext(ctx, "ssh-keygen", "-l", "-E", "sha256", "-f", s.hostKeyFile()+".pub").Output()
	if err != nil {
		return fmt.Errorf("fingerprint: %w", err)
	}
	if fields := strings.Fields(string(out)); len(fields) > 1 {
		s.Fingerprint = fields[1]
	}
	return nil
}

// config is the server's file. In sshd the first value of a keyword counts.
func (s *SSHD) config() string {
	lines := slices.Clone(s.options.Config)
	lines = append(lines,
		"ListenAddress "+s.Addr,
		"HostKey "+s.hostKeyFile(),
		"AuthorizedKeysFile "+s.AuthorizedKeys,
		"PidFile none",
		// The test's folders lie in /tmp, which is writable for all.
		"StrictModes no",
		"UsePAM no",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"PermitRootLogin yes",
		"UseDNS no",
		"MaxStartups 100:30:200",
		"MaxSessions 1000",
		"AllowTcpForwarding yes",
		"AllowStreamLocalForwarding yes",
		"PrintMotd no",
		"LogLevel VERBOSE",
	)
	if len(s.options.Environment) > 0 {
		names := make([]string, 0, len(s.options.Environment))
		for name := range s.options.Environment {
			names = append(names, name)
		}
		slices.Sort(names)
		line := "SetEnv"
		for _, name := range names {
			line += fmt.Sprintf(" %s=%q", name, s.options.Environment[name])
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n") + "\n"
}

// Start starts a stopped server again, on the same port with the same keys.
func (s *SSHD) Start(ctx context.Context) error {
	logFile, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open sshd's log: %w", err)
	}
	argv := s.options.Namespace.Argv(s.program, "-D", "-e", "-f", s.configFile())
	// The server outlives the call, so its life is not bound to ctx.
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = logFile.Close()
		return fmt.Errorf("start sshd: %w", err)
	}
	s.cmd, s.logFile, s.stopped = cmd, logFile, sync.Once{}
	if err := s.await(ctx); err != nil {
		s.Stop()
		return err
	}
	return nil
}

func (s *SSHD) logPath() string { return filepath.Join(s.options.Dir, "sshd.log") }

// Log is what the server has written, for a failed test.
func (s *SSHD) Log() string {
	data, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// await waits until the server greets.
func (s *SSHD) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := s.greets(ctx); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("sshd on %s did not answer; its log:\n%s", s.Addr, s.Log())
		}
	}
}

func (s *SSHD) greets(ctx context.Context) error {
	conn, err := s.options.Namespace.Dial(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}

// Stop ends the server and all its sessions.
func (s *SSHD) Stop() {
	s.stopped.Do(func() {
		// Sessions have process groups of their own, so they are looked up first.
		sessions := descendants(s.cmd.Process.Pid)
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		for _, pid := range sessions {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = s.logFile.Close()
	})
}

// Disconnect ends the sessions and lets the server run.
func (s *SSHD) Disconnect() {
	for _, pid := range descendants(s.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// descendants are the processes below pid that are still sshd's: a daemon that a
// session started is no longer among them, nor is a program it runs.
func descendants(pid int) []int {
	children := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		parent, ok := parentOf(child)
		if ok {
			children[parent] = append(children[parent], child)
		}
	}
	var found []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		found = append(found, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return found
}

// parentOf reads the parent of an sshd process; others are not ours to end.
func parentOf(pid int) (int, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// pid (name) state ppid ...; the name may hold anything.
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open || !strings.HasPrefix(string(stat[open+1:end]), "sshd") {
		return 0, false
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return parent, err == nil
}

// run runs a program to its end.
func run(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
