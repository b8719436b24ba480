package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	mcpgo "github.com/mark3labs/mcp-go/mcp"

	"github.com/vendetta-dev/vendetta/coordination/client/clienttest"
)

// try calls a tool as a client would, past the wire.
func try(ctx context.Context, t testing.TB, g *Gateway, name string, args map[string]any) (answer string, isError bool) {
	t.Helper()
	tool := g.server.GetTool(name)
	if tool == nil {
		t.Fatalf("no tool %s", name)
	}
	var decoded map[string]any // with the types that the wire has
	if err := json.Unmarshal(encode(args), &decoded); err != nil {
		t.Fatal(err)
	}
	r, err := tool.Handler(ctx, mcpgo.CallToolRequest{Params: mcpgo.CallToolParams{Name: name, Arguments: decoded}})
	if err != nil {
		t.Fatalf("%s: a Go error: %v", name, err)
	}
	if len(r.Content) != 1 || r.StructuredContent != nil {
		t.Fatalf("%s: the result is not one text: %v", name, r)
	}
	text, _ := r.Content[0].(mcpgo.TextContent)
	if len(text.Text) > resultMost+1000 {
		t.Errorf("%s: the result has %d bytes", name, len(text.Text))
	}
	if r.IsError && !strings.Contains(text.Text, "\nnext: ") {
		t.Errorf("%s: an error without a next step: %s", name, text.Text)
	}
	return text.Text, r.IsError
}

func ok(t testing.TB, g *Gateway, name string, args map[string]any) string {
	t.Helper()
	answer, isError := try(context.Background(), t, g, name, args)
	if isError {
		t.Fatalf("%s: %s", name, answer)
	}
	return answer
}

func fails(t testing.TB, g *Gateway, name string, args map[string]any, want ...string) {
	t.Helper()
	answer, isError := try(context.Background(), t, g, name, args)
	if !isError {
		t.Errorf("%s %v: no error: %s", name, args, answer)
	}
	has(t, answer, want...)
}

func has(t testing.TB, answer string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(answer, w) {
			t.Errorf("%q is missing in:\n%s", w, answer)
		}
	}
}

// The tools that the product promises.
var promised = []string{
	"exec", "file_edit", "file_list", "file_read", "file_search", "file_write", "node_list", "node_status",
	"process_input", "process_list", "process_output", "process_signal",
	"workspace_create", "workspace_list", "workspace_rm", "workspace_status", "workspace_stop", "workspace_up",
}

func TestToolSchemas(t *testing.T) {
	t.Parallel()
	var names []string
	for _, tool := range tools() {
		names = append(names, tool.name)
		definition := tool.definition()
		raw, err := json.Marshal(definition)
		if err != nil {
			t.Fatal(err)
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, raw, "", "  "); err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("testdata", "tools", tool.name+".json"), pretty.String()+"\n")

		if !regexp.MustCompile(`^[a-z0-9_]{1,40}$`).MatchString(tool.name) {
			t.Errorf("%s: name", tool.name)
		}
		a := definition.Annotations
		if definition.Title == "" || a.Title == "" || definition.Description == "" ||
			a.ReadOnlyHint == nil || a.DestructiveHint == nil || a.IdempotentHint == nil || a.OpenWorldHint == nil {
			t.Errorf("%s: title, description or a hint is missing", tool.name)
		}
		if *a.ReadOnlyHint && *a.DestructiveHint {
			t.Errorf("%s: both read-only and destructive", tool.name)
		}
		var schema map[string]any
		if err := json.Unmarshal(tool.schema(), &schema); err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"oneOf", "anyOf", "allOf", "$ref"} {
			if _, found := schema[word]; found {
				t.Errorf("%s: %s at the top", tool.name, word)
			}
		}
		if schema["type"] != "object" || schema["additionalProperties"] != false {
			t.Errorf("%s: schema %v", tool.name, schema)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, promised) {
		t.Errorf("tools = %q", names)
	}
	if files, _ := filepath.Glob("testdata/tools/*.json"); len(files) != len(promised) {
		t.Errorf("%d golden files for %d tools", len(files), len(promised))
	}
}

// What the model has to read before it does anything stays small.
func TestContextBudget(t *testing.T) {
	t.Parallel()
	total := 0
	for _, tool := range tools() {
		raw, err := json.Marshal(tool.definition())
		if err != nil {
			t.Fatal(err)
		}
		total += len(raw)
	}
	if const18kB := 18_000; total > const18kB {
		t.Errorf("tools/list has %d bytes, the budget is %d", total, const18kB)
	}
	if len(tools()) > 25 {
		t.Errorf("%d tools", len(tools()))
	}
	if head := instructions[:min(512, len(instructions))]; !strings.Contains(head, "workspace_create") || !strings.Contains(head, "exec") || !strings.Contains(head, "process_output") {
		t.Errorf("the first 512 characters of the instructions: %s", head)
	}
}

