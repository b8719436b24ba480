package main

import (
	"strings"
	"testing"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func TestNodeSpares(t *testing.T) {
	s := newStage(t)
	n := s.server.AddNode("build1")
	r := s.ok("node spares build1 --provider docker --image debian:12 --count 2", "build1")
	if got := s.nodes.spares; got.GetNode() != "build1" || got.GetProvider() != "docker" || got.GetImage() != "debian:12" || got.GetCount() != 2 || !strings.Contains(r.err, "vendetta node status build1") {
		t.Errorf("%v, said %q", got, r.err)
	}
	s.ok("node spares build1 --provider native --count 0 --json", `"name": "build1"`)
	if got := s.nodes.spares; got.GetProvider() != "native" || got.GetImage() != "" || got.GetCount() != 0 {
		t.Errorf("%v", got)
	}
	s.fails(2, "node spares build1 --provider docker", "--count is missing")
	s.fails(2, "node spares build1 --count 1", "--provider is missing")
	s.fails(3, "node spares nothere --provider docker --count 1")
	n.Spares = []*vendettav1.Spares{
		{Provider: "docker", Image: "debian:12", Count: 2, Ready: 2},
		{Provider: "native", Count: 3, Ready: 1, Message: "memory is short: 0.5 GiB free of 8.0 GiB"},
	}
	s.ok("node status build1", "docker debian:12: 2 of 2 ready\n", "native: 1 of 3 ready; memory is short: 0.5 GiB free of 8.0 GiB")
}
