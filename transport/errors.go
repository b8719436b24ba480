package transport

import "errors"

// The kinds of failure that callers tell apart, by errors.Is. The wrapping
// error's text says what happened to which host and what to do next.
var (
	// ErrNoAgent: the host was reached, the login worked, nothing listens on the
	// agent's socket.
	ErrNoAgent = errors.New("no node agent is listening")
	// ErrUnreachable: no connection to the host or a jump host could be made.
	ErrUnreachable = errors.New("host unreachable")
	// ErrHostKey: a host's key is not known, is revoked, or is another one than before.
	ErrHostKey = errors.New("host key not accepted")
	// ErrLogin: the host accepted none of the keys.
	ErrLogin = errors.New("login refused")
)

// Error is a failure that a user can act upon.
type Error struct {
	// Kind is one of the errors above.
	Kind error
	// Message says what happened to which host.
	Message string
	// Next is what to do about it.
	Next string
	// Cause stays in the log.
	Cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives kind and cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}
