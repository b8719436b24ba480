//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/pool"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

// atOnce is how many things are under way at any time.
const atOnce = 6

// tally counts what was done.
type tally struct{ commands, files, cycles atomic.Int64 }

func (t *tally) String() string {
	return fmt.Sprintf("%d commands, %d file operations, %d workspaces made and removed", t.commands.Load(), t.files.Load(), t.cycles.Load())
}

func newID() string { return "s" + strings.ToLower(rand.Text()[:12]) }

// work runs so many commands, with file operations and short-lived workspaces
// among them, but begins nothing after the deadline.
func (s *stage) work(ctx context.Context, commands int, deadline time.Time) (*tally, error) {
	done := &tally{}
	p := pool.New().WithMaxGoroutines(atOnce).WithContext(ctx).WithCancelOnError().WithFirstError()
	cycle := max(commands/8, 1)
	for i := range commands {
		if time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		workspace := s.workspaces[i%len(s.workspaces)]
		p.Go(func(ctx context.Context) error {
			if err := s.command(ctx, workspace, i); err != nil {
				return fmt.Errorf("command %d in %s: %w", i, workspace, err)
			}
			done.commands.Add(1)
			return nil
		})
		if i%5 == 0 {
			p.Go(func(ctx context.Context) error {
				if err := s.file(ctx, workspace, i); err != nil {
					return fmt.Errorf("files %d in %s: %w", i, workspace, err)
				}
				done.files.Add(1)
				return nil
			})
		}
		if i%cycle == cycle/2 {
			p.Go(func(ctx context.Context) error {
				if err := s.cycle(ctx, workspace, fmt.Sprintf("cycle-%d", i)); err != nil {
					return fmt.Errorf("workspace %d of %s: %w", i, workspace, err)
				}
				done.cycles.Add(1)
				return nil
			})
		}
	}
	err := p.Wait()
	return done, err
}

// command runs a command of one of several kinds and checks what came of it.
func (s *stage) command(ctx context.Context, workspace string, i int) error {
	var out bytes.Buffer
	req := &guestv1.StartRequest{ProcessId: newID(), Argv: []string{"true"}}
	code, want, o := int32(0), "", client.RunOptions{Stdout: &out, Stderr: &out}
	switch i % 4 {
	case 1:
		req.Argv, want = []string{"echo", "hello", fmt.Sprint(i)}, fmt.Sprintf("hello %d\n", i)
	case 2:
		req.Argv, code = []string{"sh", "-c", "head -c 65536 /dev/zero; exit 3"}, 3
		want = string(make([]byte, 65536))
	case 3:
		req.Argv, want, o.Stdin = []string{"cat"}, "through", strings.NewReader("through")
	}
	ended, err := s.client.Guest(workspace).Run(ctx, req, o)
	if err != nil {
		return err
	}
	if ended.GetExitCode() != code || out.String() != want {
		return fmt.Errorf("%v ended with code %d and %d bytes, expected %d and %d", req.GetArgv(), ended.GetExitCode(), out.Len(), code, len(want))
	}
	return nil
}

// cycle makes a workspace, uses it and removes it.
func (s *stage) cycle(ctx context.Context, provider, name string) error {
	err := s.create(ctx, name, provider)
	if err == nil {
		err = s.command(ctx, name, 1)
	}
	if rerr := s.remove(ctx, name); err == nil {
		err = rerr
	}
	return err
}
