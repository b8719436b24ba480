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

// patience bounds the rounds: when it is used up, the running round is the last.
const patience = 8 * time.Minute

func main() {
	program := flag.String("program", "bin/vendetta", "the vendetta program to measure, with its bundle beside it")
	rounds := flag.Int("rounds", 8, "how often everything is measured in turn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *program, *rounds)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program string, rounds int) (err error) {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	began := time.Now()
	b, err := newBed(ctx, program)
	if b != nil {
		defer func() {
			if cerr := b.close(context.WithoutCancel(ctx)); err == nil {
				err = cerr
			}
		}()
	}
	if err != nil {
		return err
	}
	say("everything is up after %s", time.Since(began).Round(time.Second))
	r := newRecord()
	if err := warmUp(ctx, b); err != nil {
		return err
	}
	done := 0
	for done < rounds && time.Since(began) < patience {
		if err := measure(ctx, b, r); err != nil {
			return err
		}
		done++
		say("round %d of %d measured, %s", done, rounds, time.Since(began).Round(time.Second))
	}
	// Eight at once, and what takes whole machines, are measured a few times alone.
	for range seldomRounds {
		if err := errors.Join(b.measureTogether(ctx, r), b.measureFork(ctx, r)); err != nil {
			return err
		}
	}
	c, err := measureCeilings(ctx, b, r)
	if err != nil {
		return err
	}
	report(os.Stdout, machineFacts(ctx, b.engine), done, r, c)
	return nil
}
