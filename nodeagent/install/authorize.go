package install

import (
	"context"
	"fmt"
)

// rewrite replaces the authorized_keys file by the lines that do not end in the
// comment $2 and, unless it is empty, the line $1. The new file takes the place
// of the old one whole: a full disk must not lock anybody out.
const rewrite = `t=$(mktemp "$f.XXXXXX") || fail "make a file beside $f"; trap "rm -f -- \"\$t\"" EXIT; trap "exit 1" HUP INT TERM; ` +
	`{ if [ -s "$f" ]; then grep -v -e " $2 *\$" "$f"; [ $? -le 1 ] || exit 1; fi; [ -z "$1" ] || printf "%s\n" "$1"; } >"$t" || fail "write $f"; ` +
	`mv -f -- "$t" "$f" || fail "replace $f"; `

// authorize lets the server's key log in to the machine. A line of the same
// server with another key is replaced.
func authorize(ctx context.Context, r Runner, e entry) error {
	return authorizeLine(ctx, r, "authorize the server's key", e.line(), e.comment)
}

func authorizeLine(ctx context.Context, r Runner, what, line, comment string) error {
	_, err := script(ctx, r, what,
		`umask 077; say authorize; `+keysFile+`d=${f%/*}; [ -d "$d" ] || mkdir -p -- "$d" || fail "make $d"; `+
			// sshd ignores the file when others may write to it.
			`if [ -z "$VENDETTA_AUTHORIZED_KEYS" ]; then chmod go-w "$HOME/.ssh"; fi; `+
			`if [ -f "$f" ] && grep -qxF -e "$1" "$f"; then chmod go-w "$f"; else `+rewrite+`fi; say done`,
		nil, line, comment)
	return err
}

// revoke removes the server's key from the machine.
func revoke(ctx context.Context, r Runner, e entry) error {
	_, err := script(ctx, r, "remove the server's key",
		`umask 077; say revoke; `+keysFile+`if [ -f "$f" ] && grep -q -e " $2 *\$" "$f"; then `+rewrite+`fi; say done`,
		nil, "", e.comment)
	return err
}

// forwardingOnly is what the server's key may do on a jump host. Commands stay
// possible, for the day when that host is added as a node itself: the line is
// then replaced.
const forwardingOnly = `restrict,port-forwarding `

// authorizeJumps lets the server's key pass the jump hosts that took another one
// this time. A host where that cannot be done (many jump hosts run no commands)
// is a warning.
func authorizeJumps(ctx context.Context, r Runner, e entry) ([]string, error) {
	way, ok := r.(jumper)
	if !ok {
		return nil, nil
	}
	hosts, err := way.Jumps(ctx)
	if err != nil {
		return nil, fmt.Errorf("authorize the server's key on jump hosts: %w", err)
	}
	var warnings []string
	for _, h := range hosts {
		if h.OwnKey {
			continue
		}
		err := authorizeLine(ctx, h, "authorize the server's key on "+h.Host, forwardingOnly+e.line(), e.comment)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%v; add this line to ~/.ssh/authorized_keys there, or name a key file for it in the ssh config: %s%s", err, forwardingOnly, e.line()))
		}
	}
	return warnings, nil
}
