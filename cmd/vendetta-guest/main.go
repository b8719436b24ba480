//go:build linux

// Command vendetta-guest is the program inside each workspace. A provider puts it
// there and runs it as the instance's first process.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vendetta-dev/vendetta/nodeagent/guest"
	"github.com/vendetta-dev/vendetta/nodeagent/guest/boot"
)

// stopGrace is how long processes have to end when the instance is stopped;
// container engines kill after 10 s.
const stopGrace = 8 * time.Second

func main() {
	if boot.Wanted() {
		runMachine(context.Background(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vendetta-guest:", err)
		os.Exit(1)
	}
}

func run() error {
	link := flag.String("link", "", "socket of the node agent")
	state := flag.String("state", "", "folder for records and output")
	project := flag.String("project", "/workspace", "folder of the project")
	machine := flag.Bool("machine", false, "serve in a virtual machine that has booted by itself")
	flag.Parse()
	if *machine && flag.NFlag() == 1 && flag.NArg() == 0 {
		syscall.Umask(0o022)
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return runAttached(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if *link == "" || *state == "" || flag.NArg() > 0 {
		return fmt.Errorf("usage: vendetta-guest --link SOCKET --state DIR [--project DIR]")
	}
	syscall.Umask(0o022)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// Caught rather than ignored: a signal that is ignored stays so in every command.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)

	g, err := guest.New(ctx, guest.Options{
		StateDir: *state, ProjectDir: *project, DefaultUser: os.Getenv("VENDETTA_GUEST_USER"),
		Env: environment(), ReapOrphans: os.Getpid() == 1, Logger: log,
	})
	if err != nil {
		return err
	}
	serve(ctx, g, guest.DialUnix(*link), log)
	return nil
}

// serve serves on the guest link until ctx is done, and then ends the processes.
func serve(ctx context.Context, g *guest.Guest, dial func(context.Context) (net.Conn, error), log *slog.Logger) {
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan struct{})
	go func() {
		defer close(served)
		guest.ServeLink(serving, dial, g, log)
	}()
	<-ctx.Done()
	g.Close(stopGrace)
	end()
	<-served
}

// environment is what commands inherit: the instance's, our own variables aside.
func environment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "VENDETTA_") {
			env = append(env, entry)
		}
	}
	return env
}

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
