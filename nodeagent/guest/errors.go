//go:build linux

package guest

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// fsError says what happened to which file. Errors that are meant for the
// caller already pass through.
func fsError(operation, path string, err error) error {
	var own *api.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	code := api.Internal
	var reason, next string
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrNotExist):
		code, reason = api.NotFound, "no such file or folder"
	case errors.Is(err, fs.ErrExist):
		code, reason = api.AlreadyExists, "it exists already"
	case errors.Is(err, fs.ErrPermission):
		code, reason = api.PermissionDenied, "permission denied"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code, reason, next = api.ResourceExhausted, "the disk is full", "remove files in the workspace"
	case errors.Is(err, syscall.ENOTDIR):
		code, reason = api.FailedPrecondition, "a part of the path is not a folder"
	case errors.Is(err, syscall.EISDIR):
		code, reason = api.FailedPrecondition, "it is a folder"
	case errors.Is(err, syscall.ELOOP):
		code, reason = api.FailedPrecondition, "too many symlinks"
	case errors.Is(err, syscall.ENAMETOOLONG):
		code, reason = api.InvalidArgument, "the name is too long"
	case errors.Is(err, syscall.EROFS):
		code, reason = api.PermissionDenied, "the file system is read-only"
	default:
		reason = err.Error()
	}
	return &api.Error{Code: code, Message: operation + " " + path + ": " + reason, Next: next, Cause: err}
}

// edge turns every error that leaves the guest into one fit for the wire.
type edge struct{}

func (edge) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, api.ToConnect(err)
		}
		return resp, nil
	}
}

func (edge) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (edge) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return api.ToConnect(err)
		}
		return nil
	}
}
