// Command cover reads Go coverage profiles and fails when a package has less than
// the least share of its statements covered. A statement counts as covered when
// any run of any profile reached it, so tests of all kinds add up.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

func main() {
	least := flag.Float64("least", 90, "least percentage of statements a package must have covered")
	flag.Parse()
	if err := check(os.Stdout, *least, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "cover:", err)
		os.Exit(1)
	}
}

// excluded names what does not count: generated code, the main functions, and the
// suites and harnesses that are tests themselves.
func excluded(file string) bool {
	return strings.HasSuffix(file, ".pb.go") || strings.HasSuffix(file, ".connect.go") ||
		strings.Contains(file, "/cmd/") && path.Base(file) == "main.go" ||
		strings.Contains(file, "/evals/") ||
		strings.HasSuffix(path.Dir(file), "test")
}

type block struct {
	statements int
	covered    bool
}

func check(w io.Writer, least float64, profiles []string) error {
	packages := map[string]map[string]block{}
	for _, name := range profiles {
		if err := read(name, packages); err != nil {
			return err
		}
	}
	if len(packages) == 0 {
		return fmt.Errorf("no statements in %s", strings.Join(profiles, ", "))
	}
	var low []string
	for _, pkg := range slices.Sorted(maps.Keys(packages)) {
		all, covered := 0, 0
		for _, b := range packages[pkg] {
			all += b.statements
			if b.covered {
				covered += b.statements
			}
		}
		share := 100 * float64(covered) / float64(max(all, 1))
		if _, err := fmt.Fprintf(w, "%6.1f%%  %5d  %s\n", share, all, pkg); err != nil {
			return err
		}
		if share < least {
			low = append(low, fmt.Sprintf("%s has %.1f%%", pkg, share))
		}
	}
	// The packages, as a test runner would close; CI reads its last line.
	if _, err := fmt.Fprintf(w, "%d passed, %d failed\n", len(packages)-len(low), len(low)); err != nil {
		return err
	}
	if len(low) > 0 {
		return fmt.Errorf("under %.0f%%: %s", least, strings.Join(low, ", "))
	}
	return nil
}

// read adds one profile: lines of "file:from,to statements count" after a mode line.
func read(name string, packages map[string]map[string]block) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "mode:") {
			continue
		}
		fields := strings.Fields(line)
		file, _, found := strings.Cut(line, ":")
		if len(fields) != 3 || !found {
			return fmt.Errorf("%s: not a profile line: %q", name, line)
		}
		if excluded(file) {
			continue
		}
		statements, err := strconv.Atoi(fields[1])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		pkg := path.Dir(file)
		if packages[pkg] == nil {
			packages[pkg] = map[string]block{}
		}
		b := packages[pkg][fields[0]]
		b.statements = statements
		b.covered = b.covered || fields[2] != "0"
		packages[pkg][fields[0]] = b
	}
	return lines.Err()
}
