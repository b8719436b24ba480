package install

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/transport/ssh"
)

// Runner runs a command by the login user's shell of a machine.
type Runner interface {
	// Run feeds stdin, nil for none, to cmd and returns its stdout. It fails when
	// the command exits with a status other than 0, and returns stdout then too.
	Run(ctx context.Context, cmd string, stdin io.Reader) ([]byte, error)
}

// answers are what a script said, by name.
type answers map[string]string

// prelude begins every script. Its first argument marks the lines that count: a
// login shell may print what it likes around them. Scripts are single lines,
// since csh as a login shell takes no others.
const prelude = `M=$1; shift; export LC_ALL=C; exec 2>&1; ` +
	`say() { printf "%s %s\n" "$M" "$*"; }; fail() { say error "$*"; exit 1; }; ` +
	`[ -n "$HOME" ] || HOME=$(cd ~ && pwd); `

// script runs body, with args as its $1 and so on, and returns its answers. An
// error names what, which says what was being done.
func script(ctx context.Context, r Runner, what, body string, stdin io.Reader, args ...string) (answers, error) {
	var nonce [8]byte
	_, _ = rand.Read(nonce[:])
	mark := "vendetta-" + hex.EncodeToString(nonce[:])
	argv := append([]string{"sh", "-c", prelude + body, "sh", mark}, args...)
	out, err := r.Run(ctx, ssh.Quote(argv...), stdin)
	said, complaint := parse(out, mark)
	if message, failed := said["error"]; failed {
		return nil, refused(what, message, complaint, err)
	}
	if _, done := said["done"]; !done {
		if err != nil && len(said) == 0 && complaint == "" {
			// The connection's own error says it best.
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		return nil, refused(what, "the command ended early", complaint, err)
	}
	return said, nil
}

// complaintLines is how much of what a failed command printed is passed on.
const complaintLines = 3

// parse takes the marked lines, and the last of the others as a complaint.
func parse(out []byte, mark string) (said answers, complaint string) {
	said = answers{}
	var others []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\r\n")
		// A greeting without an end of line may stand before the first mark.
		if _, rest, ok := strings.Cut(line, mark+" "); ok {
			name, value, _ := strings.Cut(rest, " ")
			said[name] = value
		} else if line = strings.TrimSpace(line); line != "" && len(said) > 0 {
			others = append(others, line)
		}
	}
	others = others[max(0, len(others)-complaintLines):]
	return said, printable(strings.Join(others, "; "))
}

// refused puts a script's failure into words.
func refused(what, message, complaint string, cause error) error {
	message = printable(message)
	if complaint != "" {
		message += ": " + complaint
	}
	e := &api.Error{Code: api.FailedPrecondition, Message: what + ": " + message, Cause: cause}
	switch {
	case strings.Contains(message, "No space left on device"), strings.Contains(message, "Disk quota exceeded"):
		e.Code = api.ResourceExhausted
		e.Next = "free space on the machine, or choose another place with VENDETTA_STATE_DIR in its environment; then repeat the command"
	case strings.Contains(message, "Permission denied"), strings.Contains(message, "Read-only file system"):
		e.Code = api.PermissionDenied
		e.Next = "make the home of the login user writable for it, or set VENDETTA_STATE_DIR in its environment"
	}
	return e
}

// printable keeps a machine's words short and from steering a terminal.
func printable(s string) string {
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\ufffd' {
			return '?'
		}
		return r
	}, s)
}
