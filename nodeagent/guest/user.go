//go:build linux

package guest

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// account is who a process runs as, by the instance's own /etc/passwd and
// /etc/group.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32
	home   string
	shell  string
}

// accounts reads the instance's users. The files are read anew each time: they
// are small, and commands such as useradd change them.
type accounts struct {
	etc string
}

// lookup finds a user: a name or number, with a group's name or number after a
// colon. A number needs no entry, as with Docker.
func (a accounts) lookup(user string) (account, error) {
	name, group, grouped := strings.Cut(user, ":")
	if name == "" || grouped && group == "" {
		return account{}, api.Errorf(api.InvalidArgument, "user %q: want NAME, UID, NAME:GROUP or UID:GID", user)
	}
	found := account{home: "/"}
	number, err := strconv.ParseUint(name, 10, 31)
	numeric := err == nil
	known := a.scan("passwd", func(f []string) bool {
		if len(f) < 7 || f[0] != name && (!numeric || f[2] != name) {
			return false
		}
		uid, uerr := strconv.ParseUint(f[2], 10, 32)
		gid, gerr := strconv.ParseUint(f[3], 10, 32)
		if uerr != nil || gerr != nil {
			return false
		}
		found = account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		return true
	})
	switch {
	case known:
	case numeric:
		found.uid, found.name = uint32(number), name
	default:
		return account{}, api.Errorf(api.InvalidArgument, "user %q: the workspace has no such user", name).
			WithNext("see /etc/passwd in the workspace, or give a number")
	}
	if grouped {
		gid, err := a.group(group)
		if err != nil {
			return account{}, err
		}
		found.gid = gid
	}
	found.groups = a.memberships(found.name, found.gid)
	return found, nil
}

func (a accounts) group(group string) (uint32, error) {
	if number, err := strconv.ParseUint(group, 10, 31); err == nil {
		return uint32(number), nil
	}
	var gid uint64
	if !a.scan("group", func(f []string) bool {
		var err error
		if len(f) >= 3 && f[0] == group {
			gid, err = strconv.ParseUint(f[2], 10, 32)
			return err == nil
		}
		return false
	}) {
		return 0, api.Errorf(api.InvalidArgument, "group %q: the workspace has no such group", group).
			WithNext("see /etc/group in the workspace, or give a number")
	}
	return uint32(gid), nil
}

// groupsMost is the kernel's own limit for one process.
const groupsMost = 65536

// memberships are the groups that name is listed in, and gid.
func (a accounts) memberships(name string, gid uint32) []uint32 {
	groups := []uint32{gid}
	a.scan("group", func(f []string) bool {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), name) {
			return false
		}
		number, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && !slices.Contains(groups, uint32(number)) {
			groups = append(groups, uint32(number))
		}
		return len(groups) == groupsMost
	})
	return groups
}

// name is the user name of uid, or the number when it has none.
func (a accounts) name(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	name := number
	a.scan("passwd", func(f []string) bool {
		if len(f) >= 3 && f[2] == number {
			name = f[0]
			return true
		}
		return false
	})
	return name
}

// scan calls visit with the fields of each line until it returns true. A file
// that is missing has no lines: images without users are valid.
func (a accounts) scan(file string, visit func(fields []string) bool) bool {
	f, err := os.Open(filepath.Join(a.etc, file))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if visit(strings.Split(lines.Text(), ":")) {
			return true
		}
	}
	return false
}

// credential is what the kernel is told, nil when the guest is that user already.
func (a account) credential() (*syscall.Credential, error) {
	if int(a.uid) == os.Geteuid() && int(a.gid) == os.Getegid() {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, api.Errorf(api.FailedPrecondition, "user %s: the guest does not run as root here and cannot change users", a.name).
			WithNext("run the command as the default user")
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups, NoSetGroups: setgroupsDenied()}, nil
}

// setgroupsDenied says that the user namespace was made by an ordinary user,
// who may not give up groups; see user_namespaces(7).
func setgroupsDenied() bool {
	said, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(said)) == "deny"
}

// environment is what is set for the user before the caller's own variables.
func (a account) environment() map[string]string {
	env := map[string]string{"HOME": a.home}
	if a.name != "" {
		env["USER"], env["LOGNAME"] = a.name, a.name
	}
	if a.shell != "" {
		env["SHELL"] = a.shell
	}
	return env
}

func (a account) String() string {
	if a.name != "" {
		return a.name
	}
	return strconv.FormatUint(uint64(a.uid), 10)
}

// giveProject makes dir user's own when it is empty and root's. A user that the
// instance does not have owns nothing; commands then say so.
func giveProject(dir, user string, a accounts) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid != 0 || owner.Gid != 0 || !info.IsDir() {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		return err
	}
	found, err := a.lookup(user)
	if err != nil || found.uid == 0 && found.gid == 0 {
		return nil //nolint:nilerr // see above
	}
	return os.Lchown(dir, int(found.uid), int(found.gid))
}
