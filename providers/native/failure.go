//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// failed makes an error of this contract of one of the operating system's.
func failed(op, ws string, err error) error {
	if err == nil {
		return nil
	}
	var own *providers.Error
	if errors.As(err, &own) {
		return err
	}
	e := &providers.Error{Message: fmt.Sprintf("%s native workspace %s: %v", op, ws, err), Cause: err}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e.Kind = providers.ErrExhausted
		e.Next = "free some disk space on the node, then repeat"
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		e.Kind = providers.ErrExhausted
		e.Next = "stop other workspaces on the node, then repeat"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case errors.Is(err, errNamespaces):
		e.Kind = providers.ErrUnusable
		e.Next = "run vendetta doctor on the node"
	}
	return e
}

// also adds the trouble of clearing up to the error that led to it.
func also(err, more error) error {
	if more == nil {
		return err
	}
	return errors.Join(err, more)
}

func notFound(op, ws string) error {
	return &providers.Error{
		Kind:    providers.ErrNotFound,
		Message: fmt.Sprintf("%s native workspace %s: there is no such instance", op, ws),
	}
}

func notRunning(op, ws string) error {
	return &providers.Error{
		Kind:    providers.ErrNotFound,
		Message: fmt.Sprintf("%s native workspace %s: it is not running", op, ws),
		Next:    "start it with vendetta workspace up",
	}
}
