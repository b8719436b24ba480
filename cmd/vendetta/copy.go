package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

func newWorkspaceCopy(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files into a workspace or out of it",
		Long: `Copies a file or folder between this machine and a workspace; one of the two is
written NAME:PATH. A relative path in a workspace is meant from /workspace. An
existing folder gets the source inside it, as with docker cp.`,
		Example: `  vendetta workspace cp ./file fix-login:/tmp/
  vendetta workspace cp fix-login:report.html .`,
		Args: exactArgs(2), ValidArgsFunction: a.completeCopy,
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := splitWorkspacePath(args[0]), splitWorkspacePath(args[1])
			if (from.workspace == "") == (to.workspace == "") {
				return api.Errorf(api.InvalidArgument, "copy %s to %s: one of the two must be in a workspace", args[0], args[1]).
					WithNext("write the one in the workspace as NAME:PATH")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if from.workspace != "" {
				return c.Guest(from.workspace).CopyFrom(cmd.Context(), from.path, to.path)
			}
			return c.Guest(to.workspace).CopyTo(cmd.Context(), from.path, to.path)
		},
	}
}

// completeCopy offers the workspaces as NAME: beside the files of this machine.
func (a *app) completeCopy(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 || strings.ContainsAny(toComplete, ":/.") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	for _, name := range a.workspaceNames(cmd) {
		if strings.HasPrefix(name, toComplete) {
			names = append(names, name+":")
		}
	}
	if len(names) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return names, cobra.ShellCompDirectiveNoSpace
}

type workspacePath struct{ workspace, path string }

// splitWorkspacePath reads NAME:PATH. What begins with . or / or has a slash
// before the colon is a path of this machine, so ./a:b can be said; so is one with
// a drive on Windows.
func splitWorkspacePath(s string) workspacePath {
	name, path, found := strings.Cut(s, ":")
	if !found || name == "" || strings.ContainsAny(name, `/\.`) || filepath.VolumeName(s) != "" {
		return workspacePath{path: s}
	}
	if path == "" {
		path = "."
	}
	return workspacePath{workspace: name, path: path}
}
