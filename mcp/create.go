package mcp

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client/source"
)

var networks = map[string]vendettav1.Network{
	"":        vendettav1.Network_NETWORK_UNSPECIFIED,
	"private": vendettav1.Network_NETWORK_PRIVATE,
	"none":    vendettav1.Network_NETWORK_NONE,
	"host":    vendettav1.Network_NETWORK_HOST,
}

func createTool() *tool {
	return &tool{
		name: "workspace_create", title: "Create a workspace", set: setWorkspaces, idempotent: true, openWorld: true,
		description: "Create and start a workspace, and wait up to 45 s until it runs. Calling again with the same arguments waits on, or reports the workspace as it is. " +
			"Without node and provider the best ones are chosen.",
		params: []param{
			{name: "name", kind: text, required: true, description: "Lower-case letters, digits and -, at most 40."},
			{name: "from", kind: text, description: "Absolute path of a git repository on the user's machine: its history and files are copied to /workspace."},
			{name: "clean", kind: boolean, description: "With from: leave out uncommitted and untracked files."},
			{name: "image", kind: text, description: "Image to start from, e.g. debian:12."},
			{name: "node", kind: text, description: "Node to use; node_list shows them."},
			{name: "provider", kind: text, description: "docker, lxc, native or qemu."},
			{name: "network", kind: text, enum: []string{"private", "none", "host"}, description: "private (the default) reaches out; none is loopback only; host is the node's own, native only."},
			{name: "cpus", kind: integer, least: 1, most: 1024, description: "Processors at most."},
			{name: "memory_mb", kind: integer, least: 16, most: 1 << 24, description: "Memory at most, in MiB."},
		},
		run: runCreate,
	}
}

func runCreate(ctx context.Context, g *Gateway, c *call) (string, error) {
	name, from := c.text("name"), c.text("from")
	if from != "" && !filepath.IsAbs(from) {
		return "", api.Errorf(api.InvalidArgument, "workspace_create: from is %q, which is not an absolute path", from).
			WithNext("give the whole path, beginning with /")
	}
	//nolint:contextcheck // a creation outlives the call that begins it
	j, err := g.imports.join(name, string(encode(c.arguments)), func(ctx context.Context, say func(string)) (string, error) {
		return g.guarded(ctx, c.tool.name, func() (string, error) {
			return (&creation{gateway: g, args: c.arguments, name: name, from: from, say: say}).run(ctx)
		})
	})
	if err != nil {
		return "", err
	}
	c.say(j.saying)
	over := time.NewTimer(waitFor(ctx, waitMost))
	defer over.Stop()
	select {
	case <-j.done:
		g.imports.collect(name, j)
		return j.answer, j.err
	case <-over.C:
	case <-ctx.Done():
	}
	return fmt.Sprintf("create %s: not finished yet: %s\nnext: call workspace_create again with the same arguments to wait on\n", name, j.saying()), nil
}

// creation is the work of one workspace_create, beyond the time of one call.
type creation struct {
	gateway    *Gateway
	args       arguments
	name, from string
	say        func(string)
	archive    *source.Archive
}

func (n *creation) run(ctx context.Context) (answer string, err error) {
	defer func() {
		if n.archive != nil {
			if closeErr := n.archive.Close(); err == nil && closeErr != nil {
				err = fmt.Errorf("remove the temporary clone: %w", closeErr)
			}
		}
	}()
	w, note, err := n.ensure(ctx)
	if err != nil {
		return "", err
	}
	if s := w.GetState(); s != vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING {
		return fmt.Sprintf("workspace %s exists and is %s\nnext: %s\n", n.name, workspaceState(w), asCall("workspace_up", "name", n.name)), nil
	}
	var l lines
	l.add("workspace %s is running on node %s, %s", n.name, w.GetNode(), shape(w))
	if note != "" {
		l.add("chosen: %s", note)
	}
	if n.from != "" {
		if err := n.fill(ctx); err != nil {
			return "", err
		}
		s := w.GetSpec().GetSource()
		l.add("/workspace holds %s, branch %s, commit %.12s%s", s.GetPath(), s.GetBranch(), s.GetCommit(), dirty(s))
	}
	if n.archive != nil {
		for _, note := range n.archive.Notes {
			l.add("note: %s", note)
		}
	}
	l.add("next: %s", asCall("exec", "workspace", n.name, "argv", []string{"ls", "-la"}))
	return l.text("they are about what was not brought"), nil
}

