//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// The words that Probe adds where they hold.
const (
	// CapabilityKVM: machines run on the processor itself.
	CapabilityKVM = "kvm"
	// CapabilityDisk: disk images boot.
	CapabilityDisk = "disk-images"
)

// prober remembers what was found out, for as long as what it was found out about
// is the same.
type prober struct {
	mu     sync.Mutex
	accel  string
	why    string // KVM is not used
	about  string
	kernel string // the last one that was found good, with its modules
}

// Probe runs a tiny guest, which is the only way to know what accelerates, and
// looks for a kernel and the programs that make disks.
func (p *Provider) Probe(ctx context.Context) providers.Status {
	var s providers.Status
	if runtime.GOARCH != "amd64" {
		s.Reason = "virtual machines are made on amd64 only"
		return s
	}
	program, err := p.program()
	if err != nil {
		s.Reason, s.Fix = "qemu-system-x86_64 is not installed", "sudo apt-get install qemu-system-x86 qemu-utils e2fsprogs"
		return s
	}
	for tool, from := range map[string]string{"qemu-img": "qemu-utils", "mkfs.ext4": "e2fsprogs"} {
		if _, err := lookProgram(tool); err != nil {
			s.Reason, s.Fix = tool+" is not installed", "sudo apt-get install "+from
			return s
		}
	}
	if _, err := os.Stat(p.opts.GuestProgram); err != nil {
		s.Reason = fmt.Sprintf("the guest program is missing: %v", err)
		s.Fix = "install vendetta on this node again: vendetta node add"
		return s
	}
	s.Version = version(ctx, program)
	accel, why, err := p.acceleration(ctx)
	if err == nil {
		err = p.checkKernel(ctx)
	}
	if err != nil {
		var own *providers.Error
		s.Reason = err.Error()
		if errors.As(err, &own) {
			s.Fix = own.Next
		}
		return s
	}
	s.Usable, s.Reason = true, why
	if p.root && p.iptables == "" {
		s.Reason = strings.TrimPrefix(why+"; private networks need iptables, which is not installed", "; ")
		s.Fix = "sudo apt-get install iptables"
	}
	s.Capabilities = []string{
		providers.CapabilityFork, providers.CapabilityForkMemory, providers.CapabilityLimitDisk, providers.CapabilityPause,
		providers.CapabilityResize, providers.CapabilitySnapshot, providers.CapabilitySnapshotMemory, CapabilityDisk,
	}
	if accel == accelKVM {
		s.Capabilities = append(s.Capabilities, CapabilityKVM)
	}
	sort.Strings(s.Capabilities)
	return s
}

func (p *Provider) program() (string, error) {
	name := p.opts.Program
	if name == "" {
		name = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &providers.Error{
			Kind: providers.ErrUnusable, Message: "qemu: " + name + " is not installed",
			Next: "sudo apt-get install qemu-system-x86 qemu-utils e2fsprogs", Cause: err,
		}
	}
	return path, nil
}

func version(ctx context.Context, program string) string {
	raw, err := exec.CommandContext(ctx, program, "-version").Output()
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	_, v, _ := strings.Cut(first, "version ")
	v, _, _ = strings.Cut(v, " ")
	return v
}

// stamp names a file as it is now.
func stamp(paths ...string) string {
	var b strings.Builder
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			fmt.Fprintf(&b, "%s %d %d %d %o %d\n", path, st.Ino, st.Mtim.Sec, st.Mtim.Nsec, st.Mode, st.Gid)
		}
	}
	return b.String()
}

// checkKernel finds a kernel and its drivers.
func (p *Provider) checkKernel(ctx context.Context) error {
	k, err := p.kernel()
	if err != nil {
		return err
	}
	about := stamp(k.path, k.modules)
	p.probes.mu.Lock()
	defer p.probes.mu.Unlock()
	if p.probes.kernel == about {
		return nil
	}
	if _, err := k.modulePlan(ctx); err != nil {
		return err
	}
	p.probes.kernel = about
	return nil
}

// tinyGuest is a firmware of 64 KiB whose first instruction, where a processor
// begins, tells QEMU's debug port that it ran: mov al,0x10; out 0xf4,al; hlt.
func tinyGuest() []byte {
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], []byte{0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd})
	return rom
}

// tinyStatus is how QEMU ends by what tinyGuest says: twice that and one.
const tinyStatus = 0x10<<1 | 1

// acceleration finds out how machines run here, by running one. why says, when
// it is not by KVM, what is in the way.
func (p *Provider) acceleration(ctx context.Context) (accel, why string, err error) {
	program, err := p.program()
	if err != nil {
		return "", "", err
	}
	about := stamp(program, "/dev/kvm")
	p.probes.mu.Lock()
	defer p.probes.mu.Unlock()
	if p.probes.about == about {
		return p.probes.accel, p.probes.why, nil
	}
	accel, why = accelKVM, ""
	if p.opts.NoKVM {
		accel, why = accelTCG, "KVM is switched off, so virtual machines are translated and slow"
	} else if kerr := p.try(ctx, program, accelKVM); kerr != nil {
		accel, why = accelTCG, fmt.Sprintf("KVM does not run here, so virtual machines are translated and slow: %v", kerr)
	}
	if accel == accelTCG {
		if err := p.try(ctx, program, accelTCG); err != nil {
			return "", "", &providers.Error{Kind: providers.ErrUnusable, Message: fmt.Sprintf("qemu: a virtual machine does not run: %v", err), Cause: err}
		}
	}
	if ctx.Err() != nil {
		return "", "", &providers.Error{Kind: providers.ErrUnusable, Message: "qemu: a virtual machine was not seen to run in time", Cause: ctx.Err()}
	}
	p.probes.accel, p.probes.why, p.probes.about = accel, why, about
	return accel, why, nil
}

// try runs the tiny guest as a machine would be run.
func (p *Provider) try(ctx context.Context, program, accel string) error {
	if accel == accelKVM {
		if _, err := os.Stat("/dev/kvm"); err != nil {
			return errors.New("there is no /dev/kvm")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, tryWait)
	defer cancel()
	fd, err := unix.MemfdCreate("vendetta-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	rom := os.NewFile(uintptr(fd), "probe")
	defer func() { _ = rom.Close() }()
	if _, err := rom.Write(tinyGuest()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
		"-accel", accel, "-m", "16M", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{rom}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: p.credential(probeID)}
	said, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == tinyStatus {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if words := strings.TrimSpace(string(said)); words != "" {
		return errors.New(strings.ReplaceAll(words, "\n", "; "))
	}
	return fmt.Errorf("the tiny guest did not run: %w", err)
}

// tryWait bounds one tiny guest; it takes some 50 ms.
const tryWait = 4 * time.Second

// probeID is nobody, which a QEMU with nothing to read can run as.
const probeID = 65534
