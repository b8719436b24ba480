package sqlite

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// Times are integers, nanoseconds since 1970, NULL for the zero time. Messages
// are protobuf bytes, NULL for none. Maps, lists and limits are JSON, NULL when
// empty.

func nanos(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixNano()
}

// instant reads a time.
type instant struct{ to *time.Time }

// Scan implements sql.Scanner.
func (i instant) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		*i.to = time.Time{}
	case int64:
		*i.to = time.Unix(0, v).UTC()
	default:
		return fmt.Errorf("a time is stored as %T", value)
	}
	return nil
}

// encode makes the column of a message; m is nil or valid.
func encode[M proto.Message](m M, present bool) (any, error) {
	if !present {
		return nil, nil
	}
	b, err := proto.Marshal(m)
	if b == nil {
		b = []byte{} // an empty message is not NULL
	}
	return b, err
}

// message reads a message into the pointer that to points at.
type message[T any, M interface {
	*T
	proto.Message
}] struct{ to *M }

// Scan implements sql.Scanner.
func (m message[T, M]) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		*m.to = nil
		return nil
	case []byte:
		*m.to = new(T)
		return proto.Unmarshal(v, *m.to)
	}
	return fmt.Errorf("a message is stored as %T", value)
}

// collected is what is stored as JSON.
type collected interface {
	map[string]string | []string | []store.Spares
}

// collection makes the column of a map or list.
func collection[T collected](c T) any {
	if len(c) == 0 {
		return nil
	}
	b, _ := json.Marshal(c) // strings and numbers always can be
	return string(b)
}

type listing[T collected] struct{ to *T }

// Scan implements sql.Scanner.
func (l listing[T]) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		*l.to = nil
		return nil
	case string:
		return json.Unmarshal([]byte(v), l.to)
	}
	return fmt.Errorf("a map or list is stored as %T", value)
}

// limitsColumn makes the column of limits.
func limitsColumn(l store.Limits) any {
	if l == (store.Limits{}) {
		return nil
	}
	b, _ := json.Marshal(l) // finite numbers always can be
	return string(b)
}

// limits reads them.
type limits struct{ to *store.Limits }

// Scan implements sql.Scanner.
func (l limits) Scan(value any) error {
	*l.to = store.Limits{}
	switch v := value.(type) {
	case nil:
		return nil
	case string:
		return json.Unmarshal([]byte(v), l.to)
	}
	return fmt.Errorf("limits are stored as %T", value)
}
