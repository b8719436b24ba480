//go:build linux

package boot

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// apart runs a test in namespaces of its own, on a thread that ends with it. Only
// root can; an ordinary user's run leaves these tests to root's.
func apart(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		run(t)
	}()
	<-done
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
		runtime.Goexit()
	}
}

// ext4 makes a disk image and returns a loop device of it. With a size, in the
// words of mkfs, the file system leaves the rest of the disk empty.
func ext4(t *testing.T, dir, name string, size ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	do(t, os.WriteFile(path, nil, 0o600), os.Truncate(path, 32<<20))
	if said, err := exec.Command("mkfs.ext4", append([]string{"-q", "-F", path}, size...)...).CombinedOutput(); err != nil {
		t.Errorf("mkfs.ext4: %v: %s", err, said)
		runtime.Goexit()
	}
	said, err := exec.Command("losetup", "--show", "-f", path).Output()
	do(t, err)
	device := strings.TrimSpace(string(said))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "-d", device).Run(); err != nil {
			t.Error(err)
		}
	})
	return device
}

// fakeMachine shows disks as a kernel does.
func fakeMachine(t *testing.T, disks map[string]string) machine {
	t.Helper()
	m := machine{sys: t.TempDir(), dev: t.TempDir()}
	i := 0
	for serial, device := range disks {
		name := "vd" + string(rune('a'+i))
		i++
		for path, content := range map[string]string{
			filepath.Join("block", name, "serial"):     serial,
			filepath.Join("class/block", name, "size"): strconv.Itoa(32<<20/512) + "\n",
		} {
			at := filepath.Join(m.sys, path)
			do(t, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(content), 0o644))
		}
		do(t, os.Symlink(device, filepath.Join(m.dev, name)))
	}
	return m
}

// A machine is made from an initramfs and two disks, as far as that goes without
// a kernel of its own.
func TestStart(t *testing.T) {
	apart(t, func(t *testing.T) {
		dir := t.TempDir()
		root, volume := ext4(t, dir, "root"), ext4(t, dir, "volume")
		seed := filepath.Join(dir, "seed")
		do(t, os.WriteFile(seed, append([]byte(`{"Hostname":"box","Env":["A=b","=x"],"User":"dev","Nameserver":"10.0.2.3"}`), make([]byte, 400)...), 0o600))
		fake := fakeMachine(t, map[string]string{serialRoot: root, serialVolume: volume, serialSeed: seed})
		was, env := thisMachine, os.Environ()
		thisMachine = fake
		defer func() {
			thisMachine = was
			os.Clearenv()
			for _, e := range env {
				k, v, _ := strings.Cut(e, "=")
				_ = os.Setenv(k, v)
			}
		}()
		// The initramfs is a folder here: what is mounted lies in it, and it is the
		// root of this thread.
		initramfs := t.TempDir()
		do(t, unix.Mount("initramfs", initramfs, "tmpfs", 0, ""))
		for _, d := range []string{filepath.Dir(fake.sys), fake.sys, fake.dev, dir, "/dev"} {
			do(t, os.MkdirAll(filepath.Join(initramfs, d), 0o755))
		}
		for _, d := range []string{fake.sys, fake.dev, dir} {
			do(t, unix.Mount(d, filepath.Join(initramfs, d), "", unix.MS_BIND, ""))
		}
		self, err := os.Executable()
		do(t, err)
		at := filepath.Join(initramfs, self)
		do(t, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte("the guest"), 0o755))
		do(t, os.MkdirAll(filepath.Join(initramfs, newRoot), 0o755))
		do(t, os.Chdir(initramfs), unix.Chroot("."))
		c, err := Start(t.Context())
		do(t, err)
		if c.Hostname != "box" || c.User != "dev" || !slices.Equal(c.Env, []string{"A=b", "=x"}) {
			t.Errorf("config %+v", c)
		}
		if raw, err := os.ReadFile(program); err != nil || string(raw) != "the guest" {
			t.Errorf("the guest's program is %q, %v", raw, err)
		}
		for _, path := range []string{program, ownDir + "/link/new"} {
			if err := os.WriteFile(path, []byte("x"), 0o644); err == nil {
				t.Errorf("%s can be written", path)
			}
		}
		for _, path := range []string{ProjectDir + "/mine", StateDir + "/mine", "/tmp/mine", "/dev/shm/mine", "/run/mine"} {
			do(t, os.WriteFile(path, nil, 0o644))
		}
		for path, want := range map[string]string{"/etc/hostname": "box\n", "/etc/resolv.conf": "nameserver 10.0.2.3\n"} {
			if raw, err := os.ReadFile(path); err != nil || string(raw) != want {
				t.Errorf("%s: %q, %v", path, raw, err)
			}
		}
		if os.Getenv("A") != "b" || os.Getenv("PATH") != defaultPath || os.Getenv("HOME") != "" {
			t.Errorf("environment %q", os.Environ())
		}
		var uts unix.Utsname
		do(t, unix.Uname(&uts))
		if got := unix.ByteSliceToString(uts.Nodename[:]); got != "box" {
			t.Errorf("host name %q", got)
		}
		groupDir = StateDir
		defer func() { groupDir = "/sys/fs/cgroup" }()
		do(t, limit(40))
		if raw, err := os.ReadFile(StateDir + "/workspace/pids.max"); err != nil || string(raw) != "40" {
			t.Errorf("limit %q, %v", raw, err)
		}
		if err := limit(40); err == nil {
			t.Error("a group was made twice")
		}
		off := 0
		reboot = func(int) error { off++; return errors.New("not here") }
		sync = func() {} // the node's disks are not meant
		defer func() { reboot, sync = unix.Reboot, unix.Sync }()
		Off(slog.New(slog.DiscardHandler))
		if err := os.WriteFile(ProjectDir+"/late", nil, 0o644); off != 1 || !errors.Is(err, unix.EROFS) {
			t.Errorf("switched off %d times, and then wrote: %v", off, err)
		}
		thisMachine = machine{sys: filepath.Join(StateDir, "sys"), dev: filepath.Join(StateDir, "dev")}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := thisMachine.growAll(ended); err == nil {
			t.Error("grew disks that are not there")
		}
		_ = unix.Chroot("/proc/1/root")
		for _, d := range []string{newRoot, volumeRoot} {
			_ = unix.Unmount(filepath.Join(initramfs, d), unix.MNT_DETACH)
		}
	})
}

