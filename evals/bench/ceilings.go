//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// ceiling is a bound that a user may count on, with what was measured.
type ceiling struct {
	name     string
	what     string
	measured time.Duration
	limit    time.Duration
}

// measureCeilings measures what people wait for, by the commands they type.
func measureCeilings(ctx context.Context, b *bed, r *record) ([]ceiling, error) {
	var list []ceiling
	timed := func(name, what string, limit time.Duration, do func() error) error {
		began := time.Now()
		err := do()
		list = append(list, ceiling{name, what, time.Since(began), limit})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	command := func(args ...string) func() error {
		return func() error {
			_, err := b.run(ctx, args...)
			return err
		}
	}
	if _, err := b.run(ctx, "workspace", "down", near); err != nil {
		return nil, err
	}
	if err := timed("up", "vendetta workspace up, of a Docker workspace that is down", 60*time.Second, command("workspace", "up", near)); err != nil {
		return nil, err
	}
	if err := timed("command", "vendetta workspace exec, start of the program included", 5*time.Second, command("workspace", "exec", near, "--", "true")); err != nil {
		return nil, err
	}
	if err := timed("connect", "a server that has just started: its SSH connection made, a command run", 10*time.Second, func() error { return b.reconnect(ctx) }); err != nil {
		return nil, err
	}
	sshd := b.nodes[near].sshd
	if err := timed("connect", "vendetta node add: log in, install, start the node agent", 10*time.Second,
		command("node", "add", near, sshd.User+"@"+sshd.Host, "--port", fmt.Sprint(sshd.Port), "--host-key", sshd.Fingerprint)); err != nil {
		return nil, err
	}
	if err := b.dispatch(ctx, timed); err != nil {
		return nil, err
	}
	return append(list, ceiling{"docker create", "create to first output, the slowest of all", r.samples[mCreate].percentile(100), 20 * time.Second}), nil
}

// reconnect starts the server anew, outside of the time that counts most: the
// stop is part of it, so what is measured is an upper bound.
func (b *bed) reconnect(ctx context.Context) error {
	if _, err := b.run(ctx, "server", "stop"); err != nil {
		return err
	}
	if _, err := b.run(ctx, "server", "start"); err != nil {
		return err
	}
	return b.roads.server(ctx, near, "true")
}

// dispatch measures an accepted change until the node has done it, with the work
// itself as small as can be: a native workspace, else one of Docker.
func (b *bed) dispatch(ctx context.Context, timed func(string, string, time.Duration, func() error) error) error {
	n, err := b.client.Nodes.GetNode(ctx, &vendettav1.GetNodeRequest{Name: near})
	if err != nil {
		return err
	}
	spec := &vendettav1.WorkspaceSpec{Provider: "docker", Image: b.image}
	for _, p := range n.GetReport().GetProviders() {
		if p.GetName() == "native" && p.GetUsable() {
			spec = &vendettav1.WorkspaceSpec{Provider: "native"}
		}
	}
	err = timed("dispatch", "a create of a "+spec.GetProvider()+" workspace: accepted, sent to the node, done, reported", 2*time.Second,
		func() error { return b.createWorkspace(ctx, "dispatched", spec) })
	if rerr := b.removeWorkspace(ctx, "dispatched"); err == nil {
		err = rerr
	}
	return err
}
