package mcp

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// arguments are a call's, checked and brought to the types of the table.
type arguments map[string]any

func (a arguments) text(name string) string   { v, _ := a[name].(string); return v }
func (a arguments) flag(name string) bool     { v, _ := a[name].(bool); return v }
func (a arguments) list(name string) []string { v, _ := a[name].([]string); return v }
func (a arguments) table(name string) map[string]string {
	v, _ := a[name].(map[string]string)
	return v
}
func (a arguments) has(name string) bool { _, ok := a[name]; return ok }

// number is not negative: no parameter allows it.
func (a arguments) number(name string, otherwise int64) int64 {
	if v, ok := a[name].(int64); ok {
		return v
	}
	return otherwise
}

// parse checks what a client sent. Models write "30" for 30, "true" for true and
// a list as the text of one; all of these are understood. What is not known is
// refused, since it would otherwise be left out in silence.
func (t *tool) parse(raw any) (arguments, error) {
	given := map[string]any{}
	switch v := raw.(type) {
	case nil:
	case map[string]any:
		given = v
	default:
		return nil, t.refuse("the arguments are not an object")
	}
	out := arguments{}
	for _, p := range t.params {
		v, ok := given[p.name]
		if !ok || v == nil {
			if p.required {
				return nil, t.refuse("%s is missing", p.name)
			}
			continue
		}
		value, err := p.convert(v)
		if err != nil {
			return nil, t.refuse("%s: %v", p.name, err)
		}
		out[p.name] = value
	}
	unknown := []string{}
	for name := range given {
		if !slices.ContainsFunc(t.params, func(p param) bool { return p.name == name }) {
			unknown = append(unknown, strconv.Quote(name))
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return nil, t.refuse("there is no argument %s", strings.Join(unknown, ", "))
	}
	return out, nil
}

// refuse says what is wrong and what is accepted.
func (t *tool) refuse(format string, args ...any) error {
	accepted := make([]string, len(t.params))
	for i, p := range t.params {
		accepted[i] = p.name + " (" + string(p.kind)
		if p.required {
			accepted[i] += ", required"
		}
		accepted[i] += ")"
	}
	usage := "it takes no arguments"
	if len(accepted) > 0 {
		usage = "its arguments are " + strings.Join(accepted, ", ")
	}
	return api.Errorf(api.InvalidArgument, "%s: %s", t.name, fmt.Sprintf(format, args...)).WithNext("call %s again; %s", t.name, usage)
}

func (p param) convert(v any) (any, error) {
	switch p.kind {
	case integer:
		return p.integer(v)
	case boolean:
		if s, ok := v.(string); ok {
			if b, err := strconv.ParseBool(s); err == nil {
				return b, nil
			}
		}
		if b, ok := v.(bool); ok {
			return b, nil
		}
		return nil, fmt.Errorf("%s is neither true nor false", encode(v))
	case list:
		return p.strings(v)
	case strmap:
		return p.stringMap(v)
	case text:
	}
	s, err := scalar(v)
	if err == nil && len(p.enum) > 0 && !slices.Contains(p.enum, s) {
		err = fmt.Errorf("%q is not one of %s", s, strings.Join(p.enum, ", "))
	}
	return s, err
}

func (p param) integer(v any) (any, error) {
	if s, ok := v.(string); ok {
		v = json.Number(strings.TrimSpace(s))
	}
	var f float64
	switch n := v.(type) {
	case float64:
		f = n
	case json.Number:
		parsed, err := n.Float64()
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", n.String())
		}
		f = parsed
	default:
		return nil, fmt.Errorf("%s is not a number", encode(v))
	}
	if f != math.Trunc(f) || f < 0 || f > 1<<53 {
		return nil, fmt.Errorf("%v is not a whole number from 0 on", f)
	}
	n := int64(f)
	if p.most > 0 && (n < p.least || n > p.most) {
		return nil, fmt.Errorf("%d is not between %d and %d", n, p.least, p.most)
	}
	return n, nil
}

func scalar(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case float64, bool, json.Number:
		return string(encode(v)), nil
	}
	return "", fmt.Errorf("%s is not a text", encode(v))
}

func (p param) strings(v any) (any, error) {
	if s, ok := v.(string); ok {
		var inner []any
		if json.Unmarshal([]byte(s), &inner) != nil {
			return nil, fmt.Errorf("%q is not a list; each element is one text, e.g. [\"ls\",\"-l\"]", s)
		}
		v = inner
	}
	elements, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s is not a list of texts", encode(v))
	}
	out := make([]string, len(elements))
	for i, e := range elements {
		s, err := scalar(e)
		if err != nil {
			return nil, err
		}
		out[i] = s
	}
	return out, nil
}

func (p param) stringMap(v any) (any, error) {
	if s, ok := v.(string); ok {
		var inner map[string]any
		if json.Unmarshal([]byte(s), &inner) != nil {
			return nil, fmt.Errorf("%q is not an object", s)
		}
		v = inner
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s is not an object of texts", encode(v))
	}
	out := make(map[string]string, len(fields))
	for name, e := range fields {
		s, err := scalar(e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = s
	}
	return out, nil
}
