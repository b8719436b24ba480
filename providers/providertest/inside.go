package providertest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

func testVolumeIsKept(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	g := b.up(t, b.spec(workspace))
	g.script(t, "echo mine > kept; mkdir -p sub; echo deep > sub/kept")
	if b.Isolated {
		g.script(t, "echo mine > "+providers.Project+"/absolute; echo lost > /tmp/lost")
	}
	name := b.inspect(t, workspace).Name
	if err := b.p.Destroy(b.ctx, workspace, false); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	if ids := b.list(t); len(ids) != 0 {
		t.Errorf("list after destroy: %q", ids)
	}
	spec := b.spec(workspace)
	spec.Generation = 4
	if again := b.create(t, spec); again.Generation != 4 || again.Name != name {
		t.Errorf("created again %+v", again)
	}
	b.start(t, workspace)
	g = b.connect(t, workspace)
	if got := g.script(t, "cat kept sub/kept"); got != "mine\ndeep\n" {
		t.Errorf("kept %q", got)
	}
	if b.Isolated {
		g.script(t, "test -e "+providers.Project+"/absolute && test ! -e /tmp/lost")
	}
}

func testVolumeIsRemoved(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	b.up(t, b.spec(workspace)).script(t, "echo mine > kept")
	// First the instance, then, with nothing there any more, the volume.
	for _, removeVolume := range []bool{false, true} {
		if err := b.p.Destroy(b.ctx, workspace, removeVolume); err != nil {
			t.Fatalf("destroy: %v", err)
		}
	}
	if left := b.Leftovers(t, workspace); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	b.up(t, b.spec(workspace)).script(t, "test ! -e kept")
}

func testGuest(t *testing.T, b *bench) {
	g, _ := b.shown(t)
	if got := g.script(t, "echo out; echo err >&2"); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("output %q", got)
	}
	if r := g.run(t, "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("status %d", r.code)
	}
	if b.Isolated {
		if got := g.script(t, "pwd"); got != providers.Project+"\n" {
			t.Errorf("commands begin in %q", got)
		}
	}
}

func testConnectReplaces(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	first := b.up(t, b.spec(workspace))
	second := b.connect(t, workspace)
	if err := first.conn.SetReadDeadline(time.Now().Add(patience)); err == nil {
		// What was on the way may still be read, then the stream ends.
		for err == nil {
			_, err = first.conn.Read(make([]byte, 4096))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the earlier stream is open")
		}
	}
	if got := second.script(t, "echo second"); got != "second\n" {
		t.Errorf("ran %q", got)
	}
	// A stream that its holder closed is made anew the same way.
	second.close()
	if got := b.connect(t, workspace).script(t, "echo third"); got != "third\n" {
		t.Errorf("ran %q", got)
	}
}

func testConnectEnds(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	b.create(t, b.spec(workspace))
	if conn, err := b.p.Connect(b.ctx, workspace); err == nil {
		_ = conn.Close()
		t.Error("connected to a stopped instance")
	}
	b.start(t, workspace)
	ended, cancel := context.WithCancel(b.ctx)
	cancel()
	if conn, err := b.p.Connect(ended, workspace); err == nil {
		_ = conn.Close()
		t.Error("connected after the context's end")
	}
	b.connect(t, workspace)
}

