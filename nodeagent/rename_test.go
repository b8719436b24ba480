package nodeagent

import (
	"slices"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/providers"
)

// A running instance that gets another name is not touched, keeps its guest's
// link, and is spoken of by the new name; so it is after a restart.
func TestNewNameLeavesTheInstance(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	spare := request("o1", 1, running)
	spare.WorkspaceName = "spare-w1"
	n.apply(spare)
	s, err := n.agent.server("s1")
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.link("w1")
	if err != nil || !before.up() {
		t.Fatal(err)
	}
	did := b.did()
	if o := n.apply(request("o2", 2, running)); o.GetState() != isRunning || o.GetGeneration() != 2 || o.GetOperationId() != "o2" {
		t.Errorf("got %v", o)
	}
	after, err := s.link("w1")
	if err != nil || after != before || !after.up() || after.called() != "web" {
		t.Errorf("link %v, %v", after, err)
	}
	if again := b.did(); !slices.Equal(did, again) {
		t.Errorf("did %v, then %v", did, again)
	}
	n.end()
	n = start(t, n.dir, []providers.Provider{b})
	eventually(t, "the workspace is there again", func() bool { return n.seen().GetLinked() })
	if again := b.did(); !slices.Equal(did, again) {
		t.Errorf("did %v, then %v", did, again)
	}
	n.apply(request("o3", 3, stopped))
	if s, err = n.agent.server("s1"); err != nil {
		t.Fatal(err)
	}
	if _, err = s.link("w1"); api.CodeOf(err) != api.FailedPrecondition || !strings.Contains(api.From(err).Next, "vendetta workspace up web") {
		t.Errorf("got %v", err)
	}
}

// A spare that died unseen comes up as the workspace that it has become.
func TestNewNameOfADeadInstance(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	n := start(t, "", []providers.Provider{b})
	n.apply(request("o1", 1, running))
	b.reboot()
	if o := n.apply(request("o2", 2, running)); o.GetState() != isRunning || o.GetErrorCode() != "" {
		t.Errorf("got %v", o)
	}
	if !b.volumes["w1"] {
		t.Error("the volume is gone")
	}
}
