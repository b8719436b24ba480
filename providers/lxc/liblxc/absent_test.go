//go:build !(linux && cgo && lxc)

package liblxc

import (
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/providers/lxc/helper"
)

func TestAbsent(t *testing.T) {
	if a := Do(helper.Request{Verb: helper.Version}); !strings.Contains(a.Error, "make build") {
		t.Errorf("%+v", a)
	}
}
