package main

import (
	"fmt"

	"github.com/spf13/cobra"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func newNodeSpares(a *app) *cobra.Command {
	var provider, image string
	var count int32
	cmd := &cobra.Command{
		Use: "spares NODE", Short: "Keep instances running that a create takes at once",
		Long: `Keeps so many instances of a provider and image running on a node. A create that
asks for the same, with the provider's default limits and network, takes one of
them within milliseconds, and another one is made in the background. They are
given up while the node drains or its memory is short. --count 0 removes them.`,
		Example: `  vendetta node spares build1 --provider docker --image debian:12 --count 2
  vendetta node spares build1 --provider docker --image debian:12 --count 0`,
		Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, flag := range []string{"provider", "count"} {
				if !cmd.Flags().Changed(flag) {
					return usageError(cmd, "--%s is missing", flag)
				}
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			n, err := c.Nodes.SetSpares(cmd.Context(), &vendettav1.SetSparesRequest{Node: args[0], Provider: provider, Image: image, Count: count})
			if err != nil {
				return err
			}
			done := fmt.Sprintf("keeps %d; they are made", count)
			if count == 0 {
				done = "keeps none; those that there are go"
			}
			a.note("node %s %s in the background: vendetta node status %s", n.GetName(), done, n.GetName())
			return a.result(n.GetName(), n)
		},
	}
	cmd.Flags().StringVar(&provider, "provider", "", "the provider that makes them")
	cmd.Flags().StringVar(&image, "image", "", "the image that they have (default: the provider's)")
	_ = cmd.RegisterFlagCompletionFunc("provider", cobra.FixedCompletions([]string{"docker", "lxc", "native", "qemu"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().Int32Var(&count, "count", 0, "how many there are to be")
	return cmd
}

// spareRows is what a node's status says of its spares.
func spareRows(spares []*vendettav1.Spares) [][]string {
	var rows [][]string
	for _, s := range spares {
		what := s.GetProvider()
		if s.GetImage() != "" {
			what += " " + s.GetImage()
		}
		text := fmt.Sprintf("%s: %d of %d ready", what, s.GetReady(), s.GetCount())
		if s.GetMessage() != "" {
			text += "; " + s.GetMessage()
		}
		rows = append(rows, []string{"spares", text})
	}
	return rows
}
