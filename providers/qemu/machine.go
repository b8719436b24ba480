//go:build linux

package qemu

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"

	"github.com/vendetta-dev/vendetta/providers"
)

// How a machine runs.
const (
	accelKVM = "kvm"
	accelTCG = "tcg"
)

// The user network's addresses, which are QEMU's own for every machine.
const (
	netAddress    = "10.0.2.15/24"
	netGateway    = "10.0.2.2"
	netNameserver = "10.0.2.3"
)

// Node names of the disks, see -blockdev.
const (
	nodeRoot   = "root"
	nodeVolume = "volume"
	nodeState  = "state"
)

// machine is what a QEMU is started with.
type machine struct {
	name      string
	accel     string
	resources providers.Resources
	network   providers.Network
	mac       string
	// descriptors by what they are; handed over in this order from 3 on.
	files descriptors
	// base is the format of the image's disk.
	base string
	// direct: kernel and initramfs are handed over.
	direct bool
}

// descriptors are open files that QEMU gets.
type descriptors struct {
	files  []*os.File
	number map[string]int
}

func (d *descriptors) add(name string, f *os.File) {
	if d.number == nil {
		d.number = map[string]int{}
	}
	d.files = append(d.files, f)
	d.number[name] = 2 + len(d.files)
}

func (d *descriptors) close() {
	for _, f := range d.files {
		_ = f.Close() // QEMU has its own
	}
}

// path is how QEMU opens a descriptor that it takes a path for.
func (d *descriptors) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d", d.number[name])
}

// The names of descriptors.
const (
	fdMonitor = "monitor"
	fdLink    = "link"
	fdControl = "control"
	fdBase    = "base"
	fdRoot    = "root"
	fdVolume  = "volume"
	fdSeed    = "seed"
	fdKernel  = "kernel"
	fdInitrd  = "initrd"
	fdState   = "state"
	fdStream  = "stream"
)

// commandLine of the kernel: no console beyond the serial port, and what a boot
// can do without. A panic ends the machine, whose console then tells.
const commandLine = "console=ttyS0 quiet rdinit=/" + guestInit + " panic=-1 reboot=t cryptomgr.notests no_timer_check"

// consoleBytes is how much of a console QEMU remembers; a power of two.
const consoleBytes = 16384

// arguments is QEMU's command line. Nothing in it is a path of ours, and nothing
// that a user wrote enters it.
func (m *machine) arguments() []string {
	r := m.resources
	args := []string{
		"-name", m.name, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,sata=off,smbus=off,vmport=off,smm=off,graphics=off,usb=off,dump-guest-core=off",
		"-smp", strconv.Itoa(int(math.Ceil(r.CPUs))),
		"-m", strconv.FormatInt((r.MemoryBytes+1<<20-1)>>20, 10) + "M",
		"-rtc", "base=utc,clock=host",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// A machine that has ended keeps its console until we have read it.
		"-action", "reboot=shutdown,shutdown=pause,panic=pause",
		"-chardev", fmt.Sprintf("ringbuf,id=console,size=%d", consoleBytes), "-serial", "chardev:console",
		"-chardev", m.socket("qmp", fdMonitor), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-serial-pci,id=ports,max_ports=4",
		"-chardev", m.socket("link", fdLink), "-device", "virtserialport,bus=ports.0,chardev=link,name=vendetta.guest",
		"-chardev", m.socket("control", fdControl), "-device", "virtserialport,bus=ports.0,chardev=control,name=vendetta.control",
	}
	if m.accel == accelKVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		// The translator's buffer is the node's memory beside the machine's own.
		args = append(args, "-accel", fmt.Sprintf("tcg,tb-size=%d", translationMiB), "-cpu", "max")
	}
	args = m.disk(args, nodeRoot, "vendetta-root", 1)
	args = m.disk(args, nodeVolume, "vendetta-volume", 2)
	args = append(args, "-blockdev", node(map[string]any{
		"driver": "raw", "node-name": "seed", "read-only": true,
		"file": map[string]any{"driver": "file", "filename": m.set(&args, fdSeed), "read-only": true},
	}), "-device", "virtio-blk-pci,drive=seed,serial=vendetta-seed,bootindex=9")
	if m.network == providers.NetworkPrivate {
		args = append(args, "-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile=,mac="+m.mac)
	}
	if m.direct {
		args = append(args, "-kernel", m.files.path(fdKernel), "-initrd", m.files.path(fdInitrd), "-append", commandLine)
	}
	if fd := m.files.number[fdStream]; fd != 0 {
		args = append(args, "-S", "-incoming", fmt.Sprintf("fd:%d", fd))
	}
	if m.files.number[fdState] != 0 {
		args = append(args, "-S", "-blockdev", node(stateNode(m.set(&args, fdState))))
	}
	return args
}

func (m *machine) socket(id, name string) string {
	return fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, m.files.number[name])
}

// set makes a descriptor one that a block node can be opened by.
func (m *machine) set(args *[]string, name string) string {
	fd := m.files.number[name]
	*args = append(*args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd))
	return fmt.Sprintf("/dev/fdset/%d", fd)
}

// disk adds one of the machine's own disks. What lies below the root disk is said
// here and not in the file, which the guest's user may one day have written.
func (m *machine) disk(args []string, name, serial string, order int) []string {
	top := map[string]any{
		"driver": "qcow2", "node-name": name, "discard": "unmap", "detect-zeroes": "unmap",
		"file": map[string]any{"driver": "file", "filename": m.set(&args, name), "discard": "unmap"},
	}
	if name == nodeRoot {
		top["backing"] = map[string]any{
			"driver": m.base, "node-name": "base", "read-only": true,
			"file": map[string]any{"driver": "file", "filename": m.set(&args, fdBase), "read-only": true},
		}
		if m.base == "qcow2" {
			top["backing"].(map[string]any)["backing"] = nil
		}
	} else {
		top["backing"] = nil
	}
	return append(args, "-blockdev", node(top),
		"-device", fmt.Sprintf("virtio-blk-pci,id=disk-%s,drive=%s,serial=%s,bootindex=%d", name, name, serial, order))
}

func node(options map[string]any) string {
	raw, err := json.Marshal(options)
	if err != nil { // maps of words and numbers
		panic(err)
	}
	return string(raw)
}

// stateNode is a disk that holds a machine's memory and that the machine itself
// does not see.
func stateNode(path string) map[string]any {
	return map[string]any{
		"driver": "qcow2", "node-name": nodeState,
		"file": map[string]any{"driver": "file", "filename": path},
	}
}

// macOf derives a locally administered address from a workspace's id.
func macOf(ws string) string {
	sum := sha256.Sum256([]byte(ws))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}
