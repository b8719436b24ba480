//go:build linux

package qemu

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// strippedKernel is the real kernel's head with a folder of modules that the test
// fills; it names its version and could not be booted.
func strippedKernel(t *testing.T) (path, modules string) {
	t.Helper()
	testbed.Wants(t, Name)
	real := testbed.Kernel(t)
	raw, err := os.ReadFile(real)
	if err != nil {
		t.Fatal(err)
	}
	version, err := kernelVersion(real)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, modules = filepath.Join(dir, "boot", "vmlinuz-test"), filepath.Join(dir, "lib/modules", version)
	for _, d := range []string{filepath.Dir(path), filepath.Join(modules, "kernel")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, raw[:64<<10], 0o644); err != nil {
		t.Fatal(err)
	}
	return path, modules
}

func TestKernelWithoutVirtio(t *testing.T) {
	path, modules := strippedKernel(t)
	p := New(Options{StateDir: t.TempDir(), Kernel: path, GuestProgram: os.Args[0]})
	s := p.Probe(t.Context())
	if s.Usable || !strings.Contains(s.Reason, "no driver virtio_pci") || !strings.Contains(s.Fix, kernelPackage) {
		t.Errorf("probe: %+v", s)
	}
	// One with all of it built in needs no modules.
	var builtin strings.Builder
	for _, d := range drivers {
		builtin.WriteString("kernel/drivers/" + strings.ReplaceAll(d, "_", "-") + ".ko\n")
	}
	if err := os.WriteFile(filepath.Join(modules, "modules.builtin"), []byte(builtin.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second answer is remembered
		if s := p.Probe(t.Context()); !s.Usable || s.Version == "" {
			t.Errorf("probe: %+v", s)
		}
	}
}

func TestKernelIsFound(t *testing.T) {
	path, modules := strippedKernel(t)
	dir := filepath.Dir(filepath.Dir(path))
	k, err := New(Options{KernelDir: dir}).kernel()
	if err != nil || k.path != path || k.modules != modules {
		t.Errorf("%+v, %v, want %s and %s", k, err, path, modules)
	}
	if k, err := New(Options{Kernel: path, Modules: "/elsewhere"}).kernel(); err != nil || k.modules != "/elsewhere" {
		t.Errorf("%+v, %v", k, err)
	}
	if err := os.RemoveAll(modules); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Kernel: path}).kernel(); !errors.Is(err, providers.ErrUnusable) || !strings.Contains(err.Error(), "folder of modules") {
		t.Errorf("without modules: %v", err)
	}
	for name, content := range map[string][]byte{"short": []byte("x"), "text": make([]byte, 4096)} {
		other := filepath.Join(dir, name)
		if err := os.WriteFile(other, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{Kernel: other}).kernel(); !errors.Is(err, providers.ErrUnusable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Options{Kernel: filepath.Join(dir, "absent")}).kernel(); !errors.Is(err, providers.ErrUnusable) {
		t.Errorf("absent: %v", err)
	}
}

func TestModulesArePackedInOrder(t *testing.T) {
	path, modules := strippedKernel(t)
	real := testbed.Kernel(t)
	from := filepath.Join(filepath.Dir(real), "../lib/modules", filepath.Base(modules))
	whole, err := kernel{path: real, version: "x", modules: from}.modulePlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(modules, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	loaded := map[string]bool{}
	for _, m := range whole {
		for _, dep := range m.depends {
			if !loaded[dep] {
				t.Errorf("%s comes before %s, which it needs", m.name, dep)
			}
		}
		loaded[m.name] = true
		at := filepath.Join(modules, "kernel", m.name+".ko")
		if err := os.WriteFile(at, m.content, 0o644); err != nil {
			t.Fatal(err)
		}
		if said, err := exec.Command("gzip", at).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	}
	p := New(Options{StateDir: t.TempDir(), Kernel: path, GuestProgram: "/bin/busybox"})
	k, err := p.kernel()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := p.initramfs(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.initramfs(t.Context(), k); err != nil || again != archive {
		t.Errorf("%s, %v, before %s", again, err, archive)
	}
	raw, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command("/bin/busybox", "cpio", "-t")
	list.Stdin = bytes.NewReader(raw)
	said, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"dev/console", guestInit, "newroot", "volume", "modules/order", "modules/virtio_blk.ko"} {
		if !strings.Contains(string(said), want+"\n") {
			t.Errorf("the initramfs has no %s: %s", want, said)
		}
	}
	// A guest that changed is another archive, and the old one goes.
	p.opts.GuestProgram = os.Args[0]
	if other, err := p.initramfs(t.Context(), k); err != nil || other == archive {
		t.Errorf("%s, %v", other, err)
	}
	if _, err := os.Stat(archive); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old initramfs: %v", err)
	}
	for name, content := range map[string]string{"virtio_blk": "no module", "virtio_pci": ""} {
		if err := os.WriteFile(filepath.Join(modules, "kernel", name+".ko"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(modules, "kernel", name+".ko.gz"))
	}
	if _, err := k.modulePlan(t.Context()); err == nil {
		t.Error("a spoilt module was taken")
	}
}

func TestUnpackerIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.ko.xz")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nowhere")
	if _, err := unpacked(t.Context(), path); !errors.Is(err, providers.ErrUnusable) || !strings.Contains(err.Error(), "xz is not installed") {
		t.Error(err)
	}
	if _, err := unpacked(t.Context(), path+".absent"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestProbeNamesWhatIsMissing(t *testing.T) {
	p := New(Options{Program: "no-such-qemu"})
	if s := p.Probe(t.Context()); s.Usable || !strings.Contains(s.Fix, "qemu-system-x86") {
		t.Errorf("%+v", s)
	}
	if err := p.spawn(t.Context(), "x", record{}, start{}); err == nil {
		t.Error("spawned without QEMU")
	}
	testbed.Wants(t, Name)
	p = New(Options{GuestProgram: "/no/guest"})
	if s := p.Probe(t.Context()); s.Usable || !strings.Contains(s.Reason, "guest program") {
		t.Errorf("%+v", s)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p = New(Options{GuestProgram: os.Args[0], Kernel: testbed.Kernel(t)})
	if s := p.Probe(ended); s.Usable || s.Reason == "" {
		t.Errorf("after the end of the context: %+v", s)
	}
	p = New(Options{GuestProgram: os.Args[0], Kernel: testbed.Kernel(t), NoKVM: true})
	if s := p.Probe(t.Context()); !s.Usable || !strings.Contains(s.Reason, "switched off") {
		t.Errorf("without KVM: %+v", s)
	}
}

func TestElfIsNeeded(t *testing.T) {
	// A program is ELF and no module.
	if _, err := elf.Open("/bin/busybox"); err != nil {
		testbed.Wants(t, Name)
		t.Fatalf("%v (sudo apt-get install busybox-static)", err)
	}
	if _, err := readModule(t.Context(), "/bin/busybox"); err == nil || !strings.Contains(err.Error(), "depends on") {
		t.Error(err)
	}
}
