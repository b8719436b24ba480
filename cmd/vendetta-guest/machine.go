//go:build linux

package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/vendetta-dev/vendetta/nodeagent/guest"
	"github.com/vendetta-dev/vendetta/nodeagent/guest/boot"
)

// runMachine is the first process of a virtual machine that boots from the
// provider's initramfs. It ends by switching the machine off: its console then
// ends with what went wrong, and not with the kernel's panic about it.
func runMachine(ctx context.Context, log *slog.Logger) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c, err := boot.Start(ctx)
	if err == nil {
		err = serveMachine(ctx, c, stop, log)
	}
	if err != nil {
		log.Error("the workspace cannot start", "error", err)
	}
	boot.Off(log)
}

func serveMachine(ctx context.Context, c boot.Config, stop func(), log *slog.Logger) error {
	g, err := guest.New(ctx, guest.Options{
		StateDir: boot.StateDir, ProjectDir: boot.ProjectDir, DefaultUser: c.User, GiveProject: true,
		Env: os.Environ(), ReapOrphans: true, Logger: log,
	})
	if err != nil {
		return err
	}
	obeying, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	go boot.Obey(obeying, stop, log)
	serve(ctx, g, boot.LinkDialer(), log)
	return nil
}

// runAttached serves in a machine that has booted by itself, as one of its services.
func runAttached(ctx context.Context, log *slog.Logger) error {
	if err := boot.Attach(ctx); err != nil {
		return err
	}
	g, err := guest.New(ctx, guest.Options{
		StateDir: boot.StateDir, ProjectDir: boot.ProjectDir, Env: environment(), Logger: log,
	})
	if err != nil {
		return err
	}
	obeying, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	go boot.ObeyAttached(obeying, log)
	serve(ctx, g, boot.LinkDialer(), log)
	return nil
}
