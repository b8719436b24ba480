//go:build linux

package main

import (
	"os"
	"testing"
	"time"
)

func TestProcessorTimeOfAStatLine(t *testing.T) {
	const rest = " S 1 7 7 0 -1 4194560 1 2 3 4 30 12 5 6 20 0 9 0 100"
	for _, name := range []string{"(vendetta)", "(a) b (c)", "(a b)"} {
		got, err := parseCPUTime("7 " + name + rest)
		if err != nil || got != 420*time.Millisecond {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "7 (x) S 1", "no parenthesis", "7 (x) S 1 2 3 4 5 6 7 8 9 10 x 12 13"} {
		if got, err := parseCPUTime(bad); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

func TestProcessorTimeOfThisProcess(t *testing.T) {
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := cpuTime(0); err == nil {
		t.Error("a process 0")
	}
}
