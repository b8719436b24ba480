//go:build linux

package qemu

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/nodeagent/guest/boot"
	"github.com/vendetta-dev/vendetta/providers"
)

func spec(change func(*providers.Spec)) providers.Spec {
	s := providers.Spec{Workspace: "abc", Name: "box", Image: "debian:12"}
	if change != nil {
		change(&s)
	}
	return s
}

func TestCheck(t *testing.T) {
	good := spec(nil)
	if err := check(&good); err != nil {
		t.Fatal(err)
	}
	if r := good.Resources; r.CPUs != DefaultCPUs || r.MemoryBytes != DefaultMemoryBytes || r.PIDs != DefaultPIDs || r.DiskBytes != DefaultDiskBytes || good.Network != providers.NetworkPrivate {
		t.Errorf("defaults %+v", good)
	}
	for what, c := range map[string]struct {
		change func(*providers.Spec)
		kind   error
	}{
		"host network":   {func(s *providers.Spec) { s.Network = providers.NetworkHost }, providers.ErrInvalid},
		"little memory":  {func(s *providers.Spec) { s.Resources.MemoryBytes = 1 << 20 }, providers.ErrInvalid},
		"a small disk":   {func(s *providers.Spec) { s.Resources.DiskBytes = 1 << 20 }, providers.ErrInvalid},
		"a huge disk":    {func(s *providers.Spec) { s.Resources.DiskBytes = 1 << 62 }, providers.ErrInvalid},
		"many cpus":      {func(s *providers.Spec) { s.Resources.CPUs = 1000 }, providers.ErrInvalid},
		"yaml in a name": {func(s *providers.Spec) { s.Name = "a: b" }, providers.ErrInvalid},
		"privileged":     {func(s *providers.Spec) { s.Privileged = true }, providers.ErrUnsupported},
	} {
		s := spec(c.change)
		if err := check(&s); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The two programs know each other's shape of the seed by this alone.
func TestSeedIsWhatTheGuestReads(t *testing.T) {
	raw, err := json.Marshal(seed{Hostname: "h", Env: []string{"A=b"}, User: "u", PIDs: 7, Address: "a", Gateway: "g", Nameserver: "n"})
	if err != nil {
		t.Fatal(err)
	}
	var c boot.Config
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(c)
	if err != nil || string(again) != string(raw) {
		t.Errorf("%s became %s, %v", raw, again, err)
	}
}

func TestArguments(t *testing.T) {
	m := machine{name: "vendetta-abc", accel: accelTCG, network: providers.NetworkPrivate, mac: macOf("abc"), base: "qcow2", direct: true,
		resources: providers.Resources{CPUs: 1.5, MemoryBytes: 96<<20 + 1}}
	for _, name := range []string{fdMonitor, fdLink, fdControl, fdBase, fdRoot, fdVolume, fdSeed, fdKernel, fdInitrd, fdState, fdStream} {
		m.files.add(name, nil)
	}
	args := m.arguments()
	for option, value := range map[string]string{
		"-smp": "2", "-m": "97M", "-kernel": "/proc/self/fd/10", "-incoming": "fd:13",
		"-sandbox": "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	} {
		if i := slices.Index(args, option); i < 0 || args[i+1] != value {
			t.Errorf("%s is not %s in %q", option, value, args)
		}
	}
	m.accel, m.network, m.direct = accelKVM, providers.NetworkNone, false
	args = m.arguments()
	if slices.Contains(args, "-kernel") || slices.Contains(args, "-netdev") || !slices.Contains(args, "host") {
		t.Errorf("%q", args)
	}
}

func TestStates(t *testing.T) {
	for status, want := range map[string]providers.State{
		"running": providers.StateRunning, "save-vm": providers.StateRunning, "paused": providers.StatePaused,
		"io-error": providers.StatePaused, "shutdown": providers.StateStopped, "guest-panicked": providers.StateStopped,
	} {
		if got := stateOf(status); got != want {
			t.Errorf("%s is %s, want %s", status, got, want)
		}
	}
	for _, disk := range []bool{false, true} {
		if bootTime(disk, accelKVM) >= bootTime(disk, accelTCG) {
			t.Error("KVM is not quicker")
		}
	}
}

func TestFailed(t *testing.T) {
	for err, kind := range map[error]error{unix.ENOSPC: providers.ErrExhausted, unix.EMFILE: providers.ErrExhausted} {
		var own *providers.Error
		if got := failed("do", "abc", err); !errors.Is(got, kind) || !errors.As(got, &own) || own.Next == "" {
			t.Errorf("%v became %v", err, got)
		}
	}
	if failed("do", "abc", nil) != nil {
		t.Error("success became an error")
	}
	own := notFound("do", "abc")
	if got := failed("other", "abc", own); got.Error() != own.Error() {
		t.Error("an error of ours was changed")
	}
}

func TestLater(t *testing.T) {
	a := providers.Resources{CPUs: 1, MemoryBytes: 1, PIDs: 1}
	if got := later(a, a); got != "" {
		t.Errorf("%q", got)
	}
	if got := later(a, providers.Resources{CPUs: 2, MemoryBytes: 2, PIDs: 2}); !strings.Contains(got, "processors, memory, the number of processes") {
		t.Errorf("%q", got)
	}
}

func TestCopyKeepsHoles(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("end"), 64<<20)
	if err = errors.Join(err, f.Truncate(128<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(to); err != nil || info.Size() != 128<<20 || allocated(to) > 1<<20 {
		t.Errorf("%v, %v, %d bytes allocated", info, err, allocated(to))
	}
	got := make([]byte, 3)
	f, err = os.Open(to)
	if err == nil {
		_, err = f.ReadAt(got, 64<<20)
		err = errors.Join(err, f.Close())
	}
	if err != nil || string(got) != "end" {
		t.Errorf("%q, %v", got, err)
	}
	if err := copyFile(t.Context(), from, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("copied over a file: %v", err)
	}
	if err := copyFile(t.Context(), filepath.Join(dir, "absent"), filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// longNames reads the names and sizes of a FAT's root folder.
func longNames(raw []byte) map[string][]byte {
	files := map[string][]byte{}
	name := ""
	for at := (1 + fatTable) * fatSector; raw[at] != 0; at += 32 {
		e := raw[at : at+32]
		switch e[11] {
		case 0x0f:
			var letters []uint16
			for _, i := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
				if c := binary.LittleEndian.Uint16(e[i:]); c != 0 && c != 0xffff {
					letters = append(letters, c)
				}
			}
			name = string(utf16.Decode(letters)) + name
		case 0x08:
		default:
			var content []byte
			for c := binary.LittleEndian.Uint16(e[26:]); c != 0 && c != 0xffff; c = binary.LittleEndian.Uint16(raw[fatSector+2*int(c):]) {
				begin := fatFirst*fatSector + (int(c)-2)*fatCluster
				content = append(content, raw[begin:begin+fatCluster]...)
			}
			files[name] = content[:binary.LittleEndian.Uint32(e[28:])]
			name = ""
		}
	}
	return files
}

func TestCloudSeed(t *testing.T) {
	p := New(Options{StateDir: t.TempDir(), GuestProgram: os.Args[0]})
	program := filepath.Join(t.TempDir(), "guest")
	big := bytes.Repeat([]byte("guest"), 3<<20/5)
	if err := os.WriteFile(program, big, 0o755); err != nil {
		t.Fatal(err)
	}
	p.opts.GuestProgram = program
	if err := os.MkdirAll(p.instanceDir("abc"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := record{Name: "box", Disk: true, Resources: providers.Resources{PIDs: 77}}
	if err := p.writeSeed("abc", r); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(p.instanceDir("abc"), seedFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := longNames(raw)
	if !bytes.Equal(files["vendetta-guest"], big) {
		t.Errorf("the guest has %d bytes, want %d", len(files["vendetta-guest"]), len(big))
	}
	for name, want := range map[string]string{
		"meta-data": "local-hostname: \"box\"\n", "user-data": "#cloud-config\nhostname: \"box\"\n", "network-config": "dhcp4: true", "vendetta-guest.service": "TasksMax=77\n",
	} {
		if !strings.Contains(string(files[name]), want) {
			t.Errorf("%s: %q", name, files[name])
		}
	}
	if blkid, err := exec.LookPath("/usr/sbin/blkid"); err == nil {
		said, err := exec.Command(blkid, "-p", path).CombinedOutput()
		if err != nil || !strings.Contains(string(said), `LABEL="CIDATA"`) || !strings.Contains(string(said), `TYPE="vfat"`) {
			t.Errorf("blkid: %s, %v", said, err)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "full"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := writeFAT(f, []fatFile{{"empty", nil}, {"large", make([]byte, 40<<20)}}); err == nil {
		t.Error("40 MiB were written on 32")
	}
	if _, err := readFile(program, 10); err == nil {
		t.Error("a file beyond the bound was read")
	}
}
