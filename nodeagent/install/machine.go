package install

import (
	"context"
	"path"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// machine is what an inspection found.
type machine struct {
	// arch is Go's name of the processor.
	arch string
	// stateDir of the login user.
	stateDir string
	// sums of the installed programs, by name.
	sums map[string]string
	// servers whose keys the login user accepts, by comment.
	servers map[string]bool
}

func (m machine) program() string { return path.Join(m.stateDir, "bin", agentProgram) }

// architectures by what uname -m says.
var architectures = map[string]string{
	"x86_64": "amd64", "amd64": "amd64",
	"aarch64": "arm64", "arm64": "arm64",
}

// keysFile finds the authorized_keys file, a link followed.
const keysFile = `f=${VENDETTA_AUTHORIZED_KEYS:-$HOME/.ssh/authorized_keys}; if [ -L "$f" ]; then f=$(readlink -f -- "$f") || fail "follow $f"; fi; `

// inspect asks what machine it is and what is there already.
func inspect(ctx context.Context, r Runner) (machine, error) {
	const what = "inspect machine"
	said, err := script(ctx, r, what,
		`say uname $(uname -sm); d=${VENDETTA_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/vendetta}; `+
			`[ "$(printf %s "$d" | wc -l)" -eq 0 ] || fail "the state directory has a newline in its name"; say dir "$d"; `+
			`command -v sha256sum >/dev/null || fail "sha256sum is missing"; command -v mktemp >/dev/null || fail "mktemp is missing"; `+
			`for n in vendetta vendetta-guest vendetta-lxc; do if [ -x "$d/bin/$n" ]; then s=$(sha256sum <"$d/bin/$n"); say "sum-$n" "${s%% *}"; fi; done; `+
			keysFile+`if [ -r "$f" ]; then say servers $(sed -n "s/.* \(vendetta-server-[a-z0-9]*\) *\$/\1/p" "$f"); fi; say done`, nil)
	if err != nil {
		return machine{}, err
	}
	system, processor, _ := strings.Cut(said["uname"], " ")
	if system != "Linux" {
		return machine{}, (&api.Error{
			Code: api.FailedPrecondition, Message: what + ": it runs " + printable(system) + "; node agents run on Linux only",
		}).WithNext("add a Linux machine, or a Linux virtual machine on this one")
	}
	m := machine{arch: architectures[processor], stateDir: path.Clean(said["dir"]), sums: map[string]string{}, servers: map[string]bool{}}
	if m.arch == "" {
		return machine{}, (&api.Error{
			Code: api.FailedPrecondition, Message: what + ": there is no node agent for the processor " + printable(processor),
		}).WithNext("add a machine with an x86_64 or aarch64 processor")
	}
	if !path.IsAbs(said["dir"]) || strings.ContainsFunc(m.stateDir, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return machine{}, (&api.Error{
			Code: api.FailedPrecondition, Message: what + ": its state directory is not an absolute path: " + printable(said["dir"]),
		}).WithNext("set VENDETTA_STATE_DIR in the login user's environment to an absolute path")
	}
	for _, name := range []string{agentProgram, guestProgram, helperProgram} {
		m.sums[name] = said["sum-"+name]
	}
	for _, comment := range strings.Fields(said["servers"]) {
		m.servers[comment] = true
	}
	return m, nil
}
