package coordination

import (
	"fmt"
	"math"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// leastMemory lets a guest and a small command live.
const leastMemory = 16 << 20

// checkSpec refuses what no provider can make. The rest is the provider's to judge.
func checkSpec(spec *vendettav1.WorkspaceSpec) error {
	if p := spec.GetProvider(); p != "" && !namePattern.MatchString(p) {
		return api.Errorf(api.InvalidArgument, "provider %q: it is not a name", clip(p)).WithNext("vendetta node status NODE lists the providers")
	}
	if err := checkWord("image", spec.GetImage()); err != nil {
		return err
	}
	if spec.GetProvider() == providerNative && spec.GetImage() != "" {
		return api.Errorf(api.InvalidArgument, "image %q: native workspaces use the node's own system and take no image", clip(spec.GetImage())).
			WithNext("leave the image out, or use provider docker")
	}
	r := spec.GetResources()
	if c := r.GetCpus(); c < 0 || math.IsNaN(c) || math.IsInf(c, 0) {
		return api.Errorf(api.InvalidArgument, "resources: %v cpus are none", c).WithNext("use a number above 0, or leave it out")
	}
	if m := r.GetMemoryBytes(); m > 0 && m < leastMemory {
		return api.Errorf(api.InvalidArgument, "resources: %d bytes of memory are too few", m).WithNext("use at least 16M, or leave it out")
	}
	if r.GetMemoryBytes() > math.MaxInt64 {
		return api.Errorf(api.InvalidArgument, "resources: %d bytes of memory are too many", r.GetMemoryBytes())
	}
	if r.GetPids() < 0 {
		return api.Errorf(api.InvalidArgument, "resources: %d processes are none", r.GetPids()).WithNext("use a number above 0, or leave it out")
	}
	if _, known := vendettav1.Network_name[int32(spec.GetNetwork())]; !known {
		return api.Errorf(api.InvalidArgument, "network: %d is none", spec.GetNetwork()).WithNext("use private, none or host")
	}
	src := spec.GetSource()
	for _, w := range []string{src.GetPath(), src.GetBranch(), src.GetCommit()} {
		if err := checkPath("source", w); err != nil {
			return err
		}
	}
	return nil
}

// specDifference names the first way in which a request differs from what
// exists, "" when it is the same. What the request leaves open differs from
// nothing, and neither does a repository that has moved on since.
func specDifference(wantNode, node string, want, have *vendettav1.WorkspaceSpec) string {
	differ := func(what string, want, have any) string {
		return fmt.Sprintf("%s (%v, not %v)", what, have, want)
	}
	network := func(s *vendettav1.WorkspaceSpec) vendettav1.Network {
		if s.GetNetwork() == vendettav1.Network_NETWORK_UNSPECIFIED {
			return vendettav1.Network_NETWORK_PRIVATE
		}
		return s.GetNetwork()
	}
	w, h := want.GetResources(), have.GetResources()
	switch {
	case wantNode != "" && wantNode != node:
		return differ("node", wantNode, node)
	case want.GetProvider() != "" && want.GetProvider() != have.GetProvider():
		return differ("provider", want.GetProvider(), have.GetProvider())
	case want.GetImage() != have.GetImage():
		return differ("image", quoted(want.GetImage()), quoted(have.GetImage()))
	case w.GetCpus() != h.GetCpus():
		return differ("number of cpus", w.GetCpus(), h.GetCpus())
	case w.GetMemoryBytes() != h.GetMemoryBytes():
		return differ("memory limit", w.GetMemoryBytes(), h.GetMemoryBytes())
	case w.GetPids() != h.GetPids():
		return differ("limit of processes", w.GetPids(), h.GetPids())
	case network(want) != network(have):
		return differ("network", networkWord(network(want)), networkWord(network(have)))
	case want.GetSource().GetPath() != have.GetSource().GetPath():
		return differ("source", quoted(want.GetSource().GetPath()), quoted(have.GetSource().GetPath()))
	}
	return ""
}

func quoted(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func networkWord(n vendettav1.Network) string {
	switch n {
	case vendettav1.Network_NETWORK_NONE:
		return "none"
	case vendettav1.Network_NETWORK_HOST:
		return "host"
	default:
		return "private"
	}
}
