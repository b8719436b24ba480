//go:build linux

package lxc

import (
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
)

// liblxc remembers that it froze a container, also when somebody else has thawed
// it since, as happens when a pause is cut off.
func TestPauseAfterOneThatWasCutOff(t *testing.T) {
	r := newRig(t)
	r.up(spec(w1))
	if err := r.Pause(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	if err := r.machine.thaw(w1); err != nil {
		t.Fatal(err)
	}
	r.want(w1, "echo awake", "awake")
	for range 2 {
		if err := r.Pause(t.Context(), w1); err != nil {
			t.Fatal(err)
		}
		if i := r.inspect(w1); i.State != providers.StatePaused {
			t.Errorf("%+v", i)
		}
		if err := r.Resume(t.Context(), w1); err != nil {
			t.Fatal(err)
		}
	}
	r.want(w1, "echo awake", "awake")
}