func TestChoiceOfTools(t *testing.T) {
	t.Parallel()
	s := clienttest.New(t)
	names := func(o Options) string {
		var out []string
		for name := range gateway(t, s, o).server.ListTools() {
			out = append(out, name)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, strings.Join(promised, " ")},
		{Options{Toolsets: []string{"nodes"}}, "node_list node_status"},
		{Options{Toolsets: []string{"nodes"}, Tools: []string{"exec"}}, "exec node_list node_status"},
		{Options{Tools: []string{"exec", "file_read"}, ReadOnly: true}, "file_read"},
		{Options{ReadOnly: true}, "file_list file_read file_search node_list node_status process_list process_output workspace_list workspace_status"},
	} {
		if got := names(c.o); got != c.want {
			t.Errorf("%+v: %s, want %s", c.o, got, c.want)
		}
	}
	for _, o := range []Options{{Toolsets: []string{"no"}}, {Tools: []string{"no"}}} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "there are ") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	probe := &tool{name: "probe", params: []param{
		{name: "t", kind: text, required: true}, {name: "n", kind: integer, least: 1, most: 40}, {name: "m", kind: integer}, {name: "b", kind: boolean},
		{name: "l", kind: list}, {name: "o", kind: strmap}, {name: "e", kind: text, enum: []string{"x", "y"}},
	}}
	good := map[string]map[string]any{
		`{"b":true,"n":30,"t":"a"}`:         {"t": "a", "n": "30", "b": "true"},
		`{"m":7,"n":30,"t":"5"}`:            {"t": 5.0, "n": 30.0, "m": json.Number("7"), "b": nil},
		`{"b":false,"l":["a","1"],"t":"x"}`: {"t": "x", "l": []any{"a", 1.0}, "b": false},
		`{"l":["ls","-l"],"t":"x"}`:         {"t": "x", "l": `["ls","-l"]`},
		`{"o":{"A":"1","B":"x"},"t":"x"}`:   {"t": "x", "o": map[string]any{"A": 1.0, "B": "x"}},
		`{"o":{"A":"1"},"t":"true"}`:        {"t": true, "o": `{"A":"1"}`},
		`{"e":"y","t":"x"}`:                 {"t": "x", "e": "y"},
	}
	for want, args := range good {
		got, err := probe.parse(args)
		if err != nil || string(encode(got)) != want {
			t.Errorf("%v: %s, %v, want %s", args, encode(got), err, want)
		}
	}
	bad := map[string]any{
		"t is missing":                  map[string]any{},
		"not an object":                 []any{1},
		`no argument "aa", "x<y"`:       map[string]any{"t": "x", "x<y": 1, "aa": 2},
		"t: [1] is not a text":          map[string]any{"t": []any{1}},
		"n: 50 is not between 1 and 40": map[string]any{"t": "x", "n": "50"},
		"n: 1.5 is not a whole number":  map[string]any{"t": "x", "n": 1.5},
		"n: -3 is not a whole number":   map[string]any{"t": "x", "n": -3.0},
		`n: "many" is not a number`:     map[string]any{"t": "x", "n": "many"},
		"n: true is not a number":       map[string]any{"t": "x", "n": true},
		`b: "maybe" is neither`:         map[string]any{"t": "x", "b": "maybe"},
		`l: "ls -l" is not a list`:      map[string]any{"t": "x", "l": "ls -l"},
		"l: 5 is not a list":            map[string]any{"t": "x", "l": 5.0},
		"l: {} is not a text":           map[string]any{"t": "x", "l": []any{map[string]any{}}},
		"o: 5 is not an object":         map[string]any{"t": "x", "o": 5.0},
		`o: "x" is not an object`:       map[string]any{"t": "x", "o": "x"},
		"o: A: [] is not a text":        map[string]any{"t": "x", "o": map[string]any{"A": []any{}}},
		`e: "z" is not one of x, y`:     map[string]any{"t": "x", "e": "z"},
	}
	for want, args := range bad {
		_, err := probe.parse(args)
		if err == nil {
			t.Errorf("%v was accepted", args)
			continue
		}
		r := failed(err)
		text, _ := r.Content[0].(mcpgo.TextContent)
		if !r.IsError || !strings.Contains(text.Text, want) || !strings.Contains(text.Text, "t (string, required), n (integer)") {
			t.Errorf("%v: %s, want %s", args, text.Text, want)
		}
	}
	s := clienttest.New(t)
	fails(t, gateway(t, s, Options{}), "node_list", map[string]any{"all": true}, `there is no argument "all"`, "it takes no arguments")
}

func FuzzArguments(f *testing.F) {
	f.Add([]byte(`{"workspace":"w","argv":["a"],"env":{"A":1},"wait_seconds":"30"}`))
	f.Add([]byte(`{"workspace":{},"argv":"[1,[2]]","wait_seconds":1e400}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v any
		if json.Unmarshal(data, &v) != nil {
			return
		}
		for _, tool := range tools() {
			if _, err := tool.parse(v); err != nil {
				failed(err)
			}
		}
	})
}
