package coordination

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// maxName is the longest name of a node or workspace: with a prefix it still is
// a host name.
const maxName = 40

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

const nameRule = "use lower-case letters, digits and '-', 1 to 40 characters, a letter or digit first and last, e.g. fix-login"

// checkName refuses what is not a name. kind says of what.
func checkName(kind, name string) error {
	switch {
	case name == "":
		return api.Errorf(api.InvalidArgument, "%s name: it is empty", kind).WithNext("%s", nameRule)
	case len(name) > maxName:
		return api.Errorf(api.InvalidArgument, "%s name %q: %d characters are too many", kind, clip(name), len(name)).WithNext("%s", nameRule)
	case !namePattern.MatchString(name):
		return api.Errorf(api.InvalidArgument, "%s name %q: it is not a name", kind, name).WithNext("%s", nameRule)
	}
	return nil
}

// clip shortens what a caller sent so that it fits into a message.
func clip(s string) string {
	if len(s) <= maxName {
		return s
	}
	return strings.ToValidUTF8(s[:maxName], "") + "..."
}

// maxWord bounds hosts, users, paths and images.
const maxWord = 1024

// checkWord refuses what could be taken for an option, or holds blanks or
// control characters. Empty is allowed.
func checkWord(what, word string) error {
	switch {
	case len(word) > maxWord:
		return api.Errorf(api.InvalidArgument, "%s %q: it is too long", what, clip(word))
	case strings.HasPrefix(word, "-"):
		return api.Errorf(api.InvalidArgument, "%s %q: it begins with '-'", what, clip(word))
	case strings.IndexFunc(word, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar }) >= 0:
		return api.Errorf(api.InvalidArgument, "%s %q: it holds a blank or control character", what, clip(word))
	}
	return nil
}

// checkPath is checkWord for file names, which may hold blanks.
func checkPath(what, path string) error {
	if len(path) > maxWord || strings.ContainsFunc(path, unicode.IsControl) || strings.HasPrefix(path, "-") {
		return api.Errorf(api.InvalidArgument, "%s %q: it is not a file name", what, clip(path))
	}
	return nil
}

const addressRule = "give USER@HOST, e.g. vendetta node add build1 dev@192.0.2.7, or --local for this machine"

// checkAddress refuses an address that cannot be one.
func checkAddress(a *vendettav1.NodeAddress) error {
	if a.GetLocal() {
		if a.GetHost() != "" || a.GetUser() != "" || a.GetPort() != 0 || len(a.GetJump()) > 0 {
			return api.Errorf(api.InvalidArgument, "node address: it names both this machine and %q", clip(a.GetHost())).
				WithNext("%s", addressRule)
		}
		return nil
	}
	if a.GetHost() == "" {
		return api.Errorf(api.InvalidArgument, "node address: no host").WithNext("%s", addressRule)
	}
	if a.GetPort() < 0 || a.GetPort() > 65535 {
		return api.Errorf(api.InvalidArgument, "node address: port %d is none", a.GetPort()).WithNext("use a port of 1 to 65535")
	}
	if strings.ContainsAny(a.GetHost(), "/@") {
		return api.Errorf(api.InvalidArgument, "node address: host %q is none", clip(a.GetHost())).WithNext("%s", addressRule)
	}
	words := []struct{ what, word string }{{"node address: host", a.GetHost()}, {"node address: user", a.GetUser()}}
	for _, j := range a.GetJump() {
		if j == "" {
			return api.Errorf(api.InvalidArgument, "node address: a jump host is empty").WithNext("give [USER@]HOST[:PORT]")
		}
		words = append(words, struct{ what, word string }{"node address: jump host", j})
	}
	for _, w := range words {
		if err := checkWord(w.what, w.word); err != nil {
			return err
		}
	}
	return checkPath("node address: identity", a.GetIdentity())
}

// checkFingerprints refuses what is no fingerprint of a host key.
func checkFingerprints(prints []string) error {
	for _, p := range prints {
		if !strings.HasPrefix(p, "SHA256:") || checkWord("fingerprint", p) != nil {
			return api.Errorf(api.InvalidArgument, "host key fingerprint %q: it is none", clip(p)).
				WithNext("give it as ssh-keygen -l prints it, SHA256:...")
		}
	}
	return nil
}

const maxLabels = 64

// checkLabels refuses labels that are none.
func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return api.Errorf(api.InvalidArgument, "node labels: %d are too many", len(labels)).WithNext("use %d at most", maxLabels)
	}
	for k, v := range labels {
		if k == "" || strings.Contains(k, "=") || checkWord("label", k) != nil || checkPath("label", v) != nil {
			return api.Errorf(api.InvalidArgument, "node label %q: it is none", clip(k+"="+v)).WithNext("use KEY=VALUE")
		}
	}
	return nil
}
