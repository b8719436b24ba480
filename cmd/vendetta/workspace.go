package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/coordination/client/source"
)

func newWorkspace(a *app) *cobra.Command {
	cmd := group("workspace", "Isolated workspaces on your nodes",
		newWorkspaceCreate(a, runWorkspaceCreate), newWorkspaceList(a), newWorkspaceStatus(a),
		newWorkspaceUp(a), newWorkspaceStop(a), newWorkspaceDown(a), newWorkspaceRemove(a),
		newWorkspaceExec(a), newWorkspaceShell(a), newWorkspaceCopy(a),
		newWorkspacePS(a), newWorkspaceLogs(a), newWorkspaceKill(a),
		newWorkspaceSnapshot(a), newWorkspaceFork(a), newWorkspacePause(a), newWorkspaceResume(a),
		newWorkspaceResize(a, runWorkspaceResize), newWorkspaceStats(a))
	cmd.Aliases = []string{"ws"}
	return cmd
}

// newID is a random idempotency key or process id: 12 characters of base 32.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))[:12]
}

type createOptions struct {
	name     string
	node     string
	provider string
	image    string
	from     string
	clean    bool
	cpus     float64
	memory   string
	disk     string
	pids     int64
	network  string
	// checksum of a disk image that is fetched.
	checksum string
	// privileged: its root is the node's.
	privileged bool
}

