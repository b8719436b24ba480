package main

import (
	"encoding/json"

	"github.com/spf13/cobra"
)

// newNodeAgent holds the commands by which a server runs the node agent on a
// machine. People have no need of them.
func newNodeAgent(a *app) *cobra.Command {
	cmd := group("nodeagent", "The program on a node; the server runs it",
		newNodeAgentStart(a), newNodeAgentSupervise(a), newNodeAgentRun(a),
		newNodeAgentConnect(a), newNodeAgentUninstall(a), newNativeInit())
	cmd.Hidden = true
	return cmd
}

func newNodeAgentStart(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "start", Short: "Start the agent as a daemon and print its socket as JSON", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket, err := startNodeAgent(cmd.Context(), a)
			if err != nil {
				return err
			}
			return json.NewEncoder(a.out).Encode(map[string]string{"socket": socket})
		},
	}
}

func newNodeAgentSupervise(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "supervise", Short: "Run the agent and start it again when it crashes", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return superviseNodeAgent(cmd.Context(), a) },
	}
}

func newNodeAgentRun(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Run the agent", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runNodeAgent(cmd.Context(), a) },
	}
}

func newNodeAgentConnect(a *app) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: "connect", Short: "Join stdin and stdout to the agent's socket", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return connectNodeAgent(cmd.Context(), a, socket) },
	}
	cmd.Flags().StringVar(&socket, "socket", "", "the agent's socket (default in the state folder)")
	return cmd
}

func newNodeAgentUninstall(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "uninstall", Short: "Stop the agent and remove its state; refused while workspaces exist", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return uninstallNodeAgent(cmd.Context(), a) },
	}
}

func newNativeInit() *cobra.Command {
	return &cobra.Command{
		Use: "native-init", Short: "First stage inside a native workspace", DisableFlagParsing: true,
		// It runs without an environment, so there is no state folder to look for.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(*cobra.Command, []string) error {
			if code := nativeInit(); code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
}
