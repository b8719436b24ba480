package coordination

import (
	"context"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// LocalPrincipal is the name under which calls over the server's own socket
// run. The socket's file mode has checked who they are.
const LocalPrincipal = "local"

// Principal is the user or token that a call runs for.
type Principal struct {
	// Name stands in operations and in the audit log.
	Name string
	// Scope is the widest that the principal holds.
	Scope vendettav1.Scope
	// Local calls came over the server's own socket. They alone may lend an
	// ssh-agent, key files or a password.
	Local bool
}

// May tells whether the principal holds scope. Nobody holds the unspecified one.
func (p Principal) May(scope vendettav1.Scope) bool {
	return scope != vendettav1.Scope_SCOPE_UNSPECIFIED && p.Scope >= scope
}

type principalKey struct{}

// WithPrincipal returns a context of a call that runs for p.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalFrom returns whom a call runs for. A context without one gives the
// zero Principal, which may do nothing.
func PrincipalFrom(ctx context.Context) Principal {
	p, _ := ctx.Value(principalKey{}).(Principal)
	return p
}