func newWorkspaceCreate(a *app, runF func(context.Context, *app, createOptions) error) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a workspace and start it",
		Long: `Creates a workspace, starts it and answers when it runs. Without --node the only
node is taken, else the ready one with the provider and a spare for it, or the
most free memory. A spare that fits is taken and said (vendetta node spares).
Without --provider it is docker where that is usable, else native. With --from a
git repository's commits and its changed and untracked, not ignored, files are
brought to /workspace. Repeating the same create is harmless and finishes one
that was interrupted.`,
		Example: `  vendetta workspace create fix-login --from .
  vendetta workspace create fix-login --node build1 --provider docker --image debian:12`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runF(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.node, "node", "", "node to create it on")
	f.StringVar(&o.provider, "provider", "", "docker, lxc, native or qemu")
	f.StringVar(&o.image, "image", "", "image of the workspace (docker, lxc, qemu: default debian:12; native: the node's own system), or a disk image's address (qemu)")
	f.StringVar(&o.checksum, "checksum", "", "what a disk image must have: sha256:HEX or sha512:HEX")
	f.StringVar(&o.from, "from", "", "git repository to bring to /workspace")
	f.BoolVar(&o.clean, "clean", false, "with --from: leave uncommitted and untracked files out")
	f.Float64Var(&o.cpus, "cpus", 0, "processors, fractions allowed (default: the provider's)")
	f.StringVar(&o.memory, "memory", "", "memory, e.g. 2G (default: the provider's)")
	f.StringVar(&o.disk, "disk", "", "what it may write, /workspace included, e.g. 10G (default: the provider's)")
	f.Int64Var(&o.pids, "pids", 0, "most processes and threads (default: the provider's)")
	f.StringVar(&o.network, "network", "private", "private, none, or host (native only)")
	f.BoolVar(&o.privileged, "privileged", false, "lxc only: root inside is root of the node; for what you trust as you trust root")
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodeFlag)
	_ = cmd.RegisterFlagCompletionFunc("provider", cobra.FixedCompletions([]string{"docker", "lxc", "native", "qemu"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("network", cobra.FixedCompletions([]string{"private", "none", "host"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var networks = map[string]vendettav1.Network{
	"private": vendettav1.Network_NETWORK_PRIVATE,
	"none":    vendettav1.Network_NETWORK_NONE,
	"host":    vendettav1.Network_NETWORK_HOST,
}

func (o createOptions) spec() (*vendettav1.WorkspaceSpec, error) {
	network, ok := networks[o.network]
	if !ok {
		return nil, api.Errorf(api.InvalidArgument, "network %q: use private, none or host", o.network)
	}
	memory, err := parseSize(o.memory)
	if err != nil {
		return nil, err
	}
	disk, err := parseSize(o.disk)
	if err != nil {
		return nil, err
	}
	if o.cpus < 0 || o.pids < 0 {
		return nil, api.Errorf(api.InvalidArgument, "cpus and pids: negative limits make no sense")
	}
	if o.clean && o.from == "" {
		return nil, api.Errorf(api.InvalidArgument, "clean: it says what --from brings, and --from is missing")
	}
	spec := &vendettav1.WorkspaceSpec{Provider: o.provider, Image: o.image, Network: network, Privileged: o.privileged, Checksum: o.checksum}
	if o.cpus > 0 || memory > 0 || disk > 0 || o.pids > 0 {
		spec.Resources = &vendettav1.Resources{Cpus: o.cpus, MemoryBytes: memory, DiskBytes: disk, Pids: o.pids}
	}
	return spec, nil
}

// parseSize reads 512M or 2G in powers of 1024, as docker run does.
func parseSize(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	bad := api.Errorf(api.InvalidArgument, "size %q: this is none", s).WithNext("write it as 512M or 2G")
	parts := sizePattern.FindStringSubmatch(strings.ToUpper(s))
	if parts == nil {
		return 0, bad
	}
	shift := 0
	if parts[2] != "" {
		shift = 10 * (1 + strings.Index("KMGT", parts[2]))
	}
	n, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || n == 0 || n > 1<<63>>shift {
		return 0, bad
	}
	return n << shift, nil
}

var sizePattern = regexp.MustCompile(`^([0-9]+)(?:([KMGT])(?:I?B)?|B)?$`)

func runWorkspaceCreate(ctx context.Context, a *app, o createOptions) error {
	spec, err := o.spec()
	if err != nil {
		return err
	}
	var archive *source.Archive
	if o.from != "" {
		dir, err := filepath.Abs(o.from)
		if err != nil {
			return api.Errorf(api.InvalidArgument, "from %s: %w", o.from, err)
		}
		if archive, err = source.Pack(ctx, dir, o.clean); err != nil {
			return err
		}
		defer func() { _ = archive.Close() }()
		spec.Source = archive.Source
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	change, err := c.Workspaces.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{
		Name: o.name, Node: o.node, Spec: spec, IdempotencyKey: newID(),
	})
	if err != nil {
		return err
	}
	if change.GetNote() != "" {
		a.note("%s", change.GetNote())
	}
	if _, err := a.waitFor(ctx, c, change.GetOperation()); err != nil {
		return err
	}
	if archive != nil {
		if err := bringSource(ctx, a, c, o, archive); err != nil {
			return err
		}
	}
	return a.made(ctx, c, o.name)
}

// bringSource sends the repository unless an earlier create did already.
func bringSource(ctx context.Context, a *app, c *client.Client, o createOptions, archive *source.Archive) error {
	guest := c.Guest(o.name)
	status, err := guest.Project.ProjectStatus(ctx, &guestv1.ProjectStatusRequest{})
	if err != nil {
		return err
	}
	if status.GetImported() {
		a.note("workspace %s has its repository already; it was left as it is", o.name)
		return nil
	}
	if err := source.Send(ctx, guest, archive); err != nil {
		e := *api.From(err)
		e.Next = "repeat the command to go on; the workspace exists, without the repository"
		return &e
	}
	for _, note := range archive.Notes {
		a.note("%s", note)
	}
	return nil
}

// waitFor waits for an operation and turns its failure into an error. What a
// success has to say is noted. Ctrl-C ends the waiting, not the operation.
func (a *app) waitFor(ctx context.Context, c *client.Client, op *vendettav1.Operation) (*vendettav1.Operation, error) {
	ended, err := c.Wait(ctx, op)
	if err != nil && ctx.Err() != nil {
		return nil, api.Errorf(api.Unavailable, "%s %s: not waited for to the end; it goes on", op.GetVerb(), op.GetWorkspace()).
			WithNext("vendetta workspace status %s", op.GetWorkspace())
	}
	if err == nil && ended.GetNote() != "" {
		a.note("%s", ended.GetNote())
	}
	return ended, err
}

func newWorkspaceList(a *app) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the workspaces", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.Workspaces.ListWorkspaces(cmd.Context(), &vendettav1.ListWorkspacesRequest{Node: node})
			if err != nil {
				return err
			}
			t := table{
				header:  []string{"NAME", "STATE", "NODE", "PROVIDER", "IMAGE", "AGE", "MESSAGE"},
				message: list, empty: "no workspaces yet; make one with: vendetta workspace create NAME",
			}
			for _, w := range list.GetWorkspaces() {
				t.rows = append(t.rows, []string{
					w.GetName(), enumWord(w.GetState(), "WORKSPACE_STATE_"), w.GetNode(), w.GetSpec().GetProvider(),
					dash(w.GetSpec().GetImage()), age(time.Now(), w.GetCreatedAt()), firstLine(w.GetMessage()),
				})
			}
			return a.print(t)
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only those on this node")
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodeFlag)
	return cmd
}

// firstLine leaves out of a message what would not fit into a list, such as the
// lines of a console; the status shows them.
func firstLine(s string) string {
	first, _, _ := strings.Cut(s, "\n")
	return first
}

func newWorkspaceStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status NAME", Short: "Show one workspace", Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			w, err := c.Workspaces.GetWorkspace(cmd.Context(), &vendettav1.GetWorkspaceRequest{Name: args[0]})
			if err != nil {
				return err
			}
			t := workspaceTable(w)
			if a.format == "table" && w.GetState() == vendettav1.WorkspaceState_WORKSPACE_STATE_RUNNING {
				t.rows = append(t.rows, projectRows(cmd.Context(), c.Guest(w.GetName()))...)
			}
			return a.print(t)
		},
	}
}

func workspaceTable(w *vendettav1.Workspace) table {
	rows := [][]string{
		{"name", w.GetName()},
		{"state", enumWord(w.GetState(), "WORKSPACE_STATE_")},
	}
	if w.GetMessage() != "" {
		rows = append(rows, []string{"message", w.GetMessage()})
	}
	if w.GetNext() != "" {
		rows = append(rows, []string{"next", w.GetNext()})
	}
	spec := w.GetSpec()
	rows = append(rows,
		[]string{"node", w.GetNode()},
		[]string{"provider", spec.GetProvider()},
		[]string{"image", dash(spec.GetImage())},
	)
	if spec.GetImageDigest() != "" {
		rows = append(rows, []string{"digest", spec.GetImageDigest()})
	}
	rows = append(rows,
		[]string{"instance", dash(w.GetInstance())},
		[]string{"network", enumWord(spec.GetNetwork(), "NETWORK_")},
		[]string{"created", age(time.Now(), w.GetCreatedAt()) + " ago"},
	)
	rows = append(rows, limitRows(spec.GetResources())...)
	if spec.GetPrivileged() {
		rows = append(rows, []string{"privileged", "its root is the node's root"})
	}
	if s := spec.GetSource(); s != nil {
		text := fmt.Sprintf("%s, %s at %.12s", s.GetPath(), dash(s.GetBranch()), dash(s.GetCommit()))
		if s.GetDirty() {
			text += ", with uncommitted files"
		}
		rows = append(rows, []string{"from", text})
	}
	return table{header: []string{"FIELD", "VALUE"}, rows: rows, message: w, name: w.GetName()}
}

// projectRows says what stands in /workspace; a guest that does not answer is
// part of the status, not an error of it.
func projectRows(ctx context.Context, guest *client.Guest) [][]string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p, err := guest.Project.ProjectStatus(ctx, &guestv1.ProjectStatusRequest{Limit: 5})
	if err != nil {
		return [][]string{{"project", "not known: " + api.From(err).Message}}
	}
	var rows [][]string
	if p.GetGitVersion() == "" {
		rows = append(rows, []string{"git", "the image has no git"})
	} else {
		rows = append(rows, []string{"git", p.GetGitVersion()})
		if p.GetBranch() != "" || p.GetCommit() != "" {
			rows = append(rows, []string{"branch", fmt.Sprintf("%s at %.12s", dash(p.GetBranch()), dash(p.GetCommit()))})
		}
	}
	if p.GetImported() {
		rows = append(rows,
			[]string{"changed files", countAndNames(p.GetChangedFilesTotal(), p.GetChangedFiles())},
			[]string{"new commits", countAndNames(p.GetNewCommitsTotal(), p.GetNewCommits())})
	}
	return rows
}

