//go:build linux

package native

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers/network"
)

// The main thread cannot be thrown away, and it is what /proc/self shows: no test
// shall run on it.
func init() { runtime.LockOSThread() }

// inNamespaces runs do on a thread with namespaces of its own, which is thrown
// away afterwards: so the steps of the init stage run in this process, where
// coverage sees them. User namespaces cannot be made by a threaded program, hence
// root alone.
func inNamespaces(t *testing.T, do func() error) error {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a threaded program makes namespaces as root only; the other tests run these steps in a process of their own")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// layout makes an instance's folders without a provider's help.
func layout(t *testing.T) (plan, string) {
	t.Helper()
	r := newRig(t)
	r.machine.root = false
	if _, err := r.Create(t.Context(), spec("w1")); err != nil {
		t.Fatal(err)
	}
	rec, err := r.load("w1")
	if err != nil {
		t.Fatal(err)
	}
	pl := r.plan("w1", rec, volume{}, nil)
	return pl, r.instanceDir("w1")
}

func TestBuildRoot(t *testing.T) {
	pl, _ := layout(t)
	pl.Range = true
	err := inNamespaces(t, func() error {
		if err := buildRoot(&pl); err != nil {
			return err
		}
		var errs []error
		for _, path := range []string{"/usr/bin", "/workspace", "/dev/null", "/dev/pts", "/proc/1", "/etc/passwd", "/.vendetta/bin/vendetta-guest", "/run/lock"} {
			_, err := os.Stat(path)
			errs = append(errs, err)
		}
		for _, path := range []string{"/work", "/boot", "/.vendetta/etc/upper", "/etc/ssh/sshd_config"} {
			if _, err := os.Stat(path); err == nil {
				errs = append(errs, errors.New(path+" is visible"))
			}
		}
		raw, err := os.ReadFile("/etc/hostname")
		errs = append(errs, err)
		if string(raw) != "w1\n" {
			errs = append(errs, errors.New("host name "+string(raw)))
		}
		errs = append(errs, sealProc())
		// This thread is root of the machine, so only the mount refuses.
		if err := os.WriteFile("/proc/sys/kernel/domainname", []byte("x"), 0); !errors.Is(err, unix.EROFS) {
			errs = append(errs, errors.New("/proc/sys is writable"))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBuildImageRoot(t *testing.T) {
	pl, dir := layout(t)
	lower := filepath.Join(dir, "image, a:b")
	l := &layers{Lower: lower, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	must(t, os.MkdirAll(filepath.Join(lower, "bin"), 0o755), os.WriteFile(filepath.Join(lower, "bin", "own"), nil, 0o755),
		os.Symlink("/proc/1", filepath.Join(lower, "etc")), os.Symlink("nowhere", filepath.Join(lower, ".vendetta")),
		os.Mkdir(l.Upper, 0o755), os.Mkdir(l.Work, 0o755))
	image := plan{Hostname: "w1", Links: map[string]string{}, Files: pl.Files, Devices: pl.Devices}
	image.Mounts = append(image.Mounts, pl.Mounts[len(pl.Mounts)-4:]...) // the workspace's own
	image.useImage(l)
	failing := image
	failing.Root.Layers = &layers{Lower: filepath.Join(dir, "absent")}
	if err := inNamespaces(t, func() error { return buildRoot(&failing) }); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("without its image: %v", err)
	}
	err := inNamespaces(t, func() error {
		if err := buildRoot(&image); err != nil {
			return err
		}
		var errs []error
		for _, path := range []string{"/bin/own", "/tmp", "/run/lock", "/workspace", "/dev/null", "/proc/1", "/.vendetta/bin/vendetta-guest"} {
			_, err := os.Stat(path)
			errs = append(errs, err)
		}
		raw, err := os.ReadFile("/etc/hostname")
		if err == nil && string(raw) != "w1\n" {
			err = errors.New("host name " + string(raw))
		}
		return errors.Join(append(errs, err)...)
	})
	if err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(lower); err != nil || len(entries) != 3 {
		t.Errorf("the image has %v (%v)", entries, err)
	}
	// Limits that change nothing here.
	must(t, limitMemory(0), limitMemory(1<<50), limitProcesses(1<<50, true))
}

// Where overlayfs is refused, our files are bound over the machine's.
func TestEtcWithoutOverlay(t *testing.T) {
	pl, dir := layout(t)
	if err := os.Remove(filepath.Join(dir, "etc", "work")); err != nil {
		t.Fatal(err)
	}
	pl.Files["absent-on-this-machine"] = "x"
	err := inNamespaces(t, func() error {
		if err := buildRoot(&pl); err != nil {
			return err
		}
		raw, err := os.ReadFile("/etc/hosts")
		if err == nil && !strings.Contains(string(raw), "w1") {
			err = errors.New("the machine's /etc/hosts is seen")
		}
		if werr := os.WriteFile("/etc/new", nil, 0o600); !errors.Is(werr, unix.EROFS) {
			err = errors.Join(err, errors.New("/etc is writable"))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBuildRootRefusals(t *testing.T) {
	// Nothing of the machine's: these steps replace what is in their way.
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		spoil func(pl *plan)
		want  string
	}{
		"tree":   {func(pl *plan) { pl.Mounts[0].Path = "/absent" }, "open_tree /absent"},
		"device": {func(pl *plan) { pl.Devices[0].Path = "/dev/absent" }, "open_tree /dev/absent"},
		"kind":   {func(pl *plan) { pl.Mounts[0].File = true }, "mount "},
		"target": {func(pl *plan) { pl.Mounts[0].Target = "/proc/absent/x" }, "/proc/absent"},
		"link":   {func(pl *plan) { pl.Links["/proc/absent/x"] = "y" }, "/proc/absent"},
		"upper":  {func(pl *plan) { pl.EtcUpper.Path = plain }, "mount "},
		"files":  {func(pl *plan) { pl.Files["absent/hosts"] = "" }, "absent/hosts"},
		"lower":  {func(pl *plan) { pl.EtcLower.Path = plain }, "mount /etc"},
		"var": {func(pl *plan) {
			dir := filepath.Join(pl.Root.Path, "var")
			if err := errors.Join(os.RemoveAll(dir), os.Symlink("/proc/absent", dir)); err != nil {
				panic(err)
			}
		}, "/var"},
		"root": {func(pl *plan) { pl.Root.Path = plain }, "root"},
	} {
		pl, _ := layout(t)
		c.spoil(&pl)
		if err := inNamespaces(t, func() error { return buildRoot(&pl) }); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestProbeRoot(t *testing.T) {
	pl := plan{Probe: true, Links: map[string]string{}, Mounts: []mount{{Target: "/usr", Path: "/usr"}}}
	if err := inNamespaces(t, func() error { return buildRoot(&pl) }); err != nil {
		t.Error(err)
	}
}

func TestConfigureNetwork(t *testing.T) {
	up := func(pl plan, prepare func(nl *network.Netlink) error) error {
		return inNamespaces(t, func() error {
			nl, err := network.Dial()
			if err != nil {
				return err
			}
			defer nl.Close()
			if prepare != nil {
				if err := prepare(nl); err != nil {
					return err
				}
			}
			return configureNetwork(pl)
		})
	}
	pair := func(nl *network.Netlink) error { return nl.Veth("other", guestInterface, unix.Gettid()) }
	if err := up(plan{OwnNetwork: true}, nil); err != nil {
		t.Error(err)
	}
	if err := up(plan{OwnNetwork: true, Range: true, Address: "10.231.0.2/30", Gateway: "10.231.0.1"}, pair); err != nil {
		t.Error(err)
	}
	if err := up(plan{OwnNetwork: true, Address: "10.231.0.2/30", Gateway: "10.231.0.1"}, nil); err == nil {
		t.Error("configured an interface that is not there")
	}
	if err := up(plan{OwnNetwork: true, Address: "10.231.0.2/30", Gateway: "192.0.2.1"}, pair); err == nil {
		t.Error("routed through a gateway out of reach")
	}
}

func TestConfine(t *testing.T) {
	var status string
	err := inNamespaces(t, func() error {
		if err := confine(); err != nil {
			return err
		}
		raw, err := os.ReadFile("/proc/thread-self/status")
		status = string(raw)
		if merr := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""); !errors.Is(merr, unix.EPERM) {
			err = errors.Join(err, errors.New("it may mount"))
		}
		if uerr := unix.Unshare(unix.CLONE_NEWUTS); !errors.Is(uerr, unix.EPERM) {
			err = errors.Join(err, errors.New("it may unshare"))
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.ENOSYS {
			err = errors.Join(err, errors.New("clone3: "+errno.Error()))
		}
		if again := confine(); again == nil { // without CAP_SETPCAP
			err = errors.Join(err, errors.New("it may still change its bounding set"))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"CapEff:\t00000000000404fb", "CapBnd:\t00000000000404fb", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("%s is missing in\n%s", want, status)
		}
	}
}

// The filter is checked by a small interpreter of what it uses of BPF.
func TestFilter(t *testing.T) {
	const arch = unix.AUDIT_ARCH_X86_64
	run := func(p []unix.SockFilter, data map[uint32]uint32) uint32 {
		var a uint32
		for i := 0; i < len(p); i++ {
			in := p[i]
			hit := false
			switch in.Code {
			case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
				a = data[in.K]
				continue
			case unix.BPF_RET | unix.BPF_K:
				return in.K
			case unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ:
				hit = a == in.K
			case unix.BPF_JMP | unix.BPF_K | unix.BPF_JGE:
				hit = a >= in.K
			case unix.BPF_JMP | unix.BPF_K | unix.BPF_JSET:
				hit = a&in.K != 0
			default:
				t.Fatalf("code %#x", in.Code)
			}
			if hit {
				i += int(in.Jt)
			} else {
				i += int(in.Jf)
			}
		}
		t.Fatal("ran off the end")
		return 0
	}
	p := program(arch, true)
	for _, c := range []struct {
		arch, number, arg0, arg1, want uint32
	}{
		{arch, unix.SYS_READ, 0, 0, allow},
		{arch, unix.SYS_MOUNT, 0, 0, eperm},
		{arch, unix.SYS_IO_URING_REGISTER, 0, 0, eperm},
		{arch, unix.SYS_CLONE3, 0, 0, enosys},
		{arch, unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_THREAD, 0, allow},
		{arch, unix.SYS_CLONE, unix.CLONE_NEWUSER, 0, eperm},
		{arch, unix.SYS_UNSHARE, unix.CLONE_FS, 0, allow},
		{arch, unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, eperm},
		{arch, unix.SYS_IOCTL, 0, unix.TIOCGWINSZ, allow},
		{arch, unix.SYS_IOCTL, 0, unix.TIOCSTI, eperm},
		{arch, unix.SYS_READ | x32Bit, 0, 0, enosys},
		{unix.AUDIT_ARCH_I386, unix.SYS_READ, 0, 0, enosys},
	} {
		got := run(p, map[uint32]uint32{dataArch: c.arch, dataNumber: c.number, dataArg0: c.arg0, dataArg1: c.arg1})
		if got != c.want {
			t.Errorf("%+v: %#x", c, got)
		}
	}
	if plain := program(unix.AUDIT_ARCH_AARCH64, false); len(plain) != len(p)-2 {
		t.Error(len(plain), len(p))
	}
}

// The init stage with a plan that is none.
func TestStageRefusesPlans(t *testing.T) {
	for _, text := range []string{"", "{\n", "no end"} {
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		if err := stage(in); err == nil || !strings.Contains(err.Error(), "read plan") {
			t.Errorf("%q: %v", text, err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The steps in their order, up to the one that is refused on purpose: on this
// machine's own user namespace it would forbid all others.
func TestStageSaysWhichStepFailed(t *testing.T) {
	pl, _ := layout(t)
	raw, err := json.Marshal(pl)
	if err != nil {
		t.Fatal(err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	if _, err := out.Write(append(raw, '\n')); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	err = inNamespaces(t, func() error {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&head, &data[0]); err != nil {
			return err
		}
		for i := range data {
			data[i].Inheritable = 0
		}
		data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		data[0].Permitted &^= 1 << unix.CAP_SYS_RESOURCE
		if err := unix.Capset(&head, &data[0]); err != nil {
			return err
		}
		return stage(in)
	})
	if err == nil || !strings.HasPrefix(err.Error(), "user namespaces: ") {
		t.Error(err)
	}
}
