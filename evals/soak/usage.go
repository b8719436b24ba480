//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// usage is what a process, or all of the stage, holds: a number for each measure.
type usage map[string]int64

// The measures, and by how much each may have grown at the end. Memory is KiB.
// Threads are made when system calls block, and the Go runtime keeps them. The
// server's store keeps its connections for reading, of two descriptors each, of
// which there are as many as have read at once. Files
// come and go with the last commands that are kept.
var slack = map[string]int64{
	"memory KiB":  16 << 10,
	"descriptors": 12,
	"threads":     6,
	"processes":   0,
	"mounts":      0,
	"containers":  0,
	"volumes":     0,
	"files":       16,
}

// processUsage reads what a process holds.
func processUsage(pid int) (usage, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	u, err := parseStatus(string(status))
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	u["descriptors"] = int64(len(descriptors))
	return u, nil
}

// parseStatus reads the resident memory and the number of threads.
func parseStatus(status string) (usage, error) {
	u := usage{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		measure, ok := map[string]string{"VmRSS": "memory KiB", "Threads": "threads"}[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err != nil {
			return nil, err
		}
		u[measure] = n
	}
	if len(u) != 2 {
		return nil, fmt.Errorf("%q is no process's status", status)
	}
	return u, nil
}

// process is one that belongs to the stage.
type process struct {
	pid  int
	argv []string
}

// processesOf lists the processes whose arguments or mounts name the folder.
func processesOf(folder string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(args) == 0 {
			continue // ended meanwhile, or the kernel's own
		}
		mounts, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "mountinfo"))
		if bytes.Contains(args, []byte(folder)) || bytes.Contains(mounts, []byte(folder)) && bytes.Contains(args, []byte("vendetta")) {
			found = append(found, process{pid, strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")})
		}
	}
	return found, nil
}

func (p process) is(words ...string) bool {
	for _, w := range words {
		if !slices.ContainsFunc(p.argv, func(arg string) bool { return arg == w || filepath.Base(arg) == w }) {
			return false
		}
	}
	return true
}

// mountsBelow counts this namespace's mounts that name the folder.
func mountsBelow(folder string) (int64, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	return int64(strings.Count(string(info), folder+"/")), err
}

// filesBelow counts files and folders.
func filesBelow(folder string) (int64, error) {
	var n int64
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil // removed meanwhile
		case err != nil:
			return err
		}
		n++
		return nil
	})
	return n, err
}
