package testbed

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Thing is something on a machine that may be left behind.
type Thing struct {
	// Kind is process, mount, interface, rule, cgroup, loop, descriptor or what a
	// test added.
	Kind string
	// Name tells it from others of its kind.
	Name string
	// About says more of it, for who reads.
	About string

	// own: a process that this one began, however far down.
	own bool
	// traces is what may say whose it is and is not shown: an environment.
	traces string
}

func (t Thing) String() string {
	return strings.TrimSpace(t.Kind + " " + t.Name + " " + t.About)
}

// Things is a list of them.
type Things []Thing

// State is what a machine holds at a moment.
type State map[string]Thing

// MachineState looks at the machine: processes, mounts, network interfaces,
// firewall rules, cgroup folders of every hierarchy, loop devices, and the open
// files of this process. What others do on the machine meanwhile is seen too; Of
// and Repeated tell it apart.
func MachineState(t testing.TB) State {
	t.Helper()
	s := State{}
	for _, look := range []func() ([]Thing, error){processes, mounts, interfaces, cgroups, loops, descriptors, rules} {
		found, err := look()
		if err != nil {
			t.Fatalf("look at the machine: %v", err)
		}
		for _, thing := range found {
			s[thing.Kind+" "+thing.Name] = thing
		}
	}
	return s
}

// Add counts what only a driver can list: containers, volumes, folders.
func (s State) Add(kind string, names ...string) {
	for _, name := range names {
		s[kind+" "+name] = Thing{Kind: kind, Name: name}
	}
}

// Diff returns what later has and s has not, in order.
func (s State) Diff(later State) Things {
	var more Things
	for key, thing := range later {
		if _, had := s[key]; !had {
			more = append(more, thing)
		}
	}
	slices.SortFunc(more, func(a, b Thing) int { return strings.Compare(a.String(), b.String()) })
	return more
}

// Of returns the things that carry a mark - a workspace's id, a server's, a
// folder - in their names or whatever they have about them, and the processes
// that this one began.
func (ts Things) Of(marks ...string) Things {
	var ours Things
	for _, thing := range ts {
		text := thing.Name + "\n" + thing.About + "\n" + thing.traces
		if thing.own || slices.ContainsFunc(marks, func(mark string) bool { return strings.Contains(text, mark) }) {
			ours = append(ours, thing)
		}
	}
	return ours
}

// random is a word with a digit: an id, an address, a number, a hash.
var random = regexp.MustCompile(`[0-9a-zA-Z]*[0-9][0-9a-zA-Z]*`)

// Repeated returns the things of which at least n look alike but for their ids.
// What leaves something behind each time shows by it, although nothing of the
// thing tells whose it is.
func (ts Things) Repeated(n int) Things {
	alike := map[string]int{}
	shape := func(thing Thing) string { return thing.Kind + " " + random.ReplaceAllString(thing.Name, "#") }
	for _, thing := range ts {
		alike[shape(thing)]++
	}
	var repeated Things
	for _, thing := range ts {
		if alike[shape(thing)] >= n {
			repeated = append(repeated, thing)
		}
	}
	return repeated
}

// String is a line for each.
func (ts Things) String() string {
	var lines strings.Builder
	for _, thing := range ts {
		lines.WriteString("\n+ " + thing.String())
	}
	return lines.String()
}

// aboutBytes bounds what is said of a process.
const aboutBytes = 300

func processes() ([]Thing, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	parents := map[int]int{}
	var found []Thing
	pids := []int{}
	for _, path := range stats {
		dir := filepath.Dir(path)
		stat, err := os.ReadFile(path)
		pid, nerr := strconv.Atoi(filepath.Base(dir))
		end := bytes.LastIndexByte(stat, ')')
		if err != nil || nerr != nil || end < 0 {
			continue // it has ended
		}
		// Field 3 and on, by proc_pid_stat(5); 4 is the parent and 22 the start.
		fields := strings.Fields(string(stat[end+1:]))
		if len(fields) < 20 {
			return nil, fmt.Errorf("%s: %q", path, stat)
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		parents[pid] = parent
		const kthreadd = 2
		if pid == kthreadd || parent == kthreadd {
			continue
		}
		argv, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		_, name, _ := strings.Cut(string(stat[:end]), "(")
		about := fmt.Sprintf("%s (state %s, parent %d)", bytes.ReplaceAll(argv, []byte{0}, []byte(" ")), fields[0], parent)
		found = append(found, Thing{
			Kind: "process", Name: fmt.Sprintf("%s %d@%s", name, pid, fields[19]),
			About: about[:min(len(about), aboutBytes)], traces: string(argv) + string(environment) + string(cgroup),
		})
		pids = append(pids, pid)
	}
	for i, pid := range pids {
		for at := parents[pid]; at > 1; at = parents[at] {
			if at == os.Getpid() {
				found[i].own = true
			}
		}
	}
	return found, nil
}

func mounts() ([]Thing, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []Thing
	for line := range strings.Lines(string(table)) {
		// proc_pid_mountinfo(5): 1 the id, 4 the root, 5 the point; after the dash
		// the type and the source.
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 6 {
			return nil, fmt.Errorf("mountinfo: %q", line)
		}
		found = append(found, Thing{Kind: "mount", Name: fields[4] + " " + fields[0], About: fields[3] + " " + strings.TrimSpace(after)})
	}
	return found, nil
}

func interfaces() ([]Thing, error) {
	all, err := net.Interfaces()
	var found []Thing
	for _, i := range all {
		master, _ := os.Readlink(filepath.Join("/sys/class/net", i.Name, "master"))
		found = append(found, Thing{Kind: "interface", Name: fmt.Sprintf("%s %d", i.Name, i.Index), About: filepath.Base(master)})
	}
	return found, err
}

func cgroups() ([]Thing, error) {
	var found []Thing
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			found = append(found, Thing{Kind: "cgroup", Name: path})
		}
		return nil // gone meanwhile
	})
	return found, err
}

func loops() ([]Thing, error) {
	backed, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var found []Thing
	for _, path := range backed {
		if file, err := os.ReadFile(path); err == nil {
			found = append(found, Thing{Kind: "loop", Name: strings.Split(path, "/")[3] + " " + strings.TrimSpace(string(file))})
		}
	}
	return found, err
}

func descriptors() ([]Thing, error) {
	open, err := os.ReadDir("/proc/self/fd")
	var found []Thing
	for _, entry := range open {
		if to, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
			found = append(found, Thing{Kind: "descriptor", Name: entry.Name() + " " + to})
		}
	}
	return found, err
}

// counts is what a rule has let pass, which iptables-save writes when asked to.
var counts = regexp.MustCompile(`\[\d+:\d+\]`)

// rules lists the firewall's, where it may be asked: as root, with iptables.
func rules() ([]Thing, error) {
	var found []Thing
	path, _ := exec.LookPath("iptables-save")
	if path == "" || os.Geteuid() != 0 {
		return found, nil
	}
	for _, table := range []string{"filter", "nat", "mangle"} {
		out, err := exec.CommandContext(context.Background(), path, "-t", table).Output() //nolint:forbidigo // it takes milliseconds
		if err != nil {
			return nil, fmt.Errorf("iptables-save -t %s: %w", table, err)
		}
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimSpace(counts.ReplaceAllString(line, "")); line != "" && line[0] != '#' && line[0] != '*' {
				found = append(found, Thing{Kind: "rule", Name: table + ": " + line})
			}
		}
	}
	return found, nil
}
