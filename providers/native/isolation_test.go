//go:build linux

package native

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

func TestIsolation(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1", Name: "box"})
	r.up(providers.Spec{Workspace: "w2"})

	t.Run("identity", func(t *testing.T) {
		r.want("w1", "id -u; pwd; hostname; cat /etc/hostname", "0\n/workspace\nbox\nbox")
		r.want("w1", "grep -c box /etc/hosts", "1")
		r.want("w1", "echo $VENDETTA_GUEST_USER $HOME", "root /root")
		r.want("w1", "cat /proc/1/cmdline | tr '\\0' ' '",
			"/.vendetta/bin/vendetta-guest --link /.vendetta/link/guest.sock --state /.vendetta/state --project /workspace")
	})
	t.Run("secrets", func(t *testing.T) {
		// Empty, for what covers it; unreadable would do as well.
		for _, path := range []string{"/etc/shadow", "/etc/gshadow", "/etc/shadow-"} {
			if out, _ := r.sh("w1", "cat "+path+" 2>/dev/null"); out != "" {
				t.Errorf("%s: %q", path, out)
			}
		}
		r.want("w1", "ls -A /etc/ssh /etc/ssl/private /root /home 2>/dev/null | grep -v :$ | xargs", "")
		for _, path := range []string{r.dir, "/var/run/docker.sock", "/run/docker.sock", "/run/dbus", "/boot", "/srv", "/var/lib/docker", "/sys/kernel", "/work"} {
			r.refused("w1", "test -e "+path)
		}
	})
	t.Run("processes", func(t *testing.T) {
		host := strconv.Itoa(os.Getpid())
		out, _ := r.sh("w1", "ls -d /proc/[0-9]*")
		if n := len(strings.Fields(out)); n > 4 {
			t.Errorf("%d processes are visible: %s", n, out)
		}
		if len(host) > 2 {
			r.refused("w1", "kill -0 "+host)
		}
		r.refused("w1", "readlink /proc/1/root/../"+r.dir)
	})
	t.Run("other workspace", func(t *testing.T) {
		r.want("w2", "echo mine > /workspace/secret; cat /workspace/secret", "mine")
		r.refused("w1", "test -e /workspace/secret")
		r.refused("w1", "cat "+filepath.Join(r.volumeDir("w2"), "workspace", "secret"))
		if os.Geteuid() == 0 {
			a, _ := r.volume("w1")
			b, _ := r.volume("w2")
			if a.IDBase == b.IDBase {
				t.Error("both have the same ids")
			}
		}
	})
	t.Run("read-only", func(t *testing.T) {
		for _, path := range []string{"/usr/x", "/usr/bin/x", "/opt/x", "/lib/x", "/sys/x", "/.vendetta/link/x", "/proc/sys/kernel/hostname"} {
			r.refused("w1", "echo x > "+path)
		}
		r.refused("w1", "echo x >> /.vendetta/bin/vendetta-guest")
		r.refused("w1", "rm -f /.vendetta/link/guest.sock")
		r.refused("w1", "mount -o remount,rw /usr")
		r.refused("w1", "umount /etc/shadow")
	})
	t.Run("writable", func(t *testing.T) {
		for _, dir := range []string{"/workspace", "/tmp", "/home", "/root", "/run", "/var/tmp", "/var/lib", "/dev/shm", "/etc", "/.vendetta/state"} {
			r.want("w1", "echo yes > "+dir+"/file; cat "+dir+"/file", "yes")
		}
	})
	t.Run("system", func(t *testing.T) {
		r.want("w1", "ls / >/dev/null; echo x > /dev/null; head -c 3 /dev/zero | wc -c; test -c /dev/urandom; test -e /dev/ptmx", "3")
		r.want("w1", "readlink /var/run", "/run")
		if _, err := os.Stat("/usr/local/go/bin/go"); err == nil {
			r.want("w1", "go env GOOS", "linux")
		}
	})
	t.Run("confined", func(t *testing.T) {
		r.want("w1", "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | xargs", strings.TrimSpace(strings.Repeat("00000000000404fb ", 3)))
		r.want("w1", "grep -E 'Cap(Inh|Amb)' /proc/self/status | cut -f2 | xargs", "0000000000000000 0000000000000000")
		r.want("w1", "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | cut -f2 | xargs", "1 2")
		r.refused("w1", "unshare -U true")
		r.refused("w1", "unshare -m true")
		r.refused("w1", "mkdir -p /mnt; mount -t tmpfs x /mnt")
		r.refused("w1", "mount --bind / /tmp")
		r.refused("w1", "mknod /tmp/sda b 8 0")
		r.refused("w1", "hostname other")
		r.refused("w1", "dmesg")
		r.want("w1", "cat /proc/keys /proc/kallsyms", "")
	})
	t.Run("descriptors", func(t *testing.T) {
		out, _ := r.sh("w1", "readlink /proc/1/fd/*")
		for _, line := range strings.Fields(out) {
			if strings.HasPrefix(line, "/") && line != "/dev/null" && !strings.HasSuffix(line, "/guest.log") {
				t.Errorf("open in the guest: %s", line)
			}
		}
	})
}

