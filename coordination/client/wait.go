package client

import (
	"context"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// waitSeconds is how long one call waits. Longer calls gain nothing and are cut
// by what stands between.
const waitSeconds = 20

// Wait asks until the operation has ended, however often the link is lost, and
// returns it as it ended together with OperationError's verdict. When ctx ends
// first it returns the operation as last seen and ctx's error.
func (c *Client) Wait(ctx context.Context, op *vendettav1.Operation) (*vendettav1.Operation, error) {
	retry := newBackoff()
	for {
		if ended(op) {
			return op, OperationError(op)
		}
		asked := time.Now()
		next, err := c.Operations.WaitOperation(ctx, &vendettav1.WaitOperationRequest{
			Id: op.GetId(), Seconds: remaining(ctx, waitSeconds),
		})
		switch {
		case err == nil:
			op = next
			if time.Since(asked) > time.Second {
				retry.reset()
			}
			if ended(op) {
				continue
			}
		case ctx.Err() != nil:
			return op, ctx.Err()
		case !lost(err):
			return op, err
		}
		// A server that answers "pending" at once must not be asked in a tight loop.
		if err := retry.pause(ctx); err != nil {
			return op, err
		}
	}
}

// remaining is the number of whole seconds, at most n, that ctx leaves.
func remaining(ctx context.Context, n int32) int32 {
	if deadline, ok := ctx.Deadline(); ok {
		left := int32(min(time.Until(deadline), time.Duration(n)*time.Second) / time.Second)
		return max(left, 1)
	}
	return n
}

func ended(op *vendettav1.Operation) bool {
	s := op.GetState()
	return s != vendettav1.OperationState_OPERATION_STATE_UNSPECIFIED && s != vendettav1.OperationState_OPERATION_STATE_PENDING
}

// OperationError is nil unless the operation failed or gave way to a newer one.
func OperationError(op *vendettav1.Operation) error {
	if op.GetState() == vendettav1.OperationState_OPERATION_STATE_SUPERSEDED {
		return api.Errorf(api.Conflict, "%s %s: a newer operation took its place", op.GetVerb(), op.GetWorkspace()).
			WithNext("see what it is now: vendetta workspace status %s", op.GetWorkspace())
	}
	if op.GetState() == vendettav1.OperationState_OPERATION_STATE_FAILED {
		code := api.Code(op.GetErrorCode())
		if code == "" {
			code = api.Internal
		}
		return &api.Error{Code: code, Message: op.GetVerb() + " " + op.GetWorkspace() + ": " + op.GetMessage(), Next: op.GetNext()}
	}
	return nil
}
