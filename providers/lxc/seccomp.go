//go:build linux

package lxc

import (
	"os"
	"strings"
)

// denied system calls answer EPERM, beside those of the distribution's profile.
// They reach the kernel where namespaces and capabilities are the only guard, and
// where bugs were; programs in a workspace do not need them. Docker's default
// profile denies them too. A user namespace in the container's would give
// capabilities to whoever makes it.
var denied = []string{
	"mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"setns", "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "swapon", "swapoff", "reboot",
	"acct", "quotactl", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "lookup_dcookie", "nfsservctl",
	"vhangup", "kcmp", "fanotify_init", "io_uring_setup", "io_uring_enter", "io_uring_register",
}

// newUser is CLONE_NEWUSER as liblxc compares it with a call's first argument.
const newUser = "[0,268435456,SCMP_CMP_MASKED_EQ,268435456]"

// filter is the profile of an instance: the distribution's, and what it lacks. One
// of another kind than the usual is left as it is.
func filter(distribution string) string {
	lines := strings.SplitN(distribution, "\n", 3)
	if len(lines) < 3 || strings.TrimSpace(lines[0]) != "2" || !strings.HasPrefix(lines[1], "denylist") && !strings.HasPrefix(lines[1], "blacklist") {
		return distribution
	}
	var b strings.Builder
	b.WriteString(strings.TrimRight(distribution, "\n") + "\n[all]\n")
	for _, call := range denied {
		b.WriteString(call + " errno 1\n")
	}
	for _, call := range []string{"unshare", "clone"} {
		b.WriteString(call + " errno 1 " + newUser + "\n")
	}
	// Typing into a terminal that somebody else reads: TIOCSTI.
	b.WriteString("ioctl errno 1 [1,21522,SCMP_CMP_EQ]\n")
	// Its flags are behind a pointer, where a filter cannot look; without it the C
	// library falls back.
	b.WriteString("clone3 errno 38\n")
	return b.String()
}

// writeFilter puts the profile where the config of an instance names it.
func (p *Provider) writeFilter(path string) error {
	raw, err := os.ReadFile(p.machine.seccomp)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(filter(string(raw))), 0o600)
}
