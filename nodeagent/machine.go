package nodeagent

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// machine is where the facts about this machine are read.
type machine struct {
	// proc is /proc but in tests.
	proc string
	// disk is a folder on the disk whose space counts.
	disk string
}

func newMachine(disk string) *machine { return &machine{proc: "/proc", disk: disk} }

// report reads what there is. What cannot be read is left out: a heartbeat is
// worth more than its last number.
func (m *machine) report() *vendettav1.NodeReport {
	host, _ := os.Hostname()
	c := &vendettav1.Capacity{Cpus: int32(runtime.NumCPU()), Load1: m.load()}
	c.MemoryBytes, c.MemoryFreeBytes = m.memory()
	c.DiskBytes, c.DiskFreeBytes = diskSpace(m.disk)
	return &vendettav1.NodeReport{
		Hostname: host,
		Os:       runtime.GOOS,
		Arch:     runtime.GOARCH,
		Kernel:   m.line("sys/kernel/osrelease"),
		BootId:   m.line("sys/kernel/random/boot_id"),
		Capacity: c,
	}
}

func (m *machine) line(name string) string {
	data, _ := os.ReadFile(m.proc + "/" + name)
	return strings.TrimSpace(string(data))
}

func (m *machine) load() float64 {
	first, _, _ := strings.Cut(m.line("loadavg"), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

// memory returns total and available bytes, from lines like
// "MemTotal:       16384 kB" (proc_meminfo(5)).
func (m *machine) memory() (total, available uint64) {
	data, _ := os.ReadFile(m.proc + "/meminfo")
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 54)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			total = kib << 10
		case "MemAvailable":
			available = kib << 10
		}
	}
	return total, available
}
