package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

func newWorkspaceSnapshot(a *app) *cobra.Command {
	return group("snapshot", "Kept states of a workspace",
		newSnapshotCreate(a), newSnapshotList(a), newSnapshotRestore(a), newSnapshotRemove(a))
}

func newSnapshotCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "create WORKSPACE NAME", Short: "Keep the state that a workspace is in",
		Long: `Keeps the workspace's root, /workspace and the records of its commands together, as
they are in one moment; what runs is halted for that moment. A virtual machine's
snapshot holds its memory, too. Snapshots end with the workspace.`,
		Example: `  vendetta workspace snapshot create fix-login clean`,
		Args:    exactArgs(2), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[1], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.CreateSnapshot(cmd.Context(), &vendettav1.CreateSnapshotRequest{Workspace: args[0], Snapshot: args[1], IdempotencyKey: newID()})
			})
		},
	}
}

func newSnapshotList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list WORKSPACE", Aliases: []string{"ls"}, Short: "List a workspace's snapshots, the oldest first",
		Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.Workspaces.ListSnapshots(cmd.Context(), &vendettav1.ListSnapshotsRequest{Workspace: args[0]})
			if err != nil {
				return err
			}
			t := table{
				header: []string{"NAME", "AGE", "SIZE", "MEMORY"}, message: list,
				empty: fmt.Sprintf("no snapshots yet; take one with: vendetta workspace snapshot create %s NAME", args[0]),
			}
			for _, s := range list.GetSnapshots() {
				memory := "no"
				if s.GetMemory() {
					memory = "yes"
				}
				t.rows = append(t.rows, []string{s.GetName(), age(time.Now(), s.GetCreatedAt()), sizeOrDash(s.GetBytes()), memory})
			}
			return a.print(t)
		},
	}
}

// sizeOrDash is a size that may not be known.
func sizeOrDash(n int64) string {
	if n < 0 {
		return "-"
	}
	return size(uint64(n))
}

func newSnapshotRestore(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "restore WORKSPACE NAME", Short: "Put a workspace back into a state that was kept",
		Long: `Puts the snapshot's state back. What came after it is lost, without a question:
files and commits in /workspace, what was installed, and the output of later
commands. Running commands end, unless the snapshot holds a virtual machine's
memory: then those of that time go on. A workspace that ran runs again after it.
The snapshot stays; take another one first to be able to come back.`,
		Example: `  vendetta workspace snapshot create fix-login before-restore
  vendetta workspace snapshot restore fix-login clean`,
		Args: exactArgs(2), ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				change, err := c.Workspaces.RestoreSnapshot(cmd.Context(), &vendettav1.RestoreSnapshotRequest{Workspace: args[0], Snapshot: args[1], IdempotencyKey: newID()})
				if err == nil {
					a.note("what came after snapshot %s of %s is lost", args[1], args[0])
				}
				return change, err
			})
		},
	}
}

func newSnapshotRemove(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm WORKSPACE NAME", Aliases: []string{"remove"}, Short: "Remove a snapshot; the workspace stays as it is",
		Args: exactArgs(2), ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[1], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.RemoveSnapshot(cmd.Context(), &vendettav1.RemoveSnapshotRequest{Workspace: args[0], Snapshot: args[1], IdempotencyKey: newID()})
			})
		},
	}
}

// completeSnapshots completes a workspace, then one of its snapshots.
func (a *app) completeSnapshots(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.workspaceNames(cmd), cobra.ShellCompDirectiveNoFileComp
	case 1:
		return a.snapshotNames(cmd, args[0]), cobra.ShellCompDirectiveNoFileComp
	default:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// snapshotNames serves completions, as nodeNames does.
func (a *app) snapshotNames(cmd *cobra.Command, workspace string) []string {
	c, err := a.connectForCompletion()
	if err != nil {
		return nil
	}
	list, err := c.Workspaces.ListSnapshots(cmd.Context(), &vendettav1.ListSnapshotsRequest{Workspace: workspace})
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range list.GetSnapshots() {
		names = append(names, s.GetName())
	}
	return names
}

func newWorkspaceFork(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "fork WORKSPACE NEW", Short: "Make a second workspace as the first one is now",
		Long: `Makes a workspace with the root, the /workspace and the limits that the other one
has now, on the same node. The other one is halted for a moment and goes on. Of a
running virtual machine the fork goes on with its memory and commands; elsewhere it
starts anew, with the files.`,
		Example: `  vendetta workspace fork fix-login fix-login-2`,
		Args:    exactArgs(2), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			change, err := c.Workspaces.ForkWorkspace(cmd.Context(), &vendettav1.ForkWorkspaceRequest{Name: args[0], Fork: args[1], IdempotencyKey: newID()})
			if err != nil {
				return err
			}
			if _, err := a.waitFor(cmd.Context(), c, change.GetOperation()); err != nil {
				return err
			}
			return a.made(cmd.Context(), c, args[1])
		},
	}
}

