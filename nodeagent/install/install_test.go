package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/transport/ssh"
	"github.com/vendetta-dev/vendetta/transport/ssh/keys"
)

// remote is a machine of its own as far as paths go: a home, a bundle for it,
// and a Runner that runs commands there.
type remote struct {
	Runner
	home    string
	options Options
}

func (r remote) state(elem ...string) string {
	return filepath.Join(append([]string{r.home, ".local", "state", "vendetta"}, elem...)...)
}

func (r remote) authorizedKeys() string { return filepath.Join(r.home, ".ssh", "authorized_keys") }

// shell runs commands in a shell of this machine, as sshd does, with a home of
// its own and a greeting around them.
type shell struct {
	home string
	env  []string
}

func (s shell) Run(ctx context.Context, cmd string, stdin io.Reader) ([]byte, error) {
	c := exec.CommandContext(ctx, "sh", "-c", "printf 'Welcome!\nno end of line'; "+cmd)
	c.Env = append([]string{"HOME=" + s.home, "PATH=" + os.Getenv("PATH")}, s.env...)
	c.Stdin = stdin
	return c.Output()
}

const (
	testKey    = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2X4oTHVxbZTcpRcLoDGSS9YJjzUuFDcnGN5lYkrWvQ"
	testServer = "abc123"
	testLine   = testKey + " vendetta-server-" + testServer
)

// agentScript stands in for the agent's program.
const agentScript = `#!/bin/sh
# %s
echo "$@" >>"$4/calls"
case "$2" in
start) mkdir -p "$4/agent"; echo '{"socket": "'"$4"'/agent/agent.sock"}' ;;
uninstall) [ ! -e "$4/busy" ] || { echo "two workspaces exist" >&2; echo "next: remove them" >&2; exit 1; }; rm -rf "$4/agent" "$4/calls" ;;
esac
`

