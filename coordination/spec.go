package coordination

import (
	"fmt"
	"math"
	"regexp"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// leastMemory lets a guest and a small command live, leastDisk its records and
// a few files.
const (
	leastMemory = 16 << 20
	leastDisk   = 16 << 20
)

// checkSpec refuses what no provider can make. The rest is the provider's to judge.
func checkSpec(spec *vendettav1.WorkspaceSpec) error {
	if p := spec.GetProvider(); p != "" && !namePattern.MatchString(p) {
		return api.Errorf(api.InvalidArgument, "provider %q: it is not a name", clip(p)).WithNext("vendetta node status NODE lists the providers")
	}
	if err := checkWord("image", spec.GetImage()); err != nil {
		return err
	}
	if err := checkChecksum(spec); err != nil {
		return err
	}
	if spec.GetPrivileged() && spec.GetProvider() != providerLXC {
		return api.Errorf(api.InvalidArgument, "privileged: only provider lxc makes workspaces whose root is the node's root").
			WithNext("use --provider lxc with it, or leave --privileged out")
	}
	if err := checkResources(spec.GetResources()); err != nil {
		return err
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

// checkResources refuses limits that are none. Zero leaves a limit open.
func checkResources(r *vendettav1.Resources) error {
	if c := r.GetCpus(); c < 0 || math.IsNaN(c) || math.IsInf(c, 0) {
		return api.Errorf(api.InvalidArgument, "resources: %v cpus are none", c).WithNext("use a number above 0, or leave it out")
	}
	if m := r.GetMemoryBytes(); m > 0 && m < leastMemory {
		return api.Errorf(api.InvalidArgument, "resources: %d bytes of memory are too few", m).WithNext("use at least 16M, or leave it out")
	}
	if r.GetMemoryBytes() > math.MaxInt64 {
		return api.Errorf(api.InvalidArgument, "resources: %d bytes of memory are too many", r.GetMemoryBytes())
	}
	if d := r.GetDiskBytes(); d > 0 && d < leastDisk {
		return api.Errorf(api.InvalidArgument, "resources: %d bytes of disk are too few", d).WithNext("use at least 16M, or leave it out")
	}
	if r.GetDiskBytes() > math.MaxInt64 {
		return api.Errorf(api.InvalidArgument, "resources: %d bytes of disk are too many", r.GetDiskBytes())
	}
	if r.GetPids() < 0 {
		return api.Errorf(api.InvalidArgument, "resources: %d processes are none", r.GetPids()).WithNext("use a number above 0, or leave it out")
	}
	return nil
}

var checksumPattern = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)

// checkChecksum refuses a checksum that is none, and one that would not be
// looked at: what a registry serves is named by its digest.
func checkChecksum(spec *vendettav1.WorkspaceSpec) error {
	sum, image := spec.GetChecksum(), spec.GetImage()
	switch {
	case sum == "":
		return nil
	case !checksumPattern.MatchString(sum):
		return api.Errorf(api.InvalidArgument, "checksum %q: it is none", clip(sum)).
			WithNext("give sha256: and 64 or sha512: and 128 hexadecimal digits in lower case, as sha512sum prints them")
	case !strings.HasPrefix(image, "https://") && !strings.HasPrefix(image, "http://"):
		return api.Errorf(api.InvalidArgument, "checksum: image %s is not fetched by an address that begins with https://", quoted(clip(image))).
			WithNext("leave the checksum out; an image of a registry is pinned as NAME@sha256:HEX")
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
	case want.GetChecksum() != have.GetChecksum():
		return differ("checksum", quoted(want.GetChecksum()), quoted(have.GetChecksum()))
	case want.GetPrivileged() != have.GetPrivileged():
		return differ("kind of root", rootWord(want), rootWord(have))
	case w.GetCpus() != h.GetCpus():
		return differ("number of cpus", w.GetCpus(), h.GetCpus())
	case w.GetMemoryBytes() != h.GetMemoryBytes():
		return differ("memory limit", w.GetMemoryBytes(), h.GetMemoryBytes())
	case w.GetPids() != h.GetPids():
		return differ("limit of processes", w.GetPids(), h.GetPids())
	case w.GetDiskBytes() != h.GetDiskBytes():
		return differ("disk limit", w.GetDiskBytes(), h.GetDiskBytes())
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

func rootWord(s *vendettav1.WorkspaceSpec) string {
	if s.GetPrivileged() {
		return "privileged"
	}
	return "unprivileged"
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
