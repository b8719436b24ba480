//go:build linux

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/network"
)

// What QEMU takes beside the machine's memory.
const (
	translationMiB = 256
	overheadBytes  = 512 << 20
	// threadsMost bounds QEMU's own threads: processors and disk workers.
	threadsMost = 512
)

// Start runs the machine.
func (p *Provider) Start(ctx context.Context, ws string) error {
	r, err := p.ready("start", ws)
	if err != nil {
		return err
	}
	last, err := p.run(ws)
	if err != nil {
		return failed("start", ws, err)
	}
	if last.Alive() {
		state, err := p.state(ctx, ws)
		switch {
		case err != nil:
			return failed("start", ws, err)
		case state == providers.StatePaused:
			return p.Resume(ctx, ws)
		case state == providers.StateRunning:
			return nil
		}
	}
	if err := p.end(ctx, ws, last); err != nil { // what a dead machine left behind
		return failed("start", ws, err)
	}
	return failed("start", ws, p.spawn(ctx, ws, r, start{}))
}

// start is where a machine begins: with its firmware, unless one of these holds
// its state. It is then halted. The files are closed.
type start struct {
	// stream is what another QEMU sends; state a disk of a snapshot.
	stream, state *os.File
}

// spawn starts the QEMU of a stopped instance, or leaves it stopped.
func (p *Provider) spawn(ctx context.Context, ws string, r record, from start) (err error) {
	m, err := p.machine(ctx, ws, r, from)
	if m != nil {
		defer m.files.close()
	}
	if err != nil {
		return err
	}
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	program, err := p.program()
	if err != nil {
		return err
	}
	output, err := openOutput()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, output.Close()) }()
	cmd := exec.Command(program, m.arguments()...) //nolint:noctx // it outlives every context
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = m.files.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: p.credential(v.UID)}
	if err := cmd.Start(); err != nil {
		return err
	}
	current := run{Started: time.Now(), Accel: m.accel, Resources: r.Resources}
	pid := cmd.Process.Pid
	undo := func(err error) error {
		// It is ours and not reaped, so its id cannot be another's.
		_ = unix.Kill(pid, unix.SIGKILL)
		for {
			if _, werr := unix.Wait4(pid, nil, 0, nil); !errors.Is(werr, unix.EINTR) {
				break
			}
		}
		return errors.Join(err, p.release(context.WithoutCancel(ctx), ws, current))
	}
	// Machines are waited for by id, and those of an earlier agent cannot be at all.
	if err := cmd.Process.Release(); err != nil {
		return undo(err)
	}
	if current.Process, err = host.Identify(pid); err != nil {
		return undo(err)
	}
	if p.root {
		current.Cgroups, err = host.Join(groupName(ws), pid, limitsOf(r.Resources))
		if err != nil {
			return undo(err)
		}
	}
	if p.root && r.Network == providers.NetworkPrivate {
		current.Fence = v.UID
		if err := p.raise(ctx, ws, v.UID); err != nil {
			return undo(err)
		}
	}
	if err := host.Write(filepath.Join(p.instanceDir(ws), runFile), current); err != nil {
		return undo(err)
	}
	// QEMU answers once it took its command line.
	if _, err := p.status(ctx, ws); err != nil {
		if ctx.Err() != nil {
			return undo(ctx.Err())
		}
		return undo(&providers.Error{
			Message: fmt.Sprintf("start qemu workspace %s: QEMU does not run: %s", ws, lastWords(output)),
			Next:    "vendetta node status, for what the provider needs",
			Cause:   err,
		})
	}
	p.log.Info("started virtual machine", "workspace", ws, "pid", pid, "acceleration", m.accel)
	return nil
}

// fence keeps a machine from the node's loopback, which QEMU's user network would
// show to it. The machine has not run an instruction of its user's by then.
func (p *Provider) fence(ws string, uid uint32) network.Fence {
	return network.Fence{Program: p.iptables, UID: uid, Comment: "vendetta-qemu-" + ws}
}

func (p *Provider) raise(ctx context.Context, ws string, uid uint32) error {
	err := errNoIPTables
	if p.iptables != "" {
		err = p.fence(ws, uid).Raise(ctx)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &providers.Error{
		Kind:    providers.ErrUnusable,
		Message: fmt.Sprintf("start qemu workspace %s: it cannot be kept from the node's loopback: %v", ws, err),
		Next:    "install iptables on the node: sudo apt-get install iptables; or create the workspace with --network none",
		Cause:   err,
	}
}

var errNoIPTables = errors.New("iptables is not installed")

func groupName(ws string) string { return "qemu-" + ws }

// limitsOf are the limits of the QEMU process: the machine's, and what it takes
// to run one.
func limitsOf(r providers.Resources) providers.Resources {
	return providers.Resources{CPUs: r.CPUs, MemoryBytes: r.MemoryBytes + translationMiB<<20 + overheadBytes, PIDs: threadsMost}
}

// credential is whom QEMU runs as; nil is the agent's own user. A group goes with
// it where that opens /dev/kvm.
func (p *Provider) credential(uid uint32) *syscall.Credential {
	if !p.root {
		return nil
	}
	c := &syscall.Credential{Uid: uid, Gid: uid}
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) == nil && st.Gid != 0 && st.Mode&0o060 == 0o060 {
		c.Groups = []uint32{st.Gid}
	}
	return c
}