func countAndNames(total int32, names []string) string {
	if total == 0 {
		return "none"
	}
	text := fmt.Sprintf("%d: %s", total, strings.Join(names, ", "))
	if int(total) > len(names) {
		text += ", ..."
	}
	return text
}

// change runs one of the verbs that a workspace takes and waits for its end.
// result is the name of what was changed.
func (a *app) change(ctx context.Context, result string, call func(*client.Client) (*vendettav1.ChangeResponse, error)) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	change, err := call(c)
	if err != nil {
		return err
	}
	op, err := a.waitFor(ctx, c, change.GetOperation())
	if err != nil {
		return err
	}
	return a.result(result, op)
}

func newWorkspaceUp(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "up NAME", Aliases: []string{"start"}, Short: "Start a stopped or paused workspace again, making its instance anew when it is down",
		Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.UpWorkspace(cmd.Context(), &vendettav1.UpWorkspaceRequest{Name: args[0], IdempotencyKey: newID()})
			})
		},
	}
}

func newWorkspaceStop(a *app) *cobra.Command {
	var grace int32
	cmd := &cobra.Command{
		Use: "stop NAME", Short: "Stop a workspace and keep its instance", Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.StopWorkspace(cmd.Context(), &vendettav1.StopWorkspaceRequest{Name: args[0], GraceSeconds: grace, IdempotencyKey: newID()})
			})
		},
	}
	cmd.Flags().Int32Var(&grace, "grace", 10, "seconds that processes get after SIGTERM")
	return cmd
}

