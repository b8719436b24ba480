//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/sourcegraph/conc/pool"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// The providers.
const (
	dockerKind = "docker"
	lxc        = "lxc"
	native     = "native"
	qemu       = "qemu"
)

// Names of what is recorded of each.
func created(kind string) string   { return "create " + kind }
func fromSpare(kind string) string { return "spare " + kind }
func peerOf(kind string) string    { return "peer of " + kind }
func forked(kind string) string    { return "fork " + kind }
func together(kind string) string  { return "together " + kind }
func peersRate(kind string) string { return "together, peer of " + kind }

const (
	atOnce       = 8
	seldomRounds = 2
	// smallMemory is enough for a machine that is one of many.
	smallMemory  = 256 << 20
	smallMachine = "256M"
)

func (b *bed) has(kind string) bool { return slices.Contains(b.kinds, kind) }

// imageOf is the image that workspaces of a provider are made from.
func (b *bed) imageOf(kind string) string {
	switch kind {
	case dockerKind:
		return b.image
	case native:
		return "" // the machine's own system, as unshare has it
	}
	return testbed.BaseImage
}

// startKinds brings what the other providers need: images in the node's store,
// and the peers that are programs.
func (b *bed) startKinds(ctx context.Context) (err error) {
	if b.has(lxc) || b.has(qemu) {
		path := filepath.Join(b.home, "image.tar")
		if err := testbed.ArchiveFile(ctx, path); err != nil {
			return err
		}
		if _, err := b.run(ctx, "image", "import", path, "--node", near, "--name", testbed.BaseImage); err != nil {
			return err
		}
	}
	if b.has(lxc) {
		if b.lxc, err = newRawLXC(ctx, b); err != nil {
			return err
		}
	}
	if b.has(qemu) {
		b.bare, err = newBareMachine(ctx, b)
	}
	return err
}

func (b *bed) workspaceID(ctx context.Context, name string) (string, error) {
	w, err := b.client.Workspaces.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: name})
	return w.GetId(), err
}

// spec of a workspace as it is measured.
func (b *bed) spec(kind string) *vendettav1.WorkspaceSpec {
	return &vendettav1.WorkspaceSpec{Provider: kind, Image: b.imageOf(kind)}
}

// born makes a workspace and runs a first command in it.
func (b *bed) born(ctx context.Context, name string, spec *vendettav1.WorkspaceSpec) error {
	if err := b.createWorkspace(ctx, name, spec); err != nil {
		return err
	}
	return b.roads.server(ctx, name, "echo", "hello")
}

// peerBorn is the same by what the provider is made of.
func (b *bed) peerBorn(ctx context.Context, kind string, i int) (remove func(context.Context) error, err error) {
	switch kind {
	case dockerKind:
		id, err := b.peers.create(ctx)
		if err == nil {
			err = b.peers.api(ctx, id, "echo", "hello")
		}
		if id == "" {
			return nothing, err
		}
		return func(ctx context.Context) error { return b.peers.remove(ctx, id) }, err
	case lxc:
		return b.lxc.create(i)
	case qemu:
		return nothing, b.bare.boot(ctx, b.roads, i, "")
	default:
		return nothing, unshare(ctx)
	}
}

func nothing(context.Context) error { return nil }

// unshare makes the namespaces of a native workspace and runs a command in them.
func unshare(ctx context.Context) error {
	return exec.CommandContext(ctx, "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc",
		"--net", "--ipc", "--uts", "--cgroup", "echo", "hello").Run()
}

// timesOf says how often a provider's create is measured in one round; a
// translated machine takes seconds.
func timesOf(kind string) int {
	if kind == qemu {
		return 1
	}
	return 3
}

// measureKinds is goal 7: create to first output, and the peers' in turn. What
// was created is removed outside of the time.
func (b *bed) measureKinds(ctx context.Context, r *record) error {
	for _, kind := range b.kinds {
		if kind == dockerKind {
			continue // goal 5
		}
		for range timesOf(kind) {
			began := time.Now()
			err := b.born(ctx, "fresh", b.spec(kind))
			r.add(created(kind), time.Since(began))
			if err = errors.Join(err, b.removeWorkspace(ctx, "fresh")); err != nil {
				return fmt.Errorf("%s: %w", created(kind), err)
			}
			began = time.Now()
			remove, err := b.peerBorn(ctx, kind, 0)
			r.add(peerOf(kind), time.Since(began))
			if err = errors.Join(err, remove(ctx)); err != nil {
				return fmt.Errorf("%s: %w", peerOf(kind), err)
			}
		}
	}
	return nil
}