func TestNetwork(t *testing.T) {
	apart(t, func(t *testing.T) {
		c := Config{Address: "10.0.2.15/24", Gateway: "10.0.2.2"}
		if err := setUpNetwork(c); err == nil || !strings.Contains(err.Error(), "no network card") {
			t.Errorf("without a card: %v", err)
		}
		if said, err := exec.Command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, said)
			return
		}
		do(t, setUpNetwork(c))
		for _, want := range []struct{ what, has string }{{"addr", "10.0.2.15/24"}, {"route", "default via 10.0.2.2"}} {
			said, err := exec.Command("ip", want.what).Output()
			if err != nil || !strings.Contains(string(said), want.has) {
				t.Errorf("ip %s: %s, %v", want.what, said, err)
			}
		}
		for _, bad := range []Config{{Address: "nowhere"}, {Address: "10.0.2.15/24", Gateway: "nobody"}, {Address: "10.0.2.15/24", Gateway: "192.168.7.7"}} {
			if err := setUpNetwork(bad); err == nil {
				t.Errorf("set up %+v", bad)
			}
		}
	})
}

func TestAttach(t *testing.T) {
	apart(t, func(t *testing.T) {
		dir := t.TempDir()
		was := thisMachine
		thisMachine = fakeMachine(t, map[string]string{serialVolume: ext4(t, dir, "volume")})
		defer func() { thisMachine = was }()
		top := t.TempDir()
		do(t, unix.Mount("top", top, "tmpfs", 0, ""))
		for _, d := range []string{thisMachine.sys, thisMachine.dev, dir, "/dev"} {
			at := filepath.Join(top, d)
			do(t, os.MkdirAll(at, 0o755), unix.Mount(d, at, "", unix.MS_BIND|unix.MS_REC, ""))
		}
		do(t, os.Chdir(top), unix.Chroot("."))
		for range 2 {
			do(t, Attach(t.Context()))
		}
		for _, path := range []string{ProjectDir + "/mine", StateDir + "/mine"} {
			if err := os.WriteFile(path, nil, 0o644); err != nil && !errors.Is(err, os.ErrExist) {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(attachedVolume, filepath.Base(filepath.Dir(path)), "mine")); err != nil {
				t.Errorf("%s is not on the volume: %v", path, err)
			}
		}
		for _, at := range []string{ProjectDir, StateDir, attachedVolume} {
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
}

func TestWordsAreObeyed(t *testing.T) {
	var did []string
	d := deeds{
		stop:  func() { did = append(did, "stop") },
		off:   func() { did = append(did, "off") },
		grow:  func() error { return errors.New("no\nroom") },
		clock: func(at time.Time) error { did = append(did, at.UTC().Format("2006")); return nil },
	}
	for line, want := range map[string]string{
		"": "", "stop": "", "stop 1": "done 1", "off 2": "done 2", "grow 3": "failed 3 no room", "clock 4 86400000000000000": "done 4",
		"dance 6": "failed 6 this guest does not know dance",
	} {
		if got := d.obey(line); got != want {
			t.Errorf("%q is answered %q, want %q", line, got, want)
		}
	}
	if got := d.obey("clock 5 soon"); !strings.HasPrefix(got, "failed 5 ") {
		t.Errorf("a time that is none: %q", got)
	}
	slices.Sort(did)
	if !slices.Equal(did, []string{"1972", "off", "stop"}) {
		t.Errorf("did %q", did)
	}
}

func TestObey(t *testing.T) {
	m, far := fakePort(t, ControlPort)
	was := thisMachine
	thisMachine = m
	defer func() { thisMachine = was }()
	log := slog.New(slog.DiscardHandler)
	for what, obey := range map[string]func(ctx context.Context, stop func()){
		"done":   func(ctx context.Context, stop func()) { Obey(ctx, stop, log) },
		"failed": func(ctx context.Context, _ func()) { ObeyAttached(ctx, log) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			obey(ctx, func() {})
		}()
		word := "stop"
		if what == "failed" {
			word = "dance" // the real words would be heard by the first process here
		}
		if _, err := far.WriteString(word + " 7\n"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 128)
		n, err := far.Read(got)
		if err != nil || !strings.HasPrefix(string(got[:n]), what+" 7") {
			t.Errorf("%s: %q, %v", what, got[:n], err)
		}
		cancel()
		<-ended
	}
	thisMachine = machine{sys: "/none"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	Obey(ctx, nil, log)
}

// fakePort is a terminal's end in place of a port's: it is read and written the
// same way.
func fakePort(t *testing.T, name string) (machine, *os.File) {
	t.Helper()
	m := machine{sys: t.TempDir(), dev: t.TempDir()}
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	fd := int(far.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	near := "/dev/pts/" + strconv.Itoa(number)
	f, err := os.OpenFile(near, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	tio, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		tio.Lflag, tio.Iflag, tio.Oflag = 0, 0, 0
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, tio)
	}
	at := filepath.Join(m.sys, "class/virtio-ports/vport0p1/name")
	if err = errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(name+"\n"), 0o644), os.Symlink(near, filepath.Join(m.dev, "vport0p1"))); err != nil {
		t.Fatal(err)
	}
	return m, far
}

func TestControlPortAnswers(t *testing.T) {
	m, far := fakePort(t, ControlPort)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.listen(ctx, func(line string) string { return "heard " + line }) }()
	if _, err := far.WriteString("one\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64)
	n, err := far.Read(got)
	if err != nil || string(got[:n]) != "heard one\n" {
		t.Errorf("%q, %v", got[:n], err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := (machine{sys: "/none"}).listen(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestPortIsAStream(t *testing.T) {
	m, far := fakePort(t, LinkPort)
	conn, err := m.dial(t.Context(), LinkPort)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if conn.LocalAddr().String() != LinkPort || conn.RemoteAddr().Network() != "virtio" {
		t.Errorf("addresses %v, %v", conn.LocalAddr(), conn.RemoteAddr())
	}
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read after the deadline: %v", err)
	}
	_ = far
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	was := thisMachine
	thisMachine = machine{sys: "/none", dev: "/none"}
	defer func() { thisMachine = was }()
	if _, err := LinkDialer()(ended); err == nil {
		t.Error("dialled a port that is not there")
	}
	if err := Attach(ended); err == nil {
		t.Error("attached a disk that is not there")
	}
	if err := mountDisks(ended); err == nil {
		t.Error("mounted a disk that is not there")
	}
}

func TestAClockIsNotSetBefore1970(t *testing.T) {
	if err := setClock(time.Unix(-1, 0)); err == nil {
		t.Error("it was")
	}
}

func TestWanted(t *testing.T) {
	if Wanted() {
		t.Error("a test is taken for the first process of a machine")
	}
}

func TestFilesystemIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	for _, size := range []int{0, 4096} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := filesystem(path); err == nil {
			t.Errorf("%d zeros are a file system", size)
		}
	}
	m := machine{sys: t.TempDir()}
	if err := m.grow("/", path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk without size: %v", err)
	}
}

func TestSeedMakesNoSense(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{path, path + ".absent"} {
		if _, err := readConfig(at); err == nil {
			t.Errorf("read %s", at)
		}
	}
}

func TestModulesThatDoNotLoad(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "order"), []byte("one.ko\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := loadModules(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing one: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "one.ko"), []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := loadModules(dir); err == nil {
		t.Error("loaded what is no module")
	}
}
