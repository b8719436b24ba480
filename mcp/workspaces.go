package mcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// projectIn is how long workspace_status waits for the guest's view of the project.
const projectIn = 5 * time.Second

var paramName = param{name: "name", kind: text, required: true, description: "Name of the workspace."}

func workspaceTools() []*tool {
	return []*tool{
		createTool(),
		{
			name: "workspace_list", title: "List workspaces", set: setWorkspaces, readOnly: true, idempotent: true,
			description: "List workspaces with state, node, provider and image.",
			params:      []param{{name: "node", kind: text, description: "Only those on this node."}},
			run:         runWorkspaceList,
		},
		{
			name: "workspace_status", title: "Show a workspace", set: setWorkspaces, readOnly: true, idempotent: true,
			description: "Show one workspace: state, reason of a failure and what to do, git branch, and what was changed since it was created.",
			params:      []param{paramName},
			run:         runWorkspaceStatus,
		},
		{
			name: "workspace_up", title: "Start a workspace", set: setWorkspaces, idempotent: true,
			description: "Start a workspace that was stopped. Its files are as they were.",
			params:      []param{paramName},
			run: func(ctx context.Context, g *Gateway, c *call) (string, error) {
				return g.change(ctx, c, func(key string) (*vendettav1.ChangeResponse, error) {
					return g.client.Workspaces.UpWorkspace(ctx, &vendettav1.UpWorkspaceRequest{Name: c.text("name"), IdempotencyKey: key})
				})
			},
		},
		{
			name: "workspace_stop", title: "Stop a workspace", set: setWorkspaces, destructive: true, idempotent: true,
			description: "Stop a workspace and end its commands. Files are kept; workspace_up starts it again.",
			params:      []param{paramName, {name: "grace_seconds", kind: integer, most: 3600, description: "Time the commands get to end by themselves; 10 unless given."}},
			run: func(ctx context.Context, g *Gateway, c *call) (string, error) {
				return g.change(ctx, c, func(key string) (*vendettav1.ChangeResponse, error) {
					return g.client.Workspaces.StopWorkspace(ctx, &vendettav1.StopWorkspaceRequest{
						Name: c.text("name"), IdempotencyKey: key, GraceSeconds: int32(c.number("grace_seconds", 0)),
					})
				})
			},
		},
		{
			name: "workspace_rm", title: "Remove a workspace", set: setWorkspaces, destructive: true, idempotent: true,
			description: "Remove a workspace and its files for good. Refused, naming them, when commits or changes exist only there, unless force is set.",
			params:      []param{paramName, {name: "force", kind: boolean, description: "Remove even so. Ask the user first."}},
			run: func(ctx context.Context, g *Gateway, c *call) (string, error) {
				return g.change(ctx, c, func(key string) (*vendettav1.ChangeResponse, error) {
					return g.client.Workspaces.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{Name: c.text("name"), IdempotencyKey: key, Force: c.flag("force")})
				})
			},
		},
	}
}

// hint gives an error that was not found a next step that is a tool.
func hint(err error, next string) error {
	if e := api.From(err); e.Code == api.NotFound {
		return e.WithNext("%s", next)
	}
	return err
}

// change asks for a new state and waits until it is reached, within the call's time.
func (g *Gateway) change(ctx context.Context, c *call, ask func(key string) (*vendettav1.ChangeResponse, error)) (string, error) {
	name := c.text("name")
	r, err := ask(strings.ToLower(rand.Text()))
	if err != nil {
		return "", hint(err, "workspace_list shows the names")
	}
	op := r.GetOperation()
	c.say(func() string { return op.GetVerb() + " " + name })
	wait, cancel := context.WithTimeout(ctx, waitFor(ctx, waitMost))
	defer cancel()
	_, err = g.client.Wait(wait, op)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("%s %s: accepted, not finished yet.\nnext: %s\n", op.GetVerb(), name, asCall("workspace_status", "name", name)), nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s: done\n", op.GetVerb(), name), nil
}

func runWorkspaceList(ctx context.Context, g *Gateway, c *call) (string, error) {
	r, err := g.client.Workspaces.ListWorkspaces(ctx, &vendettav1.ListWorkspacesRequest{Node: c.text("node")})
	if err != nil {
		return "", err
	}
	var l lines
	if len(r.GetWorkspaces()) == 0 {
		l.add("no workspaces; workspace_create makes one")
	}
	for _, w := range r.GetWorkspaces() {
		l.add("%s: %s, on node %s, %s", w.GetName(), workspaceState(w), w.GetNode(), shape(w))
	}
	return l.text("ask for those of one node with the argument node"), nil
}

func workspaceState(w *vendettav1.Workspace) string {
	s := state(w.GetState(), "WORKSPACE_STATE_")
	if w.GetMessage() != "" {
		s += " (" + w.GetMessage() + ")"
	}
	return s
}

func shape(w *vendettav1.Workspace) string {
	s := "provider " + w.GetSpec().GetProvider()
	if image := w.GetSpec().GetImage(); image != "" {
		s += ", image " + image
	}
	return s
}

func runWorkspaceStatus(ctx context.Context, g *Gateway, c *call) (string, error) {
	name := c.text("name")
	w, err := g.client.Workspaces.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: name})
	if err != nil {
		return "", hint(err, "workspace_list shows the names")
	}
	var l lines
	l.add("workspace: %s", w.GetName())
	l.add("state: %s", workspaceState(w))
	if w.GetNext() != "" {
		l.add("next: %s", w.GetNext())
	}
	l.add("node: %s, %s", w.GetNode(), shape(w))
	if s := w.GetSpec().GetSource(); s != nil {
		l.add("created from: %s, branch %s, commit %.12s%s", s.GetPath(), s.GetBranch(), s.GetCommit(), dirty(s))
	}
	l.add("created: %s, changed: %s", stamp(w.GetCreatedAt()), stamp(w.GetUpdatedAt()))
	if w.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING {
		g.project(ctx, name, &l)
	}
	return l.text("exec git status tells the rest"), nil
}

func dirty(s *vendettav1.Source) string {
	if s.GetDirty() {
		return " and uncommitted files"
	}
	return ""
}

// project adds what the guest says of /workspace; a guest that does not answer
// is said so, since the rest of the status is good without it.
func (g *Gateway) project(ctx context.Context, name string, l *lines) {
	ctx, cancel := context.WithTimeout(ctx, projectIn)
	defer cancel()
	p, err := g.client.Guest(name).Project.ProjectStatus(ctx, &guestv1.ProjectStatusRequest{})
	if err != nil {
		l.add("project: no answer from inside the workspace: %s", api.From(err).Message)
		return
	}
	if p.GetGitVersion() == "" {
		l.add("git: the image has none")
	}
	if p.GetCommit() != "" {
		l.add("git: branch %s, commit %.12s", p.GetBranch(), p.GetCommit())
	}
	if p.GetImported() {
		l.add("changed since it was created: %s, %s", plural(int(p.GetChangedFilesTotal()), "file"), plural(int(p.GetNewCommitsTotal()), "new commit"))
	}
	for _, file := range p.GetChangedFiles() {
		l.add("  %s", file)
	}
	for _, commit := range p.GetNewCommits() {
		l.add("  commit %s", commit)
	}
}
