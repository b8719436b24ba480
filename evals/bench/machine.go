//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/docker/docker/client"
)

// machineFacts are what a reader needs to judge the numbers.
func machineFacts(ctx context.Context, engine *client.Client) []string {
	facts := []string{fmt.Sprintf("%d processors (%s), linux/%s, %s", runtime.NumCPU(), processor(), runtime.GOARCH, runtime.Version())}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		facts = append(facts, "kernel "+strings.TrimSpace(string(release)))
	}
	if v, err := engine.ServerVersion(ctx); err == nil {
		facts = append(facts, "docker engine "+v.Version)
	}
	// ssh says its version on stderr.
	if out, err := exec.CommandContext(ctx, "ssh", "-V").CombinedOutput(); err == nil {
		facts = append(facts, strings.TrimSpace(string(out)))
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(load)); len(f) > 2 {
			facts = append(facts, "load at the end "+strings.Join(f[:3], " "))
		}
	}
	return facts
}

func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
