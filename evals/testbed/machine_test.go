package testbed_test

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// kinds of things, in order.
func kinds(things testbed.Things) []string {
	var all []string
	for _, thing := range things {
		all = append(all, thing.Kind)
	}
	return slices.Compact(all)
}

func TestMachineStateSeesWhatIsLeft(t *testing.T) {
	mark := "v" + strings.ToLower(rand.Text()[:8])
	before := testbed.MachineState(t)
	if left := before.Diff(before); len(left) != 0 {
		t.Errorf("nothing was left, and it sees %v", left)
	}
	want := []string{"descriptor", "process"}
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, mark))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "600")
	sleep.Env = append(os.Environ(), "MARK="+mark)
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	undo := [][]string{}
	if os.Geteuid() == 0 {
		mounted := filepath.Join(dir, "mounted")
		if err := os.Mkdir(mounted, 0o700); err != nil {
			t.Fatal(err)
		}
		want = []string{"cgroup", "descriptor", "interface", "mount", "process", "rule"}
		for _, c := range [][2][]string{
			{{"mkdir", cgroup(t, mark)}, {"rmdir", cgroup(t, mark)}},
			{{"mount", "-t", "tmpfs", mark, mounted}, {"umount", mounted}},
			{{"ip", "link", "add", mark, "type", "veth", "peer", "name", mark + "p"}, {"ip", "link", "del", mark}},
			{{"iptables", "-w", "-N", mark}, {"iptables", "-w", "-X", mark}},
		} {
			if out, err := exec.Command(c[0][0], c[0][1:]...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v: %s", c[0], err, out)
			}
			undo = append(undo, c[1])
		}
	}
	left := before.Diff(testbed.MachineState(t)).Of(mark)
	if got := kinds(left); !slices.Equal(got, want) {
		t.Errorf("saw %q, want %q:%v", got, want, left)
	}
	for _, argv := range undo {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%q: %v: %s", argv, err, out)
		}
	}
	_ = sleep.Process.Kill()
	_ = sleep.Wait()
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if left := before.Diff(testbed.MachineState(t)).Of(mark); len(left) != 0 {
		t.Errorf("all was undone, and it sees%v", left)
	}
}

// cgroup is a folder in one of the machine's hierarchies.
func cgroup(t *testing.T, name string) string {
	t.Helper()
	for _, hierarchy := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(hierarchy); err == nil {
			return filepath.Join(hierarchy, name)
		}
	}
	t.Fatal("no cgroups")
	return ""
}

func TestRepeated(t *testing.T) {
	before, after := testbed.State{}, testbed.State{}
	before.Add("volume", "old1")
	after.Add("volume", "old1", "v-3ab", "v-77", "v-1x9", "other2")
	if got := before.Diff(after).Repeated(3); got.String() != "\n+ volume v-1x9\n+ volume v-3ab\n+ volume v-77" {
		t.Errorf("repeated%v", got)
	}
	if got := before.Diff(after).Of("77"); len(got) != 1 {
		t.Errorf("marked%v", got)
	}
}