// ensure finds the workspace or creates it, and returns it as it stands when its
// creation has ended.
func (n *creation) ensure(ctx context.Context) (w *vendettav1.Workspace, note string, err error) {
	n.say("looking for " + n.name)
	w, err = n.get(ctx)
	op := &vendettav1.Operation{Id: w.GetOperation()}
	switch {
	case api.CodeOf(err) == api.NotFound:
		if op, note, err = n.create(ctx); err != nil {
			return nil, "", err
		}
	case err != nil:
		return nil, "", err
	default:
		if err := n.same(w); err != nil {
			return nil, "", err
		}
		if w.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_FAILED {
			next := w.GetNext()
			if next == "" {
				next = "remove it with " + asCall("workspace_rm", "name", n.name) + " and create it again"
			}
			return nil, "", api.Errorf(api.FailedPrecondition, "create %s: it exists and has failed: %s", n.name, w.GetMessage()).WithNext("%s", next)
		}
		if w.GetState() != vendettav1.WorkspaceState_WORKSPACE_STATE_CREATING {
			return w, "", nil
		}
	}
	n.say("waiting until " + n.name + " runs")
	if _, err := n.gateway.client.Wait(ctx, op); err != nil {
		return nil, "", err
	}
	w, err = n.get(ctx)
	return w, note, err
}

func (n *creation) get(ctx context.Context) (*vendettav1.Workspace, error) {
	return n.gateway.client.Workspaces.GetWorkspace(ctx, &vendettav1.GetWorkspaceRequest{Name: n.name})
}

func (n *creation) create(ctx context.Context) (*vendettav1.Operation, string, error) {
	spec := &vendettav1.WorkspaceSpec{
		Provider: n.args.text("provider"), Image: n.args.text("image"), Network: networks[n.args.text("network")],
	}
	if n.args.has("cpus") || n.args.has("memory_mb") {
		spec.Resources = &vendettav1.Resources{Cpus: float64(n.args.number("cpus", 0)), MemoryBytes: uint64(n.args.number("memory_mb", 0)) << 20}
	}
	if n.from != "" {
		// First, so that a repository that cannot be read leaves no workspace behind.
		if err := n.pack(ctx); err != nil {
			return nil, "", err
		}
		spec.Source = n.archive.Source
	}
	n.say("asking for " + n.name)
	r, err := n.gateway.client.Workspaces.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{
		Name: n.name, Node: n.args.text("node"), Spec: spec, IdempotencyKey: strings.ToLower(rand.Text()),
	})
	return r.GetOperation(), r.GetNote(), err
}

func (n *creation) pack(ctx context.Context) (err error) {
	if n.archive == nil {
		n.say("reading the repository " + n.from)
		n.archive, err = source.Pack(ctx, n.from, n.args.flag("clean"))
	}
	return err
}

// same refuses to take an existing workspace for the one that was asked for.
func (n *creation) same(w *vendettav1.Workspace) error {
	origin := w.GetSpec().GetSource().GetPath()
	for _, c := range []struct{ what, want, is string }{
		{"node", n.args.text("node"), w.GetNode()},
		{"provider", n.args.text("provider"), w.GetSpec().GetProvider()},
		{"image", n.args.text("image"), w.GetSpec().GetImage()},
	} {
		if c.want != "" && c.want != c.is {
			return n.conflict(c.what, c.is)
		}
	}
	if n.from != "" && !within(n.from, origin) {
		return n.conflict("source", origin)
	}
	return nil
}

func (n *creation) conflict(what, is string) error {
	if is == "" {
		is = "not set"
	}
	return api.Errorf(api.AlreadyExists, "create %s: a workspace of that name exists, and its %s is %s", n.name, what, is).
		WithNext("use it as it is, or choose another name")
}

// within tells whether path is dir or lies below it, symlinks resolved.
func within(path, dir string) bool {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	rel, err := filepath.Rel(dir, path)
	return dir != "" && err == nil && filepath.IsLocal(rel)
}

// fill brings the repository in, unless that was done before.
func (n *creation) fill(ctx context.Context) error {
	guest := n.gateway.client.Guest(n.name)
	p, err := guest.Project.ProjectStatus(ctx, &guestv1.ProjectStatusRequest{Limit: 1})
	if err != nil || p.GetImported() {
		return err
	}
	if err := n.pack(ctx); err != nil {
		return err
	}
	n.say("copying " + n.from + " into " + n.name)
	return source.Send(ctx, guest, n.archive)
}
