//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStatusOfAProcess(t *testing.T) {
	u, err := parseStatus("Name:\tx\nVmRSS:\t   1234 kB\nThreads:\t9\n")
	if err != nil || u["memory KiB"] != 1234 || u["threads"] != 9 {
		t.Errorf("%v, %v", u, err)
	}
	for _, bad := range []string{"", "Name:\tx\nThreads:\t1\n", "VmRSS:\tmany kB\nThreads:\t1\n"} {
		if u, err := parseStatus(bad); err == nil {
			t.Errorf("%q: %v", bad, u)
		}
	}
	own, err := processUsage(os.Getpid())
	if err != nil || own["descriptors"] == 0 || own["memory KiB"] == 0 {
		t.Errorf("%v, %v", own, err)
	}
	if _, err := processUsage(0); err == nil {
		t.Error("a process 0")
	}
}

func TestFilesBelow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := filesBelow(dir); err != nil || n != 4 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestProcessIsKnownByItsWords(t *testing.T) {
	p := process{argv: []string{"/tmp/bin/vendetta", "server", "start"}}
	if !p.is("vendetta", "server") || p.is("server", "stop") {
		t.Error("words are not compared one by one")
	}
}

func TestGrowthBeyondTheSlackIsTold(t *testing.T) {
	before := snapshot{server: {"memory KiB": 1000, "descriptors": 10}, whole: {"processes": 4}}
	within := snapshot{server: {"memory KiB": 1000 + 16<<10, "descriptors": 22}, whole: {"processes": 4}}
	var b strings.Builder
	if !report(&b, before, within) {
		t.Errorf("what is within the slack was refused:\n%s", b.String())
	}
	for _, after := range []snapshot{
		{server: {"memory KiB": 1001 + 16<<10}},
		{server: {"descriptors": 23}},
		{whole: {"processes": 5}},
		{whole: {"containers": 1}},
		{"a guest that was not there": {"descriptors": 13}},
	} {
		b.Reset()
		if report(&b, before, after) || !strings.Contains(b.String(), "NO") {
			t.Errorf("%v was not refused:\n%s", after, b.String())
		}
	}
	if got := len(compare(before, snapshot{})); got != 3 {
		t.Errorf("%d comparisons with nothing", got)
	}
}
