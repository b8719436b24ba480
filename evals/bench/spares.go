//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

const (
	// spareRuns is how many are taken in one round.
	spareRuns = 2
	// sparePatience is how long the next one may take to be there.
	sparePatience = time.Minute
	spareLook     = 50 * time.Millisecond
)

// measureSpares is goal 6: a create that takes a spare. The spares are made, and
// removed, outside of the time; so is the one that takes the place of another.
func (b *bed) measureSpares(ctx context.Context, r *record) error {
	for _, kind := range []struct {
		name string
		spec *vendettav1.WorkspaceSpec
	}{
		{mSpare, &vendettav1.WorkspaceSpec{Provider: "docker", Image: b.image}},
		{mNativeSpare, &vendettav1.WorkspaceSpec{Provider: "native"}},
	} {
		err := b.setSpares(ctx, kind.spec, 1)
		if api.CodeOf(err) == api.FailedPrecondition {
			continue // the node has no such provider
		}
		for range spareRuns {
			if err == nil {
				err = b.takeSpare(ctx, r, kind.name, kind.spec)
			}
		}
		if serr := b.setSpares(ctx, kind.spec, 0); err == nil {
			err = serr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	return nil
}

func (b *bed) takeSpare(ctx context.Context, r *record, name string, spec *vendettav1.WorkspaceSpec) error {
	if err := b.awaitSpare(ctx); err != nil {
		return err
	}
	began := time.Now()
	err := b.createWorkspace(ctx, "spared", spec)
	if err == nil {
		err = b.roads.server(ctx, "spared", "echo", "hello")
	}
	r.add(name, time.Since(began))
	if rerr := b.removeWorkspace(ctx, "spared"); err == nil {
		err = rerr
	}
	return err
}

func (b *bed) setSpares(ctx context.Context, spec *vendettav1.WorkspaceSpec, count int32) error {
	_, err := b.client.Nodes.SetSpares(ctx, &vendettav1.SetSparesRequest{
		Node: near, Provider: spec.GetProvider(), Image: spec.GetImage(), Count: count,
	})
	return err
}

// awaitSpare returns when the near node has a spare.
func (b *bed) awaitSpare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sparePatience)
	defer cancel()
	look := time.NewTicker(spareLook)
	defer look.Stop()
	message := ""
	for {
		n, err := b.client.Nodes.GetNode(ctx, &vendettav1.GetNodeRequest{Name: near})
		if err != nil && connect.CodeOf(err) != connect.CodeDeadlineExceeded {
			return err
		}
		for _, s := range n.GetSpares() {
			if s.GetReady() > 0 {
				return nil
			}
			message = s.GetMessage()
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("no spare within %v: %s: %w", sparePatience, message, ctx.Err())
		}
	}
}
