package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"gopkg.in/yaml.v3"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// table is a result with its columns.
type table struct {
	header []string
	rows   [][]string
	// names is the column that -q prints, the first unless told.
	names int
	// message is the same result whole, for json and yaml.
	message proto.Message
	// empty is said on stderr when there are no rows.
	empty string
	// name is what -q prints where the rows are the fields of one thing.
	name string
}

func (a *app) print(t table) error {
	if a.format != "table" {
		return a.printMessage(t.message)
	}
	if a.quiet && t.name != "" {
		_, err := fmt.Fprintln(a.out, t.name)
		return err
	}
	if a.quiet {
		for _, row := range t.rows {
			if _, err := fmt.Fprintln(a.out, printable(row[t.names])); err != nil {
				return err
			}
		}
		return nil
	}
	if len(t.rows) == 0 {
		a.note("%s", t.empty)
		return nil
	}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = printable(cell)
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) // memory takes it
	}
	_ = w.Flush()
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(a.out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// printable keeps what a workspace or node wrote from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
}

// printableLines is printable for a text that may have several lines. They are
// indented, so that none of them looks like one of our own.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = printable(line)
	}
	return strings.Join(lines, "\n    ")
}

func (a *app) printMessage(m proto.Message) error {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: false}.Marshal(m)
	if err != nil {
		return api.Errorf(api.Internal, "output: %w", err)
	}
	// protojson varies its white space on purpose; both formats start from the value.
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return api.Errorf(api.Internal, "output: %w", err)
	}
	if a.format == "yaml" {
		e := yaml.NewEncoder(a.out)
		e.SetIndent(2)
		if err := e.Encode(value); err != nil {
			return err
		}
		return e.Close()
	}
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// result prints a changed thing: its name alone on stdout for scripts, or the
// whole in json and yaml.
func (a *app) result(name string, m proto.Message) error {
	if a.format != "table" {
		return a.printMessage(m)
	}
	_, err := fmt.Fprintln(a.out, name)
	return err
}

// enumWord is the last word of an enum's name in lower case:
// WORKSPACE_STATE_RUNNING is running.
func enumWord(e fmt.Stringer, prefix string) string {
	word := strings.ToLower(strings.TrimPrefix(e.String(), prefix))
	if word == "unspecified" {
		return "-"
	}
	return word
}

func age(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	d := now.Sub(t.AsTime()).Round(time.Second)
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// size prints bytes as people read them, in powers of 1024.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefix := float64(n)/unit, "KMGTP"
	for value >= unit && len(prefix) > 1 {
		value, prefix = value/unit, prefix[1:]
	}
	return fmt.Sprintf("%.1f %ciB", value, prefix[0])
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
