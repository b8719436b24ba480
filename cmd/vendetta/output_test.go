package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestOutputFormats(t *testing.T) {
	s := newStage(t)
	s.server.AddWorkspace(t, "w")
	for flags, want := range map[string]string{
		"":               "NAME  STATE",
		"-q":             "w\n",
		"--json":         `"name": "w"`,
		"-o json":        `"state": "WORKSPACE_STATE_RUNNING"`,
		"-o yaml":        "- created_at:",
		"--json -q":      `"workspaces": [`,
		"-o yaml --json": `"workspaces": [`,
	} {
		if r := s.ok("workspace list " + flags); !strings.Contains(r.out, want) || r.err != "" {
			t.Errorf("%q: %q is missing in:\n%s%s", flags, want, r.out, r.err)
		}
	}
	s.fails(2, "workspace list -o xml", `output format "xml": use table, json or yaml`)
}

// full fails every write, as a full disk or a closed pipe does.
type full struct{}

var errFull = errors.New("no room")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestOutputThatCannotBeWritten(t *testing.T) {
	w := table{header: []string{"A"}, rows: [][]string{{"a"}}, message: &vendettav1.Node{Name: "n"}}
	for _, format := range []string{"table", "json", "yaml"} {
		for _, quiet := range []bool{false, true} {
			a := &app{out: full{}, err: full{}, format: format, quiet: quiet}
			if err := a.print(w); err == nil {
				t.Errorf("%s, quiet %v: no error", format, quiet)
			}
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b]0;title\x07b\tc\u009bd\x7f ä"); got != "a ]0;title b c d  ä" {
		t.Errorf("got %q", got)
	}
	var out bytes.Buffer
	a := &app{out: &out, format: "table"}
	if err := a.print(table{header: []string{"A", "B"}, rows: [][]string{{"x\nY", ""}}}); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "A    B\nx Y\n" {
		t.Errorf("got %q", got)
	}
}

func TestAge(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 1400 * time.Millisecond: "1s", 119 * time.Second: "119s", 2 * time.Minute: "2m",
		119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h", 72 * time.Hour: "3d",
	} {
		if got := age(now, timestamppb.New(now.Add(-d))); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
	if got := age(now, nil); got != "-" {
		t.Errorf("never is %q", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 3 << 30: "3.0 GiB", 1 << 40: "1.0 TiB",
		1 << 50: "1.0 PiB", 1 << 62: "4096.0 PiB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestStateFolder(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, c := range []struct {
		name, flag string
		env        map[string]string
		want       string
	}{
		{"the flag", "/flag", map[string]string{"VENDETTA_STATE_DIR": "/env"}, "/flag"},
		{"the variable", "", map[string]string{"VENDETTA_STATE_DIR": "/env", "XDG_STATE_HOME": "/xdg"}, "/env"},
		{"XDG", "", map[string]string{"XDG_STATE_HOME": "/xdg"}, "/xdg/vendetta"},
		{"home", "", nil, home + "/.local/state/vendetta"},
	} {
		a := &app{stateDir: c.flag, format: "table", getenv: func(name string) string { return c.env[name] }}
		if err := a.prepare(); err != nil || a.stateDir != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, a.stateDir, err, c.want)
		}
	}
	t.Setenv("HOME", "")
	a := &app{format: "table", getenv: func(string) string { return "" }}
	if err := a.prepare(); err == nil {
		t.Error("no home: no error")
	}
	a = &app{format: "table", stateDir: "/" + strings.Repeat("x", 100), getenv: func(string) string { return "" }}
	if err := a.prepare(); err == nil || !strings.Contains(err.Error(), "the system allows 107") {
		t.Errorf("too long: %v", err)
	}
}

func TestUnknownCommands(t *testing.T) {
	s := newStage(t)
	s.fails(2, "workspace lst", `there is no command "lst"`, "next: vendetta workspace list")
	s.fails(2, "workspace nonsense", "next: vendetta workspace --help")
	s.fails(2, "workspace list --nonsense", "next: vendetta workspace list --help")
	s.ok("workspace", "Usage:")
	s.ok("--verbose --version", "vendetta")
}
