package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/vendetta-dev/vendetta/coordination/store"
)

// tb is what the helpers need; rapid's T has it too.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

var _ tb = testing.TB(nil)

func must(t tb, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func wantErr(t tb, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error is %v, want %v", got, want)
	}
}

func equal(t tb, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(plain(got), plain(want)) {
		t.Fatalf("%s is\n%+v\nwant\n%+v", what, plain(got), plain(want))
	}
}

// plain makes records comparable: generated messages hold state of their own, so
// their JSON stands for them.
func plain(v any) any {
	switch r := v.(type) {
	case store.Node:
		address, report := text(r.Address, r.Address != nil), text(r.Report, r.Report != nil)
		r.Address, r.Report = nil, nil
		return []any{r, address, report}
	case store.Workspace:
		spec := text(r.Spec, r.Spec != nil)
		r.Spec = nil
		return []any{r, spec}
	case []store.Node:
		return each(r)
	case []store.Workspace:
		return each(r)
	}
	return v
}

func each[R any](records []R) []any {
	var all []any
	for _, r := range records {
		all = append(all, plain(r))
	}
	return all
}

func text(m proto.Message, present bool) string {
	if !present {
		return "none"
	}
	b, err := protojson.Marshal(m)
	// Its spaces vary on purpose from one build to the next, not within one.
	return fmt.Sprint(string(b), err)
}
