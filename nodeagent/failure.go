package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/providers"
)

// failureCodes maps the providers' kinds of failure to codes.
var failureCodes = []struct {
	kind error
	code api.Code
}{
	{providers.ErrNotFound, api.NotFound},
	{providers.ErrInvalid, api.InvalidArgument},
	{providers.ErrImage, api.FailedPrecondition},
	{providers.ErrUnusable, api.FailedPrecondition},
	{providers.ErrExhausted, api.ResourceExhausted},
	{providers.ErrUnsupported, api.Unimplemented},
}

// failure makes err, met while doing what to a workspace, one that a user can
// act upon.
func failure(what, name string, err error) *api.Error {
	return explain(what+" workspace "+name, err)
}

// explain is failure for what is done to something else.
func explain(what string, err error) *api.Error {
	var own *api.Error
	if errors.As(err, &own) {
		return own
	}
	e := &api.Error{Code: api.Internal, Message: fmt.Sprintf("%s: %v", what, err), Cause: err}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = api.DeadlineExceeded
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Code = api.ResourceExhausted
		e.Next = "free disk space on the node and repeat the command"
	}
	for _, known := range failureCodes {
		if errors.Is(err, known.kind) {
			e.Code = known.code
			break
		}
	}
	var theirs *providers.Error
	if errors.As(err, &theirs) && theirs.Next != "" {
		e.Next = theirs.Next
	}
	return e
}
