package mcp

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/mark3labs/mcp-go/mcp"
)

// tool is one entry of the table.
type tool struct {
	name, title, set string
	description      string
	// The hints; nothing here reaches beyond the user's own machines but what a
	// command does.
	readOnly, destructive, idempotent, openWorld bool

	params []param
	// run answers with the text for the model. An error becomes a failed result.
	run func(ctx context.Context, g *Gateway, c *call) (string, error)
}

// kind is what JSON type a parameter has.
type kind string

const (
	text    kind = "string"
	integer kind = "integer"
	boolean kind = "boolean"
	list    kind = "array"
	strmap  kind = "object"
)

type param struct {
	name        string
	kind        kind
	description string
	required    bool
	// Bounds of an integer; both 0 is none.
	least, most int64
	enum        []string
}

// definition is the tool as clients see it, the schema's keys in the table's order.
func (t *tool) definition() mcp.Tool {
	return mcp.Tool{
		Name: t.name, Title: t.title, Description: t.description, RawInputSchema: t.schema(),
		Annotations: mcp.ToolAnnotation{
			Title: t.title, ReadOnlyHint: &t.readOnly, DestructiveHint: &t.destructive, IdempotentHint: &t.idempotent, OpenWorldHint: &t.openWorld,
		},
	}
}

func (t *tool) schema() json.RawMessage {
	var properties bytes.Buffer
	required := []string{}
	for i, p := range t.params {
		if i > 0 {
			properties.WriteByte(',')
		}
		properties.Write(encode(p.name))
		properties.WriteByte(':')
		properties.Write(encode(p.schema()))
		if p.required {
			required = append(required, p.name)
		}
	}
	return encode(struct {
		Type       string          `json:"type"`
		Properties json.RawMessage `json:"properties"`
		Required   []string        `json:"required,omitempty"`
		Additional bool            `json:"additionalProperties"`
	}{"object", json.RawMessage("{" + properties.String() + "}"), required, false})
}

func (p param) schema() any {
	type items struct {
		Type string `json:"type"`
	}
	s := struct {
		Type        kind     `json:"type"`
		Items       *items   `json:"items,omitempty"`
		Additional  *items   `json:"additionalProperties,omitempty"`
		Enum        []string `json:"enum,omitempty"`
		Minimum     *int64   `json:"minimum,omitempty"`
		Maximum     *int64   `json:"maximum,omitempty"`
		Description string   `json:"description"`
	}{Type: p.kind, Enum: p.enum, Description: p.description}
	switch {
	case p.kind == list:
		s.Items = &items{"string"}
	case p.kind == strmap:
		s.Additional = &items{"string"}
	case p.least != 0 || p.most != 0:
		s.Minimum, s.Maximum = &p.least, &p.most
	}
	return s
}

// encode writes JSON as it reads, without the escapes that HTML would want. Its
// arguments are plain values, which always encode.
func encode(v any) json.RawMessage {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return bytes.TrimSpace(buf.Bytes())
}
