//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// patience bounds the work: when it is used up, the work ends early and what was
// done so far counts.
const patience = 150 * time.Second

// warmUp commands in a workspace are more than the ended ones a guest keeps (200).
const warmUp = 260

func main() {
	program := flag.String("program", "bin/vendetta", "the vendetta program to run, with its bundle beside it")
	commands := flag.Int("commands", 2000, "how many commands to run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *program, *commands)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program string, commands int) (err error) {
	began := time.Now()
	s, err := newStage(ctx, program)
	if s != nil {
		defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	// The warm-up fills pools, caches and each guest's list of ended commands, which
	// grow once and not for ever.
	if _, err := s.work(ctx, max(commands/4, warmUp*len(s.workspaces)), began.Add(patience/3)); err != nil {
		return err
	}
	before, err := s.settled(ctx, nil)
	if err != nil {
		return err
	}
	done, err := s.work(ctx, commands, began.Add(patience))
	if err != nil {
		return err
	}
	after, err := s.settled(ctx, before)
	if err != nil {
		return err
	}
	fmt.Printf("%s in %s\n\n", done, time.Since(began).Round(time.Second))
	if !report(os.Stdout, before, after) {
		return errors.New("something grew by more than its slack")
	}
	return nil
}