// With a root agent many ids work inside and none is anybody's outside.
func TestIDs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user's workspace has one id")
	}
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	r.want("w1", "touch /workspace/f; chown 1000:1000 /workspace/f; stat -c %u:%g /workspace/f", "1000:1000")
	v, err := r.volume("w1")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(r.volumeDir("w1"), "workspace", "f"), &st); err != nil || st.Uid != v.IDBase+1000 {
		t.Errorf("owner outside is %d, want %d (%v)", st.Uid, v.IDBase+1000, err)
	}
	for _, dir := range []string{r.dir, r.instanceDir("w1"), r.volumeDir("w1"), filepath.Join(r.dir, "volumes")} {
		if err := unix.Lstat(dir, &st); err != nil || st.Mode&0o077 != 0 || st.Uid != 0 {
			t.Errorf("%s: mode %o of %d (%v)", dir, st.Mode&0o777, st.Uid, err)
		}
	}
}

// What a workspace leaves in its own folders may spoil its next start at most,
// and never leads out.
func TestHostileRoot(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	marker := filepath.Join(r.dir, "marker")
	if err := os.WriteFile(marker, []byte("untouched"), 0o666); err != nil {
		t.Fatal(err)
	}
	// A mount point cannot be replaced while it is one, so from the outside.
	root := filepath.Join(r.instanceDir("w1"), "root")
	if err := r.Stop(t.Context(), "w1", 0); err != nil {
		t.Fatal(err)
	}
	delete(r.conns, "w1")
	upper := filepath.Join(r.instanceDir("w1"), "etc", "upper")
	for path, to := range map[string]string{
		filepath.Join(root, "workspace"):   "/etc",
		filepath.Join(root, "run"):         r.dir,
		filepath.Join(root, "dev"):         "../../../..",
		filepath.Join(root, "var", "lock"): marker,
		filepath.Join(upper, "hosts"):      marker,
		filepath.Join(upper, "hostname"):   "../../../../marker",
	} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Start(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	r.want("w1", "cat /etc/hostname; ls -d /workspace /run /dev", "box-w1\n/dev\n/run\n/workspace")
	if raw, err := os.ReadFile(marker); err != nil || string(raw) != "untouched" {
		t.Errorf("%q, %v", raw, err)
	}
}

func TestNetworks(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "none", Network: providers.NetworkNone})
	r.up(providers.Spec{Workspace: "host", Network: providers.NetworkHost})
	r.want("none", "ls /proc/sys/net/ipv4/conf | xargs", "all default lo")
	r.want("none", "tail -n +2 /proc/net/route", "")
	inside, _ := r.sh("host", "readlink /proc/self/ns/net")
	if outside, err := os.Readlink("/proc/self/ns/net"); err != nil || inside != outside {
		t.Errorf("%s, want %s (%v)", inside, outside, err)
	}
	own, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	r.want("host", "cat /etc/resolv.conf", strings.TrimSpace(string(own)))
}

func TestRemoveDeepAndClosedTrees(t *testing.T) {
	r := newRig(t)
	r.up(providers.Spec{Workspace: "w1"})
	r.want("w1", "mkdir -p a/b; touch a/b/c; chmod 000 a/b a; ln -s / out; mkfifo pipe", "")
	r.want("w1", "i=0; while [ $i -lt 200 ]; do mkdir d; touch f; cd d; i=$((i+1)); done", "")
	if err := r.Destroy(t.Context(), "w1", true); err != nil {
		t.Fatal(err)
	}
	r.trash.Wait()
	left, err := os.ReadDir(filepath.Join(r.dir, "trash"))
	if err != nil || len(left) > 0 {
		t.Errorf("the trash holds %v (%v)", left, err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}