// openOutput makes what a QEMU writes into: a pipe of which it holds both ends, and
// which takes nothing more when it is full. What goes wrong in a machine makes its
// QEMU complain, as often as the machine likes; a file would fill the node's disk.
func openOutput() (*os.File, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", ends[0]), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err = errors.Join(err, unix.Close(ends[0]), unix.Close(ends[1])); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "output")
	// After that, or the file would count as one that is waited for, and be made to
	// wait when it is handed over.
	return f, unix.SetNonblock(fd, true)
}

// lastWords is the beginning of what QEMU wrote, where its reasons are.
func lastWords(output *os.File) string {
	raw := make([]byte, 4096)
	n, err := unix.Read(int(output.Fd()), raw)
	said := ""
	if err == nil {
		said = strings.TrimSpace(strings.ToValidUTF8(string(raw[:n]), "?"))
	}
	if said == "" {
		return "it left no word"
	}
	return said
}

// machine opens all that a QEMU gets. The descriptors are the caller's to close,
// after an error too.
func (p *Provider) machine(ctx context.Context, ws string, r record, from start) (m *machine, err error) {
	m = &machine{
		name: "vendetta-" + ws, resources: r.Resources, network: r.Network, mac: macOf(ws), base: r.BaseFormat, direct: !r.Disk,
	}
	if from.stream != nil {
		m.files.add(fdStream, from.stream)
	}
	if from.state != nil {
		m.files.add(fdState, from.state)
	}
	if m.accel, _, err = p.acceleration(ctx); err != nil {
		return m, err
	}
	for name, socket := range map[string]string{fdMonitor: monitorSocket, fdLink: linkSocket, fdControl: controlSocket} {
		f, err := p.listen(ws, socket)
		if err != nil {
			return m, err
		}
		m.files.add(name, f)
	}
	base, err := p.base(ctx, r)
	if err != nil {
		return m, err
	}
	if err := p.writeSeed(ws, r); err != nil {
		return m, err
	}
	dir := p.instanceDir(ws)
	paths := []struct {
		name, path string
		flag       int
	}{
		{fdBase, base, os.O_RDONLY},
		{fdRoot, filepath.Join(dir, rootDisk), os.O_RDWR},
		{fdVolume, filepath.Join(p.volumeDir(ws), volumeDisk), os.O_RDWR},
		{fdSeed, filepath.Join(dir, seedFile), os.O_RDONLY},
	}
	if m.direct {
		k, err := p.kernel()
		if err != nil {
			return m, err
		}
		initramfs, err := p.initramfs(ctx, k)
		if err != nil {
			return m, err
		}
		paths = append(paths, struct {
			name, path string
			flag       int
		}{fdKernel, k.path, os.O_RDONLY}, struct {
			name, path string
			flag       int
		}{fdInitrd, initramfs, os.O_RDONLY})
	}
	for _, o := range paths {
		f, err := os.OpenFile(o.path, o.flag, 0)
		if err != nil {
			return m, err
		}
		m.files.add(o.name, f)
	}
	return m, nil
}

// listen makes one of the machine's sockets; only the agent's user can dial it.
func (p *Provider) listen(ws, name string) (*os.File, error) {
	folder, err := os.Open(p.instanceDir(ws))
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }() // only a name for the socket
	if err := os.Remove(filepath.Join(p.instanceDir(ws), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), name)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	err = errors.Join(err, os.Chmod(filepath.Join(p.instanceDir(ws), name), 0o600))
	if err = errors.Join(err, l.Close()); err != nil {
		return nil, err
	}
	return f, nil
}

// seed is what the guest is told; see the guest's package boot.
type seed struct {
	Hostname                     string
	Env                          []string
	User                         string
	PIDs                         int64
	Address, Gateway, Nameserver string
}

// seedMost bounds the seed; the guest reads no more.
const seedMost = 1 << 20

func (p *Provider) writeSeed(ws string, r record) error {
	if r.Disk {
		return p.writeCloudSeed(ws, r)
	}
	s := seed{Hostname: r.Name, Env: r.Env, User: r.User, PIDs: r.Resources.PIDs}
	if r.Network == providers.NetworkPrivate {
		s.Address, s.Gateway, s.Nameserver = netAddress, netGateway, netNameserver
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(raw) > seedMost {
		return invalid("use an image with a smaller environment", "start qemu workspace %s: the image's environment takes %d bytes", ws, len(raw))
	}
	raw = append(raw, make([]byte, -len(raw)&511)...)
	return os.WriteFile(filepath.Join(p.instanceDir(ws), seedFile), raw, 0o600)
}
