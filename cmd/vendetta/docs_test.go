package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const docsDir = "../../docs"

// visible calls f for every command that people see, with its full path.
func visible(cmd *cobra.Command, f func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Runnable() && !c.HasSubCommands() {
			f(c)
		}
		visible(c, f)
	}
}

func newTestRoot() *cobra.Command {
	return newRoot(newApp(bytes.NewReader(nil), &bytes.Buffer{}, &bytes.Buffer{}, func(string) string { return "" }))
}

// cliPage is docs/cli.md as the commands say it.
func cliPage() string {
	var b strings.Builder
	b.WriteString("# Commands\n\nResults go to stdout, everything else to stderr. Written from the commands' own help; `vendetta COMMAND --help` says more.\n")
	root := newTestRoot()
	b.WriteString("\nEvery command takes:\n\n")
	flags(&b, root.PersistentFlags())
	visible(root, func(c *cobra.Command) {
		fmt.Fprintf(&b, "\n## `%s`\n\n%s.\n", strings.TrimSuffix(c.UseLine(), " [flags]"), c.Short)
		if c.Long != "" {
			fmt.Fprintf(&b, "\n%s\n", c.Long)
		}
		if c.LocalNonPersistentFlags().HasAvailableFlags() {
			b.WriteString("\n")
			flags(&b, c.LocalNonPersistentFlags())
		}
	})
	return b.String()
}

func flags(b *strings.Builder, set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(b, "- `%s`: %s\n", name, f.Usage)
	})
}

func TestEveryCommandAndFlagIsDocumented(t *testing.T) {
	path := filepath.Join(docsDir, "cli.md")
	want := cliPage()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/cli.md does not say what the commands say; run: go test ./cmd/vendetta -run %s -update", t.Name())
	}
}

func TestEveryCommandHasAWorkflow(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docsDir, "workflows.md"))
	if err != nil {
		t.Fatal(err)
	}
	visible(newTestRoot(), func(c *cobra.Command) {
		name := strings.TrimPrefix(c.CommandPath(), "vendetta ")
		if !strings.Contains(string(page), "`"+name) {
			t.Errorf("docs/workflows.md names no workflow of %q", name)
		}
	})
}

// toolNames are the gateway's tools, as their golden files have them.
func toolNames(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../mcp/testdata/tools/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tools: %v", err)
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = strings.TrimSuffix(filepath.Base(f), ".json")
	}
	return names
}

func TestEveryToolIsDocumented(t *testing.T) {
	for _, name := range []string{"workflows.md", "mcp.md"} {
		page, err := os.ReadFile(filepath.Join(docsDir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, tool := range toolNames(t) {
			if !strings.Contains(string(page), "`"+tool+"`") {
				t.Errorf("docs/%s says nothing of the tool %s", name, tool)
			}
		}
	}
}

// Every test that the page names must exist, and every row must name one.
func TestEveryWorkflowNamesATestThatExists(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docsDir, "workflows.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := testNames(t, "../..")
	rows := 0
	for _, line := range strings.Split(string(page), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| workflow") {
			continue
		}
		rows++
		names := regexp.MustCompile("`(Test[A-Za-z0-9_]+|[a-z0-9-]+\\.txtar)`").FindAllStringSubmatch(line, -1)
		if len(names) == 0 {
			t.Errorf("no test is named in: %s", line)
		}
		for _, n := range names {
			if !known[n[1]] {
				t.Errorf("there is no test %s, named in: %s", n[1], line)
			}
		}
	}
	if rows < 20 {
		t.Errorf("docs/workflows.md lists %d workflows", rows)
	}
}

// testNames are the test functions and script files below root.
func testNames(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == ".cache"):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".txtar"):
			names[d.Name()] = true
		case strings.HasSuffix(path, "_test.go"):
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range function.FindAllStringSubmatch(string(data), -1) {
				names[m[1]] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