func testCommandOutlivesProcess(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	g := b.up(t, b.spec(workspace))
	id := g.begin(t, "sh", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 7")
	b.restart(t)
	g = b.connect(t, workspace)
	g.script(t, "touch go")
	if r := g.attach(t, id); r.output != "begun\ndone\n" || r.code != 7 {
		t.Errorf("ended with %+v", r)
	}
}

func testImageEnvironment(t *testing.T, b *bench) {
	g, _ := b.shown(t)
	if got := strings.TrimSpace(g.script(t, "echo $"+b.ImageVariable)); got == "" || !strings.HasSuffix(b.Image, got) {
		t.Errorf("%s is %q", b.ImageVariable, got)
	}
}

func testImageUser(t *testing.T, b *bench) {
	workspace := b.workspace(t)
	spec := b.spec(workspace)
	spec.Image = b.UserImage
	check := func(g *guest) {
		t.Helper()
		if got := strings.TrimSpace(g.script(t, "id -u")); got != b.UserImageUID {
			t.Errorf("commands run as %q, want %q", got, b.UserImageUID)
		}
		g.script(t, "echo mine >> kept")
	}
	check(b.up(t, spec))
	if err := b.p.Destroy(b.ctx, workspace, false); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	g := b.up(t, spec)
	check(g)
	if got := g.script(t, "cat kept"); got != "mine\nmine\n" {
		t.Errorf("kept %q", got)
	}
}

func testIsolation(t *testing.T, b *bench) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	g, spec := b.shown(t)
	if got := strings.TrimSpace(g.script(t, "hostname")); got != spec.Name {
		t.Errorf("host name %q, want %q", got, spec.Name)
	}
	g.script(t, "test ! -e "+secret)
	g.script(t, "test ! -e /var/run/docker.sock && test ! -e /run/docker.sock")
	// Process 1 is the guest, and this machine's processes are not there; threads
	// of a kernel of its own have no command line.
	if got := g.script(t, "tr '\\0' ' ' < /proc/1/cmdline"); !strings.Contains(got, filepath.Base(providers.GuestProgram)) && !strings.Contains(got, "vendetta") {
		t.Errorf("process 1 is %q", got)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(g.script(t, "grep -l . /proc/[0-9]*/cmdline 2>/dev/null | wc -l"))); err != nil || n > 12 {
		t.Errorf("%d processes are visible, %v", n, err)
	}
	if _, err := os.Stat(filepath.Join(providers.Project, "made-inside")); !errors.Is(err, fs.ErrNotExist) {
		t.Skip("this machine has a " + providers.Project + " with such a file of its own")
	}
	g.script(t, "touch made-inside")
	if _, err := os.Stat(filepath.Join(providers.Project, "made-inside")); err == nil {
		t.Error("the workspace writes to this machine's own folder")
	}
}

func testReadOnlyParts(t *testing.T, b *bench) {
	g, _ := b.shown(t)
	for _, path := range []string{providers.GuestLink + "/new", providers.GuestProgram} {
		if r := g.run(t, "sh", "-c", "echo x > "+path); r.code == 0 {
			t.Errorf("%s can be written inside", path)
		}
	}
	if r := g.run(t, "sh", "-c", "rm "+providers.GuestLink+"/"+providers.GuestSocket); r.code == 0 {
		t.Error("the link's socket can be removed inside")
	}
}

// Capabilities that an instance must not have, by their bits in capabilities(7).
var refused = map[string]uint{
	"SETPCAP": 8, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19,
	"SYS_ADMIN": 21, "SYS_BOOT": 22, "MKNOD": 27, "AUDIT_WRITE": 29, "SETFCAP": 31,
}

func testCapabilities(t *testing.T, b *bench) {
	g, _ := b.shown(t)
	status := map[string]string{}
	for line := range strings.Lines(g.script(t, "cat /proc/self/status")) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	if status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs is %q", status["NoNewPrivs"])
	}
	if status["Seccomp"] != "2" {
		t.Errorf("Seccomp is %q", status["Seccomp"])
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"} {
		bits, err := strconv.ParseUint(status[set], 16, 64)
		if err != nil {
			t.Fatalf("%s: %v", set, err)
		}
		for name, bit := range refused {
			if bits&(1<<bit) != 0 {
				t.Errorf("%s holds %s", set, name)
			}
		}
	}
}

func testNetworkNone(t *testing.T, b *bench) {
	spec := b.spec(b.workspace(t))
	spec.Network = providers.NetworkNone
	g := b.up(t, spec)
	if got := strings.Fields(g.script(t, "tail -n +3 /proc/net/dev | cut -d: -f1")); len(got) != 1 || got[0] != "lo" {
		t.Errorf("interfaces %q", got)
	}
}
