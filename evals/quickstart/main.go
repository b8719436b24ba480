// Command quickstart shows the main job on this machine: it starts the server and
// the node "local", makes the workspace "hello" from the checkout it stands in,
// drives it through MCP over stdio as an AI client would, and prints what
// happened. With -down it removes what it made, and nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	program := flag.String("program", "bin/vendetta", "the vendetta program to run")
	workspace := flag.String("workspace", "hello", "name of the workspace to make")
	down := flag.Bool("down", false, "remove what quickstart made")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *program, *workspace, *down)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program, workspace string, down bool) error {
	q, err := newQuickstart(program, workspace, os.Stdout)
	if err != nil {
		return err
	}
	if down {
		return q.down(ctx)
	}
	return errors.Join(q.up(ctx), q.saveMade())
}
