package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

type statsOptions struct {
	name     string
	interval time.Duration
}

func newWorkspaceStats(a *app) *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use: "stats WORKSPACE", Short: "Show what a running workspace uses",
		Long: `Measures twice, a second apart, and shows the share of processors used between the
two (100% is one of them), the processor time since the start, the memory and what
was written to disk, with the limits. What the provider cannot tell is a dash.`,
		Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runWorkspaceStats(cmd.Context(), a, o)
		},
	}
	cmd.Flags().DurationVar(&o.interval, "interval", time.Second, "time between the two measurements")
	return cmd
}

func runWorkspaceStats(ctx context.Context, a *app, o statsOptions) error {
	if o.interval <= 0 {
		return api.Errorf(api.InvalidArgument, "interval %v: it must be above 0", o.interval)
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	before, begun, err := measure(ctx, c, o.name)
	if err != nil {
		return err
	}
	timer := time.NewTimer(o.interval)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return api.Errorf(api.Unavailable, "stats of workspace %s: interrupted", o.name)
	}
	now, ended, err := measure(ctx, c, o.name)
	if err != nil {
		return err
	}
	// One that was started anew in between begins at nothing.
	percent := 100 * max(now.GetCpuSeconds()-before.GetCpuSeconds(), 0) / ended.Sub(begun).Seconds()
	whole, err := statsMessage(now, percent)
	if err != nil {
		return err
	}
	limits := now.GetLimits()
	return a.print(table{
		header: []string{"NAME", "CPU", "OF", "CPU TIME", "MEMORY", "OF", "DISK", "OF"},
		rows: [][]string{{
			o.name,
			fmt.Sprintf("%.1f%%", percent), limit(limits.GetCpus() > 0, strconv.FormatFloat(100*limits.GetCpus(), 'g', -1, 64)+"%"),
			fmt.Sprintf("%.1fs", now.GetCpuSeconds()),
			size(now.GetMemoryBytes()), limit(limits.GetMemoryBytes() > 0, size(limits.GetMemoryBytes())),
			sizeOrDash(now.GetDiskBytes()), limit(limits.GetDiskBytes() > 0, size(limits.GetDiskBytes())),
		}},
		message: whole,
	})
}

// measure returns what is used now and when that was.
func measure(ctx context.Context, c *client.Client, name string) (*vendettav1.WorkspaceStats, time.Time, error) {
	stats, err := c.Workspaces.GetWorkspaceStats(ctx, &vendettav1.GetWorkspaceStatsRequest{Name: name})
	return stats, time.Now(), err
}

func limit(set bool, text string) string {
	if !set {
		return "-"
	}
	return text
}

// statsMessage is the measurement for json and yaml, with the share of processors.
func statsMessage(stats *vendettav1.WorkspaceStats, percent float64) (*structpb.Struct, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(stats)
	if err != nil {
		return nil, api.Errorf(api.Internal, "output: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, api.Errorf(api.Internal, "output: %w", err)
	}
	fields["cpu_percent"] = percent
	whole, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, api.Errorf(api.Internal, "output: %w", err)
	}
	return whole, nil
}
