//go:build linux

package qemu

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
)

// kernel is what container images are booted with.
type kernel struct {
	path    string
	version string
	modules string // its folder of modules
}

// drivers that a machine cannot do without, in the order that they are loaded.
// ext4 and what it needs come last: a disk is found before it is mounted.
var drivers = []string{"virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "ext4"}

// kernelPackage brings a kernel on Debian that boots quickly here.
const kernelPackage = "linux-image-cloud-amd64"

func noKernel(format string, args ...any) error {
	return &providers.Error{
		Kind:    providers.ErrUnusable,
		Message: "qemu: " + fmt.Sprintf(format, args...),
		Next:    "sudo apt-get install " + kernelPackage + ", or name one with VENDETTA_QEMU_KERNEL and restart the node agent",
	}
}

// kernel finds the kernel: the one that was named, the newest of the agent's own
// folder, the newest of /boot.
func (p *Provider) kernel() (kernel, error) {
	path := p.opts.Kernel
	if path == "" {
		path = newest(filepath.Join(p.opts.KernelDir, "vmlinuz*"), filepath.Join(p.opts.KernelDir, "boot", "vmlinuz*"))
	}
	if path == "" {
		path = newest("/boot/vmlinuz-*")
	}
	if path == "" {
		return kernel{}, noKernel("there is no kernel to boot container images with")
	}
	version, err := kernelVersion(path)
	if err != nil {
		return kernel{}, noKernel("%s is no kernel that can be booted: %v", path, err)
	}
	k := kernel{path: path, version: version, modules: p.opts.Modules}
	if k.modules != "" {
		return k, nil
	}
	dir := filepath.Dir(path)
	for _, at := range []string{
		filepath.Join(dir, "../lib/modules"), filepath.Join(dir, "lib/modules"), filepath.Join(dir, "modules"), "/lib/modules", "/usr/lib/modules",
	} {
		if info, err := os.Stat(filepath.Join(at, version)); err == nil && info.IsDir() {
			k.modules = filepath.Join(at, version)
			return k, nil
		}
	}
	return k, noKernel("the kernel %s (%s) has no folder of modules beside it or in /lib/modules", path, version)
}

// newest of the files that the first pattern with a match finds.
func newest(patterns ...string) string {
	for _, pattern := range patterns {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		best, when := "", int64(0)
		for _, path := range found {
			info, err := os.Stat(path)
			if err == nil && info.Mode().IsRegular() && (best == "" || info.ModTime().UnixNano() >= when) {
				best, when = path, info.ModTime().UnixNano()
			}
		}
		if best != "" {
			return best
		}
	}
	return ""
}

// kernelVersion is the release that a bzImage names; see the kernel's
// Documentation/arch/x86/boot.rst.
func kernelVersion(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 0x210)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", err
	}
	if string(head[0x202:0x206]) != "HdrS" {
		return "", errors.New("it is no bzImage")
	}
	text := make([]byte, 256)
	at := int64(binary.LittleEndian.Uint16(head[0x20e:])) + 0x200
	n, err := f.ReadAt(text, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	version, _, _ := strings.Cut(string(text[:n]), " ")
	if version == "" || strings.ContainsAny(version, "/\x00") {
		return "", errors.New("it does not name its version")
	}
	return version, nil
}

// modulePlan is the files of modules to load, in that order.
func (k kernel) modulePlan(ctx context.Context) ([]module, error) {
	built, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	builtin := map[string]bool{}
	for line := range strings.Lines(string(built)) {
		builtin[moduleName(strings.TrimSpace(line))] = true
	}
	files := map[string]string{}
	err = filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			files[moduleName(path)] = path
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var plan []module
	seen := map[string]bool{}
	var add func(name, wanted string) error
	add = func(name, wanted string) error {
		if seen[name] || builtin[name] {
			return nil
		}
		seen[name] = true
		path := files[name]
		if path == "" {
			return noKernel("the kernel %s (%s) has no driver %s, which a virtual machine needs (for %s)", k.path, k.version, name, wanted)
		}
		m, err := readModule(ctx, path)
		if err != nil {
			return err
		}
		for _, dep := range m.depends {
			if err := add(dep, wanted); err != nil {
				return err
			}
		}
		plan = append(plan, m)
		return nil
	}
	for _, name := range drivers {
		if err := add(name, name); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// moduleName is how the kernel calls the module in a file.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// module is one driver.
type module struct {
	name    string
	content []byte
	depends []string
}

// moduleMost bounds a module, in bytes.
const moduleMost = 64 << 20

func readModule(ctx context.Context, path string) (module, error) {
	m := module{name: moduleName(path)}
	var err error
	if m.content, err = unpacked(ctx, path); err != nil {
		return m, fmt.Errorf("read module %s: %w", path, err)
	}
	file, err := elf.NewFile(strings.NewReader(string(m.content)))
	if err != nil {
		return m, fmt.Errorf("read module %s: %w", path, err)
	}
	section := file.Section(".modinfo")
	if section == nil {
		return m, fmt.Errorf("read module %s: it does not say what it depends on", path)
	}
	info, err := section.Data()
	if err != nil {
		return m, fmt.Errorf("read module %s: %w", path, err)
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if depends, ok := strings.CutPrefix(entry, "depends="); ok {
			for dep := range strings.SplitSeq(depends, ",") {
				if dep != "" {
					m.depends = append(m.depends, strings.ReplaceAll(dep, "-", "_"))
				}
			}
		}
	}
	return m, nil
}

// unpackers of the formats that distributions pack modules in.
var unpackers = map[string][]string{
	".xz": {"xz", "-dc"}, ".zst": {"zstd", "-dcq"}, ".gz": {"gzip", "-dc"},
}

func unpacked(ctx context.Context, path string) ([]byte, error) {
	argv := unpackers[filepath.Ext(path)]
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if argv == nil {
		return io.ReadAll(io.LimitReader(f, moduleMost))
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = f
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, noKernel("the modules of the kernel are packed and %s is not installed", argv[0])
	}
	return slices.Clip(out), err
}
