package coordination

import (
	"testing"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestPrincipalTravelsWithTheContext(t *testing.T) {
	want := Principal{Name: LocalPrincipal, Scope: vendettav1.Scope_SCOPE_ADMIN, Local: true}
	if got := PrincipalFrom(WithPrincipal(t.Context(), want)); got != want {
		t.Errorf("PrincipalFrom = %+v, want %+v", got, want)
	}
	if got := PrincipalFrom(t.Context()); got != (Principal{}) {
		t.Errorf("PrincipalFrom of a bare context = %+v, want the zero one", got)
	}
}

func TestPrincipalMay(t *testing.T) {
	const (
		none    = vendettav1.Scope_SCOPE_UNSPECIFIED
		read    = vendettav1.Scope_SCOPE_READ
		operate = vendettav1.Scope_SCOPE_OPERATE
		admin   = vendettav1.Scope_SCOPE_ADMIN
	)
	for _, c := range []struct {
		held, asked vendettav1.Scope
		want        bool
	}{
		{none, none, false}, {none, read, false},
		{read, read, true}, {read, operate, false}, {read, admin, false},
		{operate, read, true}, {operate, operate, true}, {operate, admin, false},
		{admin, read, true}, {admin, admin, true},
		{admin, none, false},
	} {
		if got := (Principal{Scope: c.held}).May(c.asked); got != c.want {
			t.Errorf("%v may %v: %v, want %v", c.held, c.asked, got, c.want)
		}
	}
}