// made says what a workspace that was just made is.
func (a *app) made(ctx context.Context, c *client.Client, name string) error {
	w, err := c.Workspaces.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: name})
	if err != nil {
		return err
	}
	a.note("workspace %s is %s on %s (%s)", w.GetName(), enumWord(w.GetState(), "WORKSPACE_STATE_"), w.GetNode(), w.GetSpec().GetProvider())
	return a.result(w.GetName(), w)
}

func newWorkspacePause(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "pause WORKSPACE", Short: "Halt a workspace with all that runs in it",
		Long: `Halts everything in the workspace where it is: it keeps its memory and gets no
processor time until it is resumed. Commands to a paused workspace are refused.
After a restart of the node's machine it is started anew and paused again.`,
		Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.PauseWorkspace(cmd.Context(), &vendettav1.PauseWorkspaceRequest{Name: args[0], IdempotencyKey: newID()})
			})
		},
	}
}

func newWorkspaceResume(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "resume WORKSPACE", Short: "Let a paused workspace go on", Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.ResumeWorkspace(cmd.Context(), &vendettav1.ResumeWorkspaceRequest{Name: args[0], IdempotencyKey: newID()})
			})
		},
	}
}

type resizeOptions struct {
	name   string
	cpus   float64
	memory string
	disk   string
	pids   int64
}

func newWorkspaceResize(a *app, runF func(context.Context, *app, resizeOptions) error) *cobra.Command {
	var o resizeOptions
	cmd := &cobra.Command{
		Use: "resize WORKSPACE", Short: "Change a workspace's limits",
		Long: `Changes the limits that are named and leaves the others. Where one is in effect at
the next start only, as processors and memory of a virtual machine are, it says so.
A disk only grows. A workspace that is down comes up with the new limits.`,
		Example: `  vendetta workspace resize fix-login --cpus 4 --memory 8G`,
		Args:    exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runF(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.Float64Var(&o.cpus, "cpus", 0, "processors, fractions allowed")
	f.StringVar(&o.memory, "memory", "", "memory, e.g. 8G")
	f.StringVar(&o.disk, "disk", "", "what it may write, /workspace included, e.g. 20G")
	f.Int64Var(&o.pids, "pids", 0, "most processes and threads")
	return cmd
}

func (o resizeOptions) resources() (*vendettav1.Resources, error) {
	memory, err := parseSize(o.memory)
	if err != nil {
		return nil, err
	}
	disk, err := parseSize(o.disk)
	if err != nil {
		return nil, err
	}
	return &vendettav1.Resources{Cpus: o.cpus, MemoryBytes: memory, DiskBytes: disk, Pids: o.pids}, nil
}

func runWorkspaceResize(ctx context.Context, a *app, o resizeOptions) error {
	want, err := o.resources()
	if err != nil {
		return err
	}
	return a.change(ctx, o.name, func(c *client.Client) (*vendettav1.ChangeResponse, error) {
		return c.Workspaces.ResizeWorkspace(ctx, &vendettav1.ResizeWorkspaceRequest{Name: o.name, Resources: want, IdempotencyKey: newID()})
	})
}

// limitRows are the limits that a workspace has.
func limitRows(r *vendettav1.Resources) [][]string {
	var rows [][]string
	if r.GetCpus() > 0 {
		rows = append(rows, []string{"cpus", strconv.FormatFloat(r.GetCpus(), 'g', -1, 64)})
	}
	if r.GetMemoryBytes() > 0 {
		rows = append(rows, []string{"memory", size(r.GetMemoryBytes())})
	}
	if r.GetDiskBytes() > 0 {
		rows = append(rows, []string{"disk", size(r.GetDiskBytes())})
	}
	if r.GetPids() > 0 {
		rows = append(rows, []string{"pids", strconv.FormatInt(r.GetPids(), 10)})
	}
	return rows
}
