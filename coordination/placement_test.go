package coordination

import (
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func on(name string, freeGiB uint64, providers ...string) candidate {
	c := candidate{id: "id-" + name, name: name, report: &vendettav1.NodeReport{
		Capacity: &vendettav1.Capacity{MemoryFreeBytes: freeGiB << 30},
	}}
	for _, p := range providers {
		usable := !strings.HasPrefix(p, "!")
		s := &vendettav1.ProviderStatus{Name: strings.Trim(p, "!?"), Usable: usable}
		if !usable {
			s.Reason = "the daemon does not run"
			if !strings.HasSuffix(p, "?") {
				s.Fix = "systemctl start docker"
			}
		}
		c.report.Providers = append(c.report.Providers, s)
	}
	return c
}

func TestPlacement(t *testing.T) {
	away := on("away", 99, "docker", "native")
	away.down = api.Errorf(api.Unavailable, "node away is lost: it does not answer").WithNext("vendetta node test away")
	drained := on("drained", 99, "docker", "native")
	drained.draining = true
	cases := []struct {
		name     string
		nodes    []candidate
		node     string
		provider string
		image    string

		want string // node/provider, or the code of an error
		says []string
	}{
		{name: "no node", want: "failed_precondition", says: []string{"no node"}},
		{name: "no such node", node: "x", want: "not_found", says: []string{`"x"`}},
		{name: "the only one", nodes: []candidate{on("a", 1, "docker", "native")}, want: "a/docker", says: []string{"node a (the only one)", "provider docker"}},
		{name: "native when docker is not usable", nodes: []candidate{on("a", 1, "!docker", "native")}, want: "a/native", says: []string{"provider native"}},
		{name: "native with an image too", nodes: []candidate{on("a", 1, "!docker", "native")}, image: "debian", want: "a/native", says: []string{"provider native"}},
		{name: "nothing usable", nodes: []candidate{on("a", 1, "!docker", "!native?")}, want: "failed_precondition", says: []string{"docker is not usable", "native is not usable"}},
		{name: "named and unusable", nodes: []candidate{on("a", 1, "!docker?", "native")}, provider: "docker", want: "failed_precondition", says: []string{"daemon"}},
		{name: "named and absent", nodes: []candidate{on("a", 1, "docker")}, provider: "lxc", want: "failed_precondition", says: []string{`no provider "lxc"`}},
		{name: "no providers", nodes: []candidate{on("a", 1)}, provider: "lxc", want: "failed_precondition", says: []string{`no provider "lxc"`}},
		{name: "named node", nodes: []candidate{on("a", 1, "docker"), on("b", 9, "docker")}, node: "a", want: "a/docker", says: []string{"provider docker"}},
		{name: "all named", nodes: []candidate{on("a", 1, "docker")}, node: "a", provider: "docker", want: "a/docker"},
		{name: "named node is lost", nodes: []candidate{away, on("b", 9, "docker")}, node: "away", want: "unavailable", says: []string{"lost"}},
		{name: "the only one drains", nodes: []candidate{drained}, want: "failed_precondition", says: []string{"draining"}},
		{
			name: "most free memory", nodes: []candidate{away, on("b", 2, "docker"), on("c", 8, "docker"), on("d", 8, "docker"), drained},
			want: "c/docker", says: []string{"node c (most free memory, 8.0 GiB, of 3 ready with docker)", "provider docker"},
		},
		{name: "docker before memory", nodes: []candidate{on("a", 2, "docker"), on("b", 8, "native")}, want: "a/docker"},
		{name: "native among several", nodes: []candidate{on("a", 2, "native"), on("b", 8, "native"), on("c", 16, "!native")}, want: "b/native", says: []string{"provider native"}},
		{name: "provider among several", nodes: []candidate{on("a", 2, "docker", "native"), on("b", 8, "docker")}, provider: "native", want: "a/native", says: []string{"of 1 ready"}},
		{name: "none of several", nodes: []candidate{away, drained, on("c", 1, "!docker")}, image: "debian", want: "failed_precondition", says: []string{"lost", "draining", "daemon"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := choosePlace(c.nodes, c.node, &vendettav1.WorkspaceSpec{Provider: c.provider, Image: c.image})
			if err != nil {
				wantError(t, err, api.Code(c.want), c.says...)
				return
			}
			if got.node+"/"+got.provider != c.want || got.nodeID != "id-"+got.node {
				t.Errorf("%+v, want %s", got, c.want)
			}
			for _, s := range c.says {
				if !strings.Contains(got.note, s) {
					t.Errorf("note %q lacks %q", got.note, s)
				}
			}
		})
	}
}
