package main

import (
	"github.com/spf13/cobra"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/mcp"
)

func newMCP(a *app) *cobra.Command {
	var o mcp.Options
	cmd := &cobra.Command{
		Use: "mcp", Short: "Serve nodes and workspaces to an MCP client over stdio", Args: exactArgs(0),
		Long: `Speaks the Model Context Protocol on stdin and stdout. MCP clients start it
themselves:

  claude mcp add vendetta -- vendetta mcp`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			o.Client, o.Version, o.Logger = c, api.Version, a.logger(a.err)
			gateway, err := mcp.New(o)
			if err != nil {
				return api.Errorf(api.InvalidArgument, "mcp: %w", err).WithNext("vendetta mcp --help")
			}
			return gateway.ServeStdio(cmd.Context(), a.in, a.out)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Toolsets, "toolsets", nil, "only the tools of these sets: nodes, workspaces, processes, files")
	f.StringSliceVar(&o.Tools, "tools", nil, "only these tools")
	f.BoolVar(&o.ReadOnly, "read-only", false, "only tools that change nothing; wins over the other two")
	return cmd
}