// measureSpares is goal 6: the same with an instance that runs already. One is
// kept only while it is measured, so that none is made beside other measurements.
func (b *bed) measureSpares(ctx context.Context, r *record) error {
	for _, kind := range b.kinds {
		settings := &vendettav1.SetSparesRequest{Node: near, Provider: kind, Image: b.imageOf(kind), Count: 1}
		if _, err := b.client.Nodes.SetSpares(ctx, settings); err != nil {
			return err
		}
		if err := b.awaitSpare(ctx, kind); err != nil {
			return err
		}
		began := time.Now()
		err := b.born(ctx, "fresh", b.spec(kind))
		r.add(fromSpare(kind), time.Since(began))
		if err != nil {
			return fmt.Errorf("%s: %w", fromSpare(kind), err)
		}
		settings.Count = 0
		if _, err := b.client.Nodes.SetSpares(ctx, settings); err != nil {
			return err
		}
		if err := b.removeWorkspace(ctx, "fresh"); err != nil {
			return err
		}
		if err := b.awaitNoSpare(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bed) awaitSpare(ctx context.Context, kind string) error {
	return b.awaitNode(ctx, "a spare of "+kind, func(n *vendettav1.Node) bool {
		return slices.ContainsFunc(n.GetSpares(), func(s *vendettav1.Spares) bool { return s.GetProvider() == kind && s.GetReady() > 0 })
	})
}

func (b *bed) awaitNoSpare(ctx context.Context) error {
	return b.awaitNode(ctx, "the end of the spares", func(n *vendettav1.Node) bool {
		return !slices.ContainsFunc(n.GetSpares(), func(s *vendettav1.Spares) bool { return s.GetReady() > 0 })
	})
}

func (b *bed) awaitNode(ctx context.Context, what string, holds func(*vendettav1.Node) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		n, err := b.client.Nodes.GetNode(ctx, &vendettav1.GetNodeRequest{Name: near})
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if holds(n) {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
}

// measureTogether is goal 8: eight at once.
func (b *bed) measureTogether(ctx context.Context, r *record) error {
	for _, kind := range b.kinds {
		spec := b.spec(kind)
		if kind == qemu {
			spec.Resources = &vendettav1.Resources{MemoryBytes: smallMemory}
		}
		name := func(i int) string { return fmt.Sprintf("many-%d", i) }
		began := time.Now()
		err := atOnceDo(ctx, func(ctx context.Context, i int) error { return b.born(ctx, name(i), spec) })
		r.addRate(together(kind), atOnce/time.Since(began).Seconds())
		for i := range atOnce {
			err = errors.Join(err, b.removeWorkspace(ctx, name(i)))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", together(kind), err)
		}
		removes := make([]func(context.Context) error, atOnce)
		began = time.Now()
		err = atOnceDo(ctx, func(ctx context.Context, i int) (err error) {
			if kind == qemu {
				return b.bare.boot(ctx, b.roads, i, smallMachine)
			}
			removes[i], err = b.peerBorn(ctx, kind, i)
			return err
		})
		r.addRate(peersRate(kind), atOnce/time.Since(began).Seconds())
		for _, remove := range removes {
			if remove != nil {
				err = errors.Join(err, remove(ctx))
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", peersRate(kind), err)
		}
	}
	return nil
}

func atOnceDo(ctx context.Context, do func(context.Context, int) error) error {
	p := pool.New().WithContext(ctx)
	for i := range atOnce {
		p.Go(func(ctx context.Context) error { return do(ctx, i) })
	}
	return p.Wait()
}

// measureFork is what a second machine costs that runs as the first one does.
func (b *bed) measureFork(ctx context.Context, r *record) error {
	if !b.has(qemu) {
		return nil
	}
	err := b.born(ctx, "origin", b.spec(qemu))
	began := time.Now()
	if err == nil {
		err = b.fork(ctx, "origin", "fresh")
	}
	r.add(forked(qemu), time.Since(began))
	err = errors.Join(err, b.removeWorkspace(ctx, "fresh"), b.removeWorkspace(ctx, "origin"))
	if err != nil {
		return fmt.Errorf("%s: %w", forked(qemu), err)
	}
	return nil
}

func (b *bed) fork(ctx context.Context, origin, name string) error {
	change, err := b.client.Workspaces.ForkWorkspace(ctx, &vendettav1.ForkWorkspaceRequest{Name: origin, Fork: name, IdempotencyKey: processID()})
	if err != nil {
		return err
	}
	if _, err := b.client.Wait(ctx, change.GetOperation()); err != nil {
		return err
	}
	return b.roads.server(ctx, name, "echo", "hello")
}
