package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/transport/ssh"
)

// Options of an installation.
type Options struct {
	// Bundle is the folder with linux-amd64 and linux-arm64, each holding the
	// programs.
	Bundle string
	// ServerID is the server's id.
	ServerID string
	// PublicKey is the server's: type and key, as in an authorized_keys file.
	PublicKey string
}

// Result says where things are on the machine.
type Result struct {
	// Socket is the agent's.
	Socket string
	// Program is the agent's program.
	Program string
	// StateDir holds bin and the agent's state.
	StateDir string
	// Warnings are what did not work and was not needed now.
	Warnings []string
}

// Programs of a bundle.
const (
	agentProgram = "vendetta"
	guestProgram = "vendetta-guest"
	// helperProgram is for LXC. It is built against a machine's liblxc, so a bundle
	// may be without it.
	helperProgram = "vendetta-lxc"
)

// jumper is a Runner that reaches its machine by way of others.
type jumper interface {
	Jumps(ctx context.Context) ([]*ssh.Jump, error)
}

// Install puts the agent onto the machine and starts it. The server's key is
// also left on the jump hosts that did not take it yet, there for forwarding
// alone: later connections have nothing else to log in with.
func Install(ctx context.Context, r Runner, o Options) (Result, error) {
	entry, err := o.entry()
	if err != nil {
		return Result{}, err
	}
	m, err := inspect(ctx, r)
	if err != nil {
		return Result{}, err
	}
	for _, name := range []string{agentProgram, guestProgram} {
		if err := upload(ctx, r, o.Bundle, m, name); err != nil {
			return Result{}, err
		}
	}
	if bundled(o.Bundle, m, helperProgram) {
		if err := upload(ctx, r, o.Bundle, m, helperProgram); err != nil {
			return Result{}, err
		}
	}
	if err := authorize(ctx, r, entry); err != nil {
		return Result{}, err
	}
	result, err := Start(ctx, r, m.program())
	if err != nil {
		return Result{}, err
	}
	result.Warnings, err = authorizeJumps(ctx, r, entry)
	return result, err
}

// Start starts an installed agent, if it does not run, and returns its socket.
// Program is what Install returned.
func Start(ctx context.Context, r Runner, program string) (Result, error) {
	const what = "start node agent"
	stateDir, err := stateDirOf(program)
	if err != nil {
		return Result{}, err
	}
	said, err := script(ctx, r, what,
		`[ -x "$1" ] || fail "$1 is not installed"; say started; `+
			`out=$("$1" nodeagent start --state-dir "$2" </dev/null) || { printf "%s\n" "$out"; fail "the agent did not start"; }; `+
			`say answer "$out"; say done`, nil, program, stateDir)
	if err != nil {
		var own *api.Error
		if errors.As(err, &own) && own.Next == "" {
			err = own.WithNext("repeat vendetta node add, which installs it again; the agent's log on the machine is %s", path.Join(stateDir, "agent", "agent.log"))
		}
		return Result{}, err
	}
	socket, err := socketOf(what, said["answer"])
	return Result{Socket: socket, Program: program, StateDir: stateDir}, err
}

// stateDirOf is the folder that holds bin/vendetta.
func stateDirOf(program string) (string, error) {
	dir := path.Dir(path.Dir(program))
	if !path.IsAbs(program) || path.Base(program) != agentProgram || path.Base(path.Dir(program)) != "bin" {
		return "", api.Errorf(api.InvalidArgument, "start node agent: %q is not where an agent's program lies", program)
	}
	return dir, nil
}

// socketOf reads what `nodeagent start` printed.
func socketOf(what, answer string) (string, error) {
	var printed struct {
		Socket string `json:"socket"`
	}
	_, text, _ := strings.Cut(answer, "{")
	if err := json.Unmarshal([]byte("{"+text), &printed); err != nil || !path.IsAbs(printed.Socket) {
		return "", &api.Error{Code: api.Internal, Message: fmt.Sprintf("%s: it named no socket: %s", what, printable(answer)), Cause: err}
	}
	return printed.Socket, nil
}

// Uninstall stops the agent and removes it, its state and the server's key. When
// another server's key stands beside ours the agent is that server's too, and
// only our key goes. A machine without an agent is success.
func Uninstall(ctx context.Context, r Runner, o Options) error {
	entry, err := o.entry()
	if err != nil {
		return err
	}
	m, err := inspect(ctx, r)
	if err != nil {
		return err
	}
	if len(m.servers) == 0 || len(m.servers) == 1 && m.servers[entry.comment] {
		if err := remove(ctx, r, m); err != nil {
			return err
		}
	}
	return revoke(ctx, r, entry)
}

// remove ends the agent and removes it. A refusal of the agent's leaves all.
func remove(ctx context.Context, r Runner, m machine) error {
	_, err := script(ctx, r, "uninstall node agent",
		`p="$1/bin/vendetta"; say uninstall; if [ -x "$p" ]; then "$p" nodeagent uninstall --state-dir "$1" </dev/null || fail "the agent refused"; fi; `+
			`rm -f -- "$p" "$1/bin/vendetta-guest" "$1/bin/vendetta-lxc" || fail "remove programs"; rmdir -- "$1/bin" "$1" 2>/dev/null; say done`,
		nil, m.stateDir)
	return err
}

// entry is the server's line in authorized_keys.
type entry struct {
	key     string
	comment string
}

func (e entry) line() string { return e.key + " " + e.comment }

var (
	validKey    = regexp.MustCompile(`^[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}$`)
	validServer = regexp.MustCompile(`^[a-z0-9]{1,64}$`)
)

func (o Options) entry() (entry, error) {
	fields := strings.Fields(o.PublicKey)
	if len(fields) < 2 || !validKey.MatchString(fields[0]+" "+fields[1]) {
		return entry{}, api.Errorf(api.Internal, "install node agent: the server's public key is malformed")
	}
	if !validServer.MatchString(o.ServerID) {
		return entry{}, api.Errorf(api.Internal, "install node agent: %q is not a server's id", o.ServerID)
	}
	return entry{key: fields[0] + " " + fields[1], comment: commentPrefix + o.ServerID}, nil
}

// commentPrefix begins the comment of every server's key.
const commentPrefix = "vendetta-server-"