func newBundle(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for _, arch := range []string{"amd64", "arm64"} {
		folder := filepath.Join(dir, "linux-"+arch)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{agentProgram: fmt.Sprintf(agentScript, version), guestProgram: "guest " + version} {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func newRemote(t *testing.T, env ...string) remote {
	t.Helper()
	home := t.TempDir()
	return remote{
		Runner: shell{home: home, env: env}, home: home,
		options: Options{Bundle: newBundle(t, "one"), ServerID: testServer, PublicKey: testKey + " somebody@somewhere"},
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

func write(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func wantMode(t *testing.T, file string, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s: mode %v, %v, want %v", file, info.Mode(), err, mode)
	}
}

// wantError checks code and words of an error's message and next step.
func wantError(t *testing.T, err error, code api.Code, words ...string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v (%s), want %s", err, api.CodeOf(err), code)
	}
	for _, w := range words {
		if !strings.Contains(e.Message+"\n"+e.Next, w) {
			t.Errorf("%q (next: %q) does not say %q", e.Message, e.Next, w)
		}
	}
}

func TestInstall(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	ctx := t.Context()
	got, err := Install(ctx, r, r.options)
	want := Result{Socket: r.state("agent", "agent.sock"), Program: r.state("bin", "vendetta"), StateDir: r.state()}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("install = %+v, %v, want %+v", got, err, want)
	}
	wantMode(t, r.state(), 0o700)
	wantMode(t, r.state("bin", "vendetta"), 0o755)
	wantMode(t, r.state("bin", "vendetta-guest"), 0o755)
	wantMode(t, r.authorizedKeys(), 0o600)
	wantMode(t, filepath.Dir(r.authorizedKeys()), 0o700)
	if keys := read(t, r.authorizedKeys()); keys != testLine+"\n" {
		t.Errorf("authorized keys = %q", keys)
	}

	// Again: nothing is sent, nothing doubled.
	before, err := os.Stat(r.state("bin", "vendetta"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Install(ctx, r, r.options); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(r.state("bin", "vendetta"))
	if err != nil || !os.SameFile(before, after) {
		t.Error("an unchanged program was sent again")
	}
	if keys := read(t, r.authorizedKeys()); keys != testLine+"\n" {
		t.Errorf("authorized keys = %q", keys)
	}

	// Another version takes the place of one that may be running.
	running, err := os.Open(r.state("bin", "vendetta"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = running.Close() }()
	o := r.options
	o.Bundle = newBundle(t, "two")
	if _, err := Install(ctx, r, o); err != nil {
		t.Fatal(err)
	}
	if text := read(t, r.state("bin", "vendetta")); !strings.Contains(text, "# two") {
		t.Errorf("program = %q", text)
	}
	if old, err := io.ReadAll(running); err != nil || !strings.Contains(string(old), "# one") {
		t.Errorf("a running program changed: %q, %v", old, err)
	}
	if left, err := filepath.Glob(r.state("bin", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	if err := Uninstall(ctx, r, o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.state()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory is left: %v", err)
	}
	if keys := read(t, r.authorizedKeys()); keys != "" {
		t.Errorf("authorized keys = %q", keys)
	}
	if err := Uninstall(ctx, r, o); err != nil {
		t.Errorf("uninstall again: %v", err)
	}
}

func TestStateDir(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	odd := filepath.Join(base, "it's a $dir; x")
	for _, c := range []struct{ env, want string }{
		{"XDG_STATE_HOME=" + base, filepath.Join(base, "vendetta")},
		{"VENDETTA_STATE_DIR=" + odd, odd},
	} {
		r := newRemote(t, c.env)
		got, err := Install(t.Context(), r, r.options)
		if err != nil || got.StateDir != c.want {
			t.Errorf("%s: %+v, %v", c.env, got, err)
		}
		if err := Uninstall(t.Context(), r, r.options); err != nil {
			t.Error(err)
		}
	}
	for _, env := range []string{"VENDETTA_STATE_DIR=relative", "VENDETTA_STATE_DIR=/a\nb", "VENDETTA_STATE_DIR=/a\tb"} {
		r := newRemote(t, env)
		_, err := Install(t.Context(), r, r.options)
		wantError(t, err, api.FailedPrecondition, "state directory")
	}
}

func TestAuthorizedKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	e := entry{key: testKey, comment: "vendetta-server-" + testServer}
	const other = "ssh-ed25519 AAAAother user@host vendetta-server-abc1234"
	for _, c := range []struct{ name, before, after, revoked string }{
		{"no end of line", other, other + "\n" + testLine + "\n", other + "\n"},
		{"an older key of ours", other + "\nssh-ed25519 AAAAold vendetta-server-abc123\n# x\n", other + "\n# x\n" + testLine + "\n", other + "\n# x\n"},
		{"there already", testLine + "\n" + other + "\n", testLine + "\n" + other + "\n", other + "\n"},
		{"only as part of a line", "# " + testLine + " x\n", "# " + testLine + " x\n" + testLine + "\n", "# " + testLine + " x\n"},
		{"empty", "", testLine + "\n", ""},
	} {
		r := newRemote(t)
		write(t, r.authorizedKeys(), c.before, 0o644)
		for range 2 {
			if err := authorize(ctx, r, e); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if got := read(t, r.authorizedKeys()); got != c.after {
			t.Errorf("%s: got %q, want %q", c.name, got, c.after)
		}
		for range 2 {
			if err := revoke(ctx, r, e); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if got := read(t, r.authorizedKeys()); got != c.revoked {
			t.Errorf("%s: got %q after revoke, want %q", c.name, got, c.revoked)
		}
	}

	// A link stays one; a path of its own is used; nothing there is success.
	r := newRemote(t)
	target := filepath.Join(t.TempDir(), "keys")
	write(t, target, "", 0o600)
	if err := os.MkdirAll(filepath.Dir(r.authorizedKeys()), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, r.authorizedKeys()); err != nil {
		t.Fatal(err)
	}
	if err := authorize(ctx, r, e); err != nil || read(t, target) != testLine+"\n" {
		t.Errorf("link: %v", err)
	}
	if info, err := os.Lstat(r.authorizedKeys()); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info.Mode(), err)
	}
	own := filepath.Join(t.TempDir(), "sub", "own")
	r = newRemote(t, "VENDETTA_AUTHORIZED_KEYS="+own)
	if err := authorize(ctx, r, e); err != nil || read(t, own) != testLine+"\n" {
		t.Errorf("own path: %v", err)
	}
	r = newRemote(t)
	if err := revoke(ctx, r, e); err != nil {
		t.Errorf("revoke without a file: %v", err)
	}
}

// An agent that another server uses too stays.
func TestUninstallShared(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	other := "ssh-ed25519 AAAAother vendetta-server-zzz"
	write(t, r.authorizedKeys(), other+"\n", 0o600)
	if _, err := Install(t.Context(), r, r.options); err != nil {
		t.Fatal(err)
	}
	if err := Uninstall(t.Context(), r, r.options); err != nil {
		t.Fatal(err)
	}
	if got := read(t, r.authorizedKeys()); got != other+"\n" {
		t.Errorf("authorized keys = %q", got)
	}
	if _, err := os.Stat(r.state("bin", "vendetta")); err != nil {
		t.Errorf("the other server's agent is gone: %v", err)
	}
}

func TestUninstallRefused(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	if _, err := Install(t.Context(), r, r.options); err != nil {
		t.Fatal(err)
	}
	write(t, r.state("busy"), "", 0o600)
	err := Uninstall(t.Context(), r, r.options)
	wantError(t, err, api.FailedPrecondition, "two workspaces exist")
	if got := read(t, r.authorizedKeys()); got != testLine+"\n" {
		t.Errorf("the key is gone: %q", got)
	}
	if _, err := os.Stat(r.state("bin", "vendetta")); err != nil {
		t.Error(err)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	_, err := Start(t.Context(), r, r.state("bin", "vendetta"))
	wantError(t, err, api.FailedPrecondition, "is not installed", "vendetta node add", "agent.log")
	for _, program := range []string{"", "vendetta", "/usr/bin/python", "/opt/vendetta"} {
		_, err := Start(t.Context(), r, program)
		wantError(t, err, api.InvalidArgument)
	}
	for _, c := range []struct{ body, want string }{
		{"echo 'lock is held' >&2; exit 1", "lock is held"},
		{"echo not json", "named no socket"},
		{`echo '{"socket": "relative"}'`, "named no socket"},
		{"kill -9 $PPID", "ended early"},
	} {
		write(t, r.state("bin", "vendetta"), "#!/bin/sh\n"+c.body+"\n", 0o755)
		_, err := Start(t.Context(), r, r.state("bin", "vendetta"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", c.body, err)
		}
	}
}

// fixed answers every command alike.
type fixed struct {
	out string
	err error
}

func (f fixed) Run(_ context.Context, cmd string, _ io.Reader) ([]byte, error) {
	_, rest, _ := strings.Cut(cmd, " sh vendetta-")
	mark, _, _ := strings.Cut(rest, " ")
	return []byte(strings.ReplaceAll(f.out, "MARK", "vendetta-"+mark)), f.err
}

func TestUnfitMachines(t *testing.T) {
	t.Parallel()
	good := newRemote(t).options
	lost := errors.New("connection lost")
	answer := func(uname, dir string) string {
		return "MARK uname " + uname + "\nMARK dir " + dir + "\nMARK done\n"
	}
	for _, c := range []struct {
		out  string
		code api.Code
		want string
	}{
		{answer("Darwin arm64", "/s"), api.FailedPrecondition, "it runs Darwin"},
		{answer("Linux riscv64", "/s"), api.FailedPrecondition, "processor riscv64"},
		{answer("Linux x86_64", "s"), api.FailedPrecondition, "absolute path"},
		{"MARK error sha256sum is missing\n", api.FailedPrecondition, "sha256sum is missing"},
		{"MARK uname Linux x86_64\n\x1b[1msh: oops\n", api.FailedPrecondition, "?[1msh: oops"},
		{"MARK error write: No space left on device\n", api.ResourceExhausted, "free space"},
		{"MARK error make: Permission denied\n", api.PermissionDenied, "VENDETTA_STATE_DIR"},
		{"MARK error " + strings.Repeat("x", 1000), api.FailedPrecondition, "xxx..."},
	} {
		_, err := Install(t.Context(), fixed{out: c.out}, good)
		wantError(t, err, c.code, c.want)
		wantError(t, Uninstall(t.Context(), fixed{out: c.out}, good), c.code, c.want)
	}
	if _, err := Install(t.Context(), fixed{err: lost}, good); !errors.Is(err, lost) || !strings.Contains(err.Error(), "inspect machine") {
		t.Errorf("lost connection: %v", err)
	}
	for _, o := range []Options{
		{ServerID: "ABC", PublicKey: testKey}, {ServerID: testServer, PublicKey: "junk"}, {ServerID: testServer, PublicKey: "ssh-ed25519 'x"},
	} {
		_, err := Install(t.Context(), fixed{}, o)
		wantError(t, err, api.Internal)
		wantError(t, Uninstall(t.Context(), fixed{}, o), api.Internal)
	}
}

// The helper for LXC comes along where the bundle has it, and goes with the rest.
func TestHelper(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	for _, arch := range []string{"amd64", "arm64"} {
		write(t, filepath.Join(r.options.Bundle, "linux-"+arch, helperProgram), "helper", 0o755)
	}
	if _, err := Install(t.Context(), r, r.options); err != nil {
		t.Fatal(err)
	}
	wantMode(t, r.state("bin", helperProgram), 0o755)
	if got := read(t, r.state("bin", helperProgram)); got != "helper" {
		t.Errorf("the helper is %q", got)
	}
	if err := Uninstall(t.Context(), r, r.options); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.state("bin", helperProgram)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the helper stays: %v", err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(r.options.Bundle, "linux-"+arch, helperProgram)
		if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Install(t.Context(), r, r.options)
	wantError(t, err, api.Internal, "is a directory")
}

func TestMissingBundle(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	missing := filepath.Join(r.options.Bundle, "linux-amd64", "vendetta-guest")
	for _, arch := range []string{"amd64", "arm64"} {
		if err := os.Remove(filepath.Join(r.options.Bundle, "linux-"+arch, "vendetta-guest")); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Install(t.Context(), r, r.options)
	wantError(t, err, api.FailedPrecondition, filepath.Base(missing), "make build")
	for _, arch := range []string{"amd64", "arm64"} {
		if err := os.Mkdir(filepath.Join(r.options.Bundle, "linux-"+arch, "vendetta-guest"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Install(t.Context(), r, r.options)
	wantError(t, err, api.Internal, "is a directory")
}

// cut ends an upload early.
type cut struct{ Runner }

func (c cut) Run(ctx context.Context, cmd string, stdin io.Reader) ([]byte, error) {
	if stdin != nil {
		stdin = io.LimitReader(stdin, 10)
	}
	return c.Runner.Run(ctx, cmd, stdin)
}

func TestUploadCut(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	_, err := Install(t.Context(), cut{r}, r.options)
	wantError(t, err, api.FailedPrecondition, "upload vendetta", "did not arrive whole")
	left, err := os.ReadDir(r.state("bin"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	r := newRemote(t)
	disk := r.state()
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	for _, arch := range []string{"amd64", "arm64"} {
		write(t, filepath.Join(r.options.Bundle, "linux-"+arch, agentProgram), string(bytes.Repeat([]byte("x"), 1<<20)), 0o755)
	}
	_, err := Install(t.Context(), r, r.options)
	wantError(t, err, api.ResourceExhausted, "upload vendetta", "No space left on device", "free space")
	left, err := os.ReadDir(r.state("bin"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	// The keys of others survive a full disk as well.
	keys := filepath.Join(disk, "authorized_keys")
	write(t, keys, strings.Repeat("ssh-ed25519 AAAA somebody\n", 1000), 0o600)
	full, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	_ = full.Close()
	before := read(t, keys)
	runner := shell{home: r.home, env: []string{"VENDETTA_AUTHORIZED_KEYS=" + keys}}
	err = authorize(t.Context(), runner, entry{key: testKey, comment: "vendetta-server-x"})
	wantError(t, err, api.ResourceExhausted, "authorize")
	if read(t, keys) != before {
		t.Error("authorized keys were harmed")
	}
}

// Over real SSH: the first login with a lent key, by way of a jump host; the
// next ones with the server's own.
func TestOverSSH(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lentFile := filepath.Join(dir, "lent")
	lent, err := keys.Find(lentFile, "")
	if err != nil {
		t.Fatal(err)
	}
	own, err := keys.Find(filepath.Join(dir, "own"), "")
	if err != nil {
		t.Fatal(err)
	}
	start := func() (*testbed.SSHD, string) {
		home := t.TempDir()
		file := filepath.Join(home, ".ssh", "authorized_keys")
		write(t, file, keys.PublicLine(lent.PublicKey(), "lent")+"\n", 0o600)
		s, err := testbed.StartSSHD(t.Context(), testbed.SSHDOptions{
			Dir: t.TempDir(), AuthorizedKeysFile: file, Environment: map[string]string{"HOME": home},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Stop)
		return s, home
	}
	jump, jumpHome := start()
	node, nodeHome := start()
	o := ssh.Options{
		Host: node.Host, Port: node.Port, User: node.User, LocalUser: node.User, Key: own,
		Jump: []string{jump.User + "@" + jump.Addr}, HostKeys: []string{jump.Fingerprint, node.Fingerprint},
		Login: &ssh.Login{Identities: []string{lentFile}},
	}
	connect := func(o ssh.Options) *ssh.Transport {
		tr, err := ssh.New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		return tr
	}
	options := Options{Bundle: newBundle(t, "one"), ServerID: testServer, PublicKey: keys.PublicLine(own.PublicKey(), "")}
	for range 2 {
		got, err := Install(t.Context(), connect(o), options)
		if err != nil || len(got.Warnings) > 0 || got.StateDir != filepath.Join(nodeHome, ".local/state/vendetta") {
			t.Fatalf("install = %+v, %v\n%s", got, err, node.Log())
		}
	}
	line := keys.PublicLine(own.PublicKey(), "vendetta-server-"+testServer)
	for _, c := range []struct{ home, line string }{{nodeHome, line}, {jumpHome, forwardingOnly + line}} {
		if text := read(t, filepath.Join(c.home, ".ssh", "authorized_keys")); strings.Count(text, testServer) != 1 || !strings.Contains(text, "\n"+c.line+"\n") {
			t.Errorf("authorized keys = %q, want %q in them", text, c.line)
		}
	}

	// Nothing lent any more.
	o.Login = nil
	tr := connect(o)
	if _, err := Start(t.Context(), tr, filepath.Join(nodeHome, ".local/state/vendetta/bin/vendetta")); err != nil {
		t.Fatal(err)
	}
	if err := Uninstall(t.Context(), tr, options); err != nil {
		t.Fatal(err)
	}
	refused, err := ssh.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = refused.Close() }()
	if _, err := refused.Run(t.Context(), "true", nil); err == nil {
		t.Error("the key still opens the node")
	}
}

// jumping is a machine behind jump hosts that are gone.
type jumping struct {
	Runner
	jumps []*ssh.Jump
	err   error
}

func (j jumping) Jumps(context.Context) ([]*ssh.Jump, error) { return j.jumps, j.err }

func TestJumpHostThatRunsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, err := keys.Find(filepath.Join(dir, "key"), "")
	if err != nil {
		t.Fatal(err)
	}
	jump, err := testbed.StartSSHD(t.Context(), testbed.SSHDOptions{
		Dir: t.TempDir(), AuthorizedKeys: []string{keys.PublicLine(key.PublicKey(), "")}, Config: []string{"ForceCommand echo go away"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(jump.Stop)
	// One machine is both hosts, so its key has to be known for its address.
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, []byte(fmt.Sprintf("[%s]:%d %s\n", jump.Host, jump.Port, jump.HostKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	tr, err := ssh.New(ssh.Options{
		Host: jump.Host, Port: jump.Port, User: jump.User, Jump: []string{jump.User + "@" + jump.Addr},
		KnownHosts: []string{known}, Login: &ssh.Login{Identities: []string{filepath.Join(dir, "key")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	jumps, err := tr.Jumps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := newRemote(t)
	got, err := Install(t.Context(), jumping{Runner: r, jumps: jumps}, r.options)
	if err != nil || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], forwardingOnly+testLine) {
		t.Errorf("install = %+v, %v", got, err)
	}
	lost := errors.New("lost")
	if _, err := Install(t.Context(), jumping{Runner: r, err: lost}, r.options); !errors.Is(err, lost) {
		t.Errorf("got %v", err)
	}
}

func TestLocal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(newBundle(t, "x"), "linux-amd64", agentProgram)
	got, err := Local(t.Context(), program, dir)
	if err != nil || got.Socket != filepath.Join(dir, "agent", "agent.sock") || got.Program != program || got.StateDir != dir {
		t.Errorf("local = %+v, %v", got, err)
	}
	write(t, filepath.Join(dir, "busy"), "", 0o600)
	wantError(t, UninstallLocal(t.Context(), program, dir), api.FailedPrecondition, "uninstall node agent", "next: remove them")
	if err := os.Remove(filepath.Join(dir, "busy")); err != nil {
		t.Fatal(err)
	}
	if err := UninstallLocal(t.Context(), program, dir); err != nil {
		t.Error(err)
	}
	_, err = Local(t.Context(), "/does/not/exist", dir)
	wantError(t, err, api.Internal, "no such file")
	_, err = Local(t.Context(), "/bin/false", dir)
	wantError(t, err, api.FailedPrecondition, "exit status 1")
	_, err = Local(t.Context(), "/bin/echo", dir)
	wantError(t, err, api.Internal, "named no socket")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Local(ctx, program, dir)
	wantError(t, err, api.Unavailable)
}
