package providers

import "errors"

// The kinds of failure that callers tell apart, by errors.Is.
var (
	// ErrNotFound: there is no such instance.
	ErrNotFound = errors.New("no such instance")
	// ErrInvalid: the spec asks for what this provider does not take.
	ErrInvalid = errors.New("invalid spec")
	// ErrImage: the image does not exist or cannot be fetched.
	ErrImage = errors.New("image not available")
	// ErrUnusable: the backend is missing, stopped or refuses us.
	ErrUnusable = errors.New("provider not usable")
	// ErrUnsupported: this provider, or this machine, cannot do that.
	ErrUnsupported = errors.New("not supported")
	// ErrExhausted: disk, memory or another limit of the machine was hit.
	ErrExhausted = errors.New("resources exhausted")
)

// Error is a failure that a user can act upon.
type Error struct {
	// Kind is one of the errors above, or nil for anything else.
	Kind error
	// Message says what happened to what.
	Message string
	// Next is what to do about it, where there is something.
	Next string
	// Cause stays in the log.
	Cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives kind and cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Kind != nil {
		errs = append(errs, e.Kind)
	}
	if e.Cause != nil {
		errs = append(errs, e.Cause)
	}
	return errs
}
