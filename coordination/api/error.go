package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// Code classifies an error for every edge: HTTP, exit codes and MCP each map it
// in one table of their own.
type Code string

// The codes. They are part of the wire contract and never renamed.
const (
	InvalidArgument    Code = "invalid_argument"
	Unauthenticated    Code = "unauthenticated"
	PermissionDenied   Code = "permission_denied"
	NotFound           Code = "not_found"
	AlreadyExists      Code = "already_exists"
	Conflict           Code = "conflict"
	FailedPrecondition Code = "failed_precondition"
	ResourceExhausted  Code = "resource_exhausted"
	DeadlineExceeded   Code = "deadline_exceeded"
	Unavailable        Code = "unavailable"
	Unimplemented      Code = "unimplemented"
	Internal           Code = "internal"
)

// Error is what a caller sees: a code, a sentence that says what happened to
// what, and the next step where there is one. Cause stays in the log.
type Error struct {
	Code    Code
	Message string
	Next    string
	Cause   error
}

// Error is the sentence alone; edges print Next on a line of its own.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error without a next step. A %w argument becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// WithNext returns a copy of e that names the next step.
func (e *Error) WithNext(format string, args ...any) *Error {
	c := *e
	c.Next = fmt.Sprintf(format, args...)
	return &c
}

// connectCodes maps our codes to the transport's.
var connectCodes = map[Code]connect.Code{
	InvalidArgument:    connect.CodeInvalidArgument,
	Unauthenticated:    connect.CodeUnauthenticated,
	PermissionDenied:   connect.CodePermissionDenied,
	NotFound:           connect.CodeNotFound,
	AlreadyExists:      connect.CodeAlreadyExists,
	Conflict:           connect.CodeAborted,
	FailedPrecondition: connect.CodeFailedPrecondition,
	ResourceExhausted:  connect.CodeResourceExhausted,
	DeadlineExceeded:   connect.CodeDeadlineExceeded,
	Unavailable:        connect.CodeUnavailable,
	Unimplemented:      connect.CodeUnimplemented,
	Internal:           connect.CodeInternal,
}

// ToConnect makes err fit for the wire. Anything that is not an *Error becomes
// internal, or deadline_exceeded or unavailable where the context says so.
func ToConnect(err error) *connect.Error {
	if err == nil {
		return nil
	}
	var wire *connect.Error
	if errors.As(err, &wire) {
		return wire
	}
	e := From(err)
	wire = connect.NewError(connectCodes[e.Code], errors.New(e.Message))
	if detail, derr := connect.NewErrorDetail(&vendettav1.ErrorDetail{Code: string(e.Code), Next: e.Next}); derr == nil {
		wire.AddDetail(detail)
	}
	return wire
}

// From turns any error, one from the wire included, into an *Error. It returns
// nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var wire *connect.Error
	if errors.As(err, &wire) {
		return fromConnect(wire)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: DeadlineExceeded, Message: err.Error(), Cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{Code: Unavailable, Message: err.Error(), Cause: err}
	}
	return &Error{Code: Internal, Message: err.Error(), Cause: err}
}

func fromConnect(wire *connect.Error) *Error {
	e := &Error{Code: Internal, Message: wire.Message(), Cause: wire}
	for own, theirs := range connectCodes {
		if theirs == wire.Code() {
			e.Code = own
		}
	}
	if wire.Code() == connect.CodeCanceled {
		e.Code = Unavailable
	}
	for _, d := range wire.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		if detail, ok := v.(*vendettav1.ErrorDetail); ok {
			e.Next = detail.GetNext()
			if _, known := connectCodes[Code(detail.GetCode())]; known {
				e.Code = Code(detail.GetCode())
			}
		}
	}
	if e.Message == "" {
		e.Message = string(e.Code)
	}
	return e
}

// CodeOf is the code of err, Internal for an error that has none, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return From(err).Code
}