func newWorkspaceDown(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "down NAME", Short: "Destroy a workspace's instance and keep its files", Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.DownWorkspace(cmd.Context(), &vendettav1.DownWorkspaceRequest{Name: args[0], IdempotencyKey: newID()})
			})
		},
	}
}

func newWorkspaceRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"remove"}, Short: "Remove a workspace with all its files",
		Long: `Removes a workspace with its instance and files. It refuses, and names them, when
commits or changes exist only there.`,
		Args: exactArgs(1), ValidArgsFunction: a.completeWorkspaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(c *client.Client) (*vendettav1.ChangeResponse, error) {
				return c.Workspaces.RemoveWorkspace(cmd.Context(), &vendettav1.RemoveWorkspaceRequest{Name: args[0], Force: force, IdempotencyKey: newID()})
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it although work exists only there, or nobody can look")
	return cmd
}

func (a *app) completeWorkspaces(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.workspaceNames(cmd), cobra.ShellCompDirectiveNoFileComp
}

// workspaceNames serves completions, as nodeNames does.
func (a *app) workspaceNames(cmd *cobra.Command) []string {
	c, err := a.connectForCompletion()
	if err != nil {
		return nil
	}
	list, err := c.Workspaces.ListWorkspaces(cmd.Context(), &vendettav1.ListWorkspacesRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, w := range list.GetWorkspaces() {
		names = append(names, w.GetName())
	}
	return names
}
