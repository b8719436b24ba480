package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

const (
	// maxValue is how much of one recorded value is kept.
	maxValue = 4 << 10
	// maxFields is how much one entry keeps of its lists; what is beyond is
	// counted.
	maxFields = 64 << 10
)

// record writes the audit entry of a call that has audit fields, before the call
// is carried out.
func (h *handler) record(c *call, r *http.Request) error {
	if len(c.route.audit) == 0 {
		return nil
	}
	message, err := h.peek(c, r)
	if err != nil {
		return err
	}
	return h.write(c, r, message)
}

// write records a call whose first message is known.
func (h *handler) write(c *call, r *http.Request, message protoreflect.Message) error {
	err := h.options.Audit(r.Context(), Entry{
		Principal: c.principal.Name,
		Method:    c.route.name,
		Workspace: c.workspace,
		Fields:    fields(message, c.route.audit),
	})
	if err != nil {
		e := *api.From(err)
		e.Message = fmt.Sprintf("call %s: not carried out, since it could not be recorded: %s", c.route.name, e.Message)
		e.Cause = err
		return &e
	}
	return nil
}

// fields renders the recorded fields that are set as a JSON object.
func fields(message protoreflect.Message, audited []protoreflect.FieldDescriptor) string {
	var out bytes.Buffer
	w := fieldWriter{out: &out, left: maxFields}
	out.WriteByte('{')
	for _, field := range audited {
		if !message.Has(field) {
			continue
		}
		if out.Len() > 1 {
			out.WriteByte(',')
		}
		w.text(string(field.Name()))
		out.WriteByte(':')
		w.field(field, message.Get(field))
	}
	out.WriteByte('}')
	return out.String()
}

type fieldWriter struct {
	out *bytes.Buffer
	// left is how many bytes of lists may still be written.
	left int
}

func (w *fieldWriter) field(field protoreflect.FieldDescriptor, value protoreflect.Value) {
	if !field.IsList() {
		w.value(field, value)
		return
	}
	list := value.List()
	w.out.WriteByte('[')
	for i := range list.Len() {
		if i > 0 {
			w.out.WriteByte(',')
		}
		if w.left <= 0 {
			w.text(fmt.Sprintf("...(%d more)", list.Len()-i))
			break
		}
		before := w.out.Len()
		w.value(field, list.Get(i))
		w.left -= w.out.Len() - before
	}
	w.out.WriteByte(']')
}

func (w *fieldWriter) value(field protoreflect.FieldDescriptor, value protoreflect.Value) {
	switch {
	case field.IsMap() || field.Kind() == protoreflect.BytesKind:
		// Content and environments are never recorded, whatever an option says.
		w.text("...(not recorded)")
	case field.Message() != nil:
		w.message(value.Message())
	case field.Kind() == protoreflect.StringKind:
		w.text(cut(value.String()))
	case field.Enum() != nil:
		w.enum(field.Enum(), value.Enum())
	default:
		b, err := json.Marshal(value.Interface())
		if err != nil { // a float that JSON has no number for
			b = []byte("null")
		}
		w.out.Write(b)
	}
}

func (w *fieldWriter) enum(enum protoreflect.EnumDescriptor, number protoreflect.EnumNumber) {
	if known := enum.Values().ByNumber(number); known != nil {
		w.text(string(known.Name()))
		return
	}
	fmt.Fprint(w.out, number)
}

// message writes a message whole, or as a text that was cut.
func (w *fieldWriter) message(m protoreflect.Message) {
	b, err := protojson.Marshal(m.Interface())
	var compact bytes.Buffer
	if err == nil {
		err = json.Compact(&compact, b) // protojson varies its spaces
	}
	switch {
	case err != nil:
		w.text("...(not readable)")
	case compact.Len() > maxValue:
		w.text(cut(compact.String()))
	default:
		w.out.Write(compact.Bytes())
	}
}

// text writes a JSON string in which < > & stay readable.
func (w *fieldWriter) text(s string) {
	encoder := json.NewEncoder(w.out)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(s) // a string always can be
	w.out.Truncate(w.out.Len() - 1)
}

// cut keeps the beginning of a long value and says how much it left out.
func cut(s string) string {
	if len(s) <= maxValue {
		return s
	}
	end := maxValue
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + fmt.Sprintf("...(%d more bytes)", len(s)-end)
}
