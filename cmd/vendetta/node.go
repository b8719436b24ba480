package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func newNode(a *app) *cobra.Command {
	return group("node", "Machines that host workspaces",
		newNodeAdd(a, runNodeAdd), newNodeList(a), newNodeStatus(a), newNodeTest(a), newNodeLogs(a),
		newNodeLabel(a), newNodeDrain(a, true), newNodeDrain(a, false), newNodeSpares(a), newNodeRemove(a))
}

type nodeAddOptions struct {
	name     string
	address  string
	local    bool
	port     int
	jump     []string
	identity string
	hostKeys []string
	labels   map[string]string
}

func newNodeAdd(a *app, runF func(context.Context, *app, nodeAddOptions) error) *cobra.Command {
	var o nodeAddOptions
	cmd := &cobra.Command{
		Use:   "add NAME [USER@]HOST | add NAME --local",
		Short: "Install the node agent on a machine and add it",
		Long: `Adds a machine: connects by SSH with your keys or ssh-agent, shows the host's
key, installs the node agent for that user, and leaves the server's own key so
that later connections need nothing of yours. ~/.ssh/config is honoured.
Repeat it to repair or upgrade a node.`,
		Example: `  vendetta node add build1 dev@192.0.2.7
  vendetta node add inner dev@10.0.0.5 --jump dev@gate.example.com
  vendetta node add local --local`,
		RunE: func(cmd *cobra.Command, args []string) error {
			want := 2
			if o.local {
				want = 1
				if len(args) == 0 {
					args = []string{"local"}
				}
			}
			if err := exactArgs(want)(cmd, args); err != nil {
				return err
			}
			o.name = args[0]
			if !o.local {
				o.address = args[1]
			}
			return runF(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.local, "local", false, "add the machine that the server runs on")
	f.IntVar(&o.port, "port", 0, "SSH port (default from ~/.ssh/config, else 22)")
	f.StringSliceVar(&o.jump, "jump", nil, "jump host [user@]host[:port]; repeat for several, in order")
	f.StringVar(&o.identity, "identity", "", "private key file for the login")
	f.StringSliceVar(&o.hostKeys, "host-key", nil, "accept the host key with this fingerprint (SHA256:...); one for each unknown host")
	f.StringToStringVar(&o.labels, "label", nil, "label the node, key=value")
	return cmd
}

// parseAddress splits [user@]host[:port]; a port may also be given apart.
func parseAddress(s string, port int) (*vendettav1.NodeAddress, error) {
	bad := func(why string) error {
		return api.Errorf(api.InvalidArgument, "node address %q: %s", s, why).WithNext("write it as user@host, with --port for another port than 22")
	}
	user, host, found := strings.Cut(s, "@")
	if !found {
		user, host = "", s
	}
	if found && user == "" {
		return nil, bad("the user before @ is empty")
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, err := strconv.Atoi(p)
		if err != nil {
			return nil, bad("the port is not a number")
		}
		if port != 0 && port != n {
			return nil, bad("it names another port than --port")
		}
		host, port = h, n
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" || strings.HasPrefix(host, "-") || strings.HasPrefix(user, "-") || strings.ContainsAny(host+user, " \t\r\n/@\x00") {
		return nil, bad("this is not a host name")
	}
	if port < 0 || port > 65535 {
		return nil, bad("the port must be between 1 and 65535")
	}
	return &vendettav1.NodeAddress{Host: host, User: user, Port: int32(port)}, nil
}

func runNodeAdd(ctx context.Context, a *app, o nodeAddOptions) error {
	address := &vendettav1.NodeAddress{Local: true}
	login := &vendettav1.Login{}
	if !o.local {
		var err error
		if address, err = parseAddress(o.address, o.port); err != nil {
			return err
		}
		for _, jump := range o.jump {
			if _, err := parseAddress(jump, 0); err != nil {
				return err
			}
		}
		address.Jump = o.jump
		login.AgentSocket = a.getenv("SSH_AUTH_SOCK")
		if o.identity != "" {
			path, err := filepath.Abs(o.identity)
			if err != nil {
				return api.Errorf(api.InvalidArgument, "identity %s: %w", o.identity, err)
			}
			if _, err := os.Stat(path); err != nil {
				return api.Errorf(api.InvalidArgument, "identity %s: %w", o.identity, err).WithNext("name a private key file with --identity")
			}
			address.Identity = path
			login.Identities = []string{path}
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	accepted := slices.Clone(o.hostKeys)
	if !o.local {
		if accepted, err = a.acceptHostKeys(ctx, c.Nodes, address, login, accepted); err != nil {
			return err
		}
		a.note("installing the node agent on %s ...", o.address)
	}
	node, err := c.Nodes.AddNode(ctx, &vendettav1.AddNodeRequest{
		Name: o.name, Address: address, Login: login, AcceptedFingerprints: accepted, Labels: o.labels,
		IdempotencyKey: newID(),
	})
	if err != nil {
		return err
	}
	a.note("node %s is %s; usable here: %s", node.GetName(), enumWord(node.GetState(), "NODE_STATE_"), usableProviders(node))
	return a.result(node.GetName(), node)
}

// prober is the part of the node service that first contact needs.
type prober interface {
	ProbeNode(context.Context, *vendettav1.ProbeNodeRequest) (*vendettav1.ProbeNodeResponse, error)
}

// acceptHostKeys shows the keys of hosts that are not known and asks for each on
// a terminal. Beyond an unknown jump host nothing is visible until its key is
// accepted, so it probes until every host on the way has been seen.
func (a *app) acceptHostKeys(ctx context.Context, nodes prober, address *vendettav1.NodeAddress, login *vendettav1.Login, accepted []string) ([]string, error) {
	for range len(address.GetJump()) + 1 {
		probe, err := nodes.ProbeNode(ctx, &vendettav1.ProbeNodeRequest{Address: address, Login: login, AcceptedFingerprints: accepted})
		if err != nil {
			return nil, err
		}
		asked := false
		for _, key := range probe.GetHostKeys() {
			if key.GetKnown() || slices.Contains(accepted, key.GetFingerprint()) {
				continue
			}
			if err := a.askHostKey(ctx, key); err != nil {
				return nil, err
			}
			accepted = append(accepted, key.GetFingerprint())
			asked = true
		}
		if !asked {
			return accepted, nil
		}
	}
	return accepted, nil
}

func (a *app) askHostKey(ctx context.Context, key *vendettav1.HostKey) error {
	_, _ = fmt.Fprintf(a.err, "the key of host %s is not known yet:\n  %s %s\n",
		printable(key.GetHost()), printable(key.GetType()), printable(key.GetFingerprint()))
	refused := api.Errorf(api.FailedPrecondition, "host key of %s was not accepted", key.GetHost()).
		WithNext("compare it with the machine's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub) and repeat with --host-key %s", key.GetFingerprint())
	if _, ok := terminal(a.in); !ok {
		return refused
	}
	_, _ = fmt.Fprint(a.err, "accept it? (yes/no) ")
	line, err := a.readLine(ctx)
	if err != nil {
		return err
	}
	if strings.TrimSpace(strings.ToLower(line)) != "yes" {
		return refused
	}
	return nil
}

// readLine reads what a person answers, until ctx ends: a terminal's Read knows
// no deadline, so a Read that is left behind ends with this program.
func (a *app) readLine(ctx context.Context) (string, error) {
	type answer struct {
		line string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(a.in).ReadString('\n')
		answered <- answer{line, err}
	}()
	select {
	case got := <-answered:
		if got.err != nil && !errors.Is(got.err, io.EOF) {
			return "", api.Errorf(api.Internal, "read the answer: %w", got.err)
		}
		return got.line, nil
	case <-ctx.Done():
		_, _ = fmt.Fprintln(a.err)
		return "", api.Errorf(api.Unavailable, "interrupted before an answer was given")
	}
}

func usableProviders(node *vendettav1.Node) string {
	var names []string
	for _, p := range node.GetReport().GetProviders() {
		if p.GetUsable() {
			names = append(names, p.GetName())
		}
	}
	return dash(strings.Join(names, ", "))
}

func newNodeList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the nodes", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.Nodes.ListNodes(cmd.Context(), &vendettav1.ListNodesRequest{})
			if err != nil {
				return err
			}
			t := table{
				header:  []string{"NAME", "STATE", "ADDRESS", "PROVIDERS", "CPUS", "MEMORY FREE", "WORKSPACES", "HEARTBEAT"},
				message: list, empty: "no nodes yet; add this machine with: vendetta node add local --local",
			}
			for _, n := range list.GetNodes() {
				capacity := n.GetReport().GetCapacity()
				t.rows = append(t.rows, []string{
					n.GetName(), enumWord(n.GetState(), "NODE_STATE_"), addressText(n.GetAddress()), usableProviders(n),
					strconv.Itoa(int(capacity.GetCpus())), size(capacity.GetMemoryFreeBytes()),
					strconv.Itoa(int(n.GetWorkspaces())), age(time.Now(), n.GetLastHeartbeat()),
				})
			}
			return a.print(t)
		},
	}
}

func addressText(address *vendettav1.NodeAddress) string {
	if address.GetLocal() {
		return "this machine"
	}
	s := address.GetHost()
	if address.GetUser() != "" {
		s = address.GetUser() + "@" + s
	}
	if address.GetPort() != 0 {
		s += ":" + strconv.Itoa(int(address.GetPort()))
	}
	return s
}

func newNodeStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status NAME", Short: "Show one node: its machine, its providers, and why others are not usable",
		Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			n, err := c.Nodes.GetNode(cmd.Context(), &vendettav1.GetNodeRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.print(nodeTable(n))
		},
	}
}

func nodeTable(n *vendettav1.Node) table {
	r, capacity := n.GetReport(), n.GetReport().GetCapacity()
	rows := [][]string{
		{"name", n.GetName()},
		{"state", enumWord(n.GetState(), "NODE_STATE_")},
	}
	if n.GetMessage() != "" {
		rows = append(rows, []string{"message", n.GetMessage()})
	}
	rows = append(rows,
		[]string{"address", addressText(n.GetAddress())},
		[]string{"machine", fmt.Sprintf("%s, %s/%s, %s", r.GetHostname(), r.GetOs(), r.GetArch(), r.GetKernel())},
		[]string{"agent", fmt.Sprintf("version %s, protocol %d", dash(r.GetAgentVersion()), r.GetProtocol())},
		[]string{"processors", fmt.Sprintf("%d, load %.2f", capacity.GetCpus(), capacity.GetLoad1())},
		[]string{"memory", fmt.Sprintf("%s free of %s", size(capacity.GetMemoryFreeBytes()), size(capacity.GetMemoryBytes()))},
		[]string{"disk", fmt.Sprintf("%s free of %s", size(capacity.GetDiskFreeBytes()), size(capacity.GetDiskBytes()))},
		[]string{"workspaces", strconv.Itoa(int(n.GetWorkspaces()))},
		[]string{"heartbeat", age(time.Now(), n.GetLastHeartbeat())},
	)
	rows = append(rows, spareRows(n.GetSpares())...)
	for _, key := range slices.Sorted(maps.Keys(n.GetLabels())) {
		rows = append(rows, []string{"label", key + "=" + n.GetLabels()[key]})
	}
	for _, p := range r.GetProviders() {
		text := "usable, version " + dash(p.GetVersion())
		if !p.GetUsable() {
			text = "not usable"
		}
		if p.GetReason() != "" {
			text += ": " + p.GetReason()
		}
		rows = append(rows, []string{"provider " + p.GetName(), text})
		if p.GetFix() != "" {
			rows = append(rows, []string{"", "fix: " + p.GetFix()})
		}
		if p.GetUsable() && len(p.GetCapabilities()) > 0 {
			rows = append(rows, []string{"", "can: " + strings.Join(p.GetCapabilities(), ", ")})
		}
	}
	rows = append(rows, orphanRows(time.Now(), r.GetOrphans())...)
	return table{header: []string{"FIELD", "VALUE"}, rows: rows, message: n, name: n.GetName()}
}

// orphanRows says which instances no workspace knows, and what becomes of them.
func orphanRows(now time.Time, orphans []*vendettav1.Orphan) [][]string {
	var rows [][]string
	for _, o := range orphans {
		rows = append(rows, []string{"orphan", fmt.Sprintf("%s of %s belongs to no workspace; found %s ago, removed in %s", o.GetInstance(), o.GetProvider(),
			age(now, o.GetFoundAt()), age(o.GetRemoveAt().AsTime(), timestamppb.New(now)))})
	}
	if len(rows) > 0 {
		rows = append(rows, []string{"", "it goes by itself; take out before with the provider's own tools what you want to keep"})
	}
	return rows
}

func newNodeTest(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "test NAME", Short: "Check the way to a node, step by step", Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			result, err := c.Nodes.TestNode(cmd.Context(), &vendettav1.TestNodeRequest{Name: args[0]})
			if err != nil {
				return err
			}
			t := table{header: []string{"CHECK", "RESULT", "TIME", "DETAIL"}, message: result}
			// One usable provider is enough; a missing other one is said and no failure.
			provided := slices.ContainsFunc(result.GetChecks(), func(c *vendettav1.NodeCheck) bool {
				return isProviderCheck(c) && c.GetOk()
			})
			failed := 0
			for _, check := range result.GetChecks() {
				word, detail := "ok", check.GetMessage()
				if !check.GetOk() {
					word = "missing"
					if !provided || !isProviderCheck(check) {
						word = "failed"
						failed++
					}
					if check.GetFix() != "" {
						detail += "; fix: " + check.GetFix()
					}
				}
				t.rows = append(t.rows, []string{check.GetName(), word, fmt.Sprintf("%.1f ms", check.GetMillis()), detail})
			}
			if err := a.print(t); err != nil {
				return err
			}
			if failed > 0 {
				return api.Errorf(api.FailedPrecondition, "node %s: %d check(s) failed", args[0], failed)
			}
			return nil
		},
	}
}

func isProviderCheck(c *vendettav1.NodeCheck) bool {
	return strings.HasPrefix(c.GetName(), "provider ")
}

func newNodeLogs(a *app) *cobra.Command {
	var tail int32
	var follow bool
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show the log of a node's agent", Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Nodes.NodeLogs(cmd.Context(), &vendettav1.NodeLogsRequest{Name: args[0], Tail: tail, Follow: follow})
			if err != nil {
				return err
			}
			for stream.Receive() {
				if _, err := a.out.Write(stream.Msg().GetData()); err != nil {
					return err
				}
			}
			return stream.Err()
		},
	}
	cmd.Flags().Int32Var(&tail, "tail", 100, "number of last lines to begin with")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as lines are written")
	return cmd
}

func newNodeLabel(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "label NAME KEY=VALUE|KEY- ...", Short: "Set labels on a node, or remove them with a trailing -",
		Args: minArgs(2), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &vendettav1.LabelNodeRequest{Name: args[0], Set: map[string]string{}}
			for _, arg := range args[1:] {
				key, value, found := strings.Cut(arg, "=")
				switch {
				case found && key != "":
					req.Set[key] = value
				case !found && len(arg) > 1 && strings.HasSuffix(arg, "-"):
					req.Remove = append(req.Remove, strings.TrimSuffix(arg, "-"))
				default:
					return usageError(cmd, "%q is neither key=value nor key-", arg)
				}
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			n, err := c.Nodes.LabelNode(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.result(n.GetName(), n)
		},
	}
}

func newNodeDrain(a *app, drain bool) *cobra.Command {
	use, short := "drain NAME", "Place no new workspaces on a node"
	if !drain {
		use, short = "undrain NAME", "Place workspaces on a node again"
	}
	return &cobra.Command{
		Use: use, Short: short, Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			n, err := c.Nodes.DrainNode(cmd.Context(), &vendettav1.DrainNodeRequest{Name: args[0], Drain: drain})
			if err != nil {
				return err
			}
			return a.result(n.GetName(), n)
		},
	}
}

func newNodeRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"remove"}, Short: "Remove a node, and the agent and key from its machine",
		Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := c.Nodes.RemoveNode(cmd.Context(), &vendettav1.RemoveNodeRequest{Name: args[0], Force: force})
			if err != nil {
				return err
			}
			if removed.GetMessage() != "" {
				a.note("%s", removed.GetMessage())
			}
			return a.result(args[0], removed)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it although it cannot be reached; agent and key stay on the machine")
	return cmd
}

func (a *app) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.nodeNames(cmd), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeNodeFlag(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.nodeNames(cmd), cobra.ShellCompDirectiveNoFileComp
}

// nodeNames serves completions, which never start a server and never complain.
func (a *app) nodeNames(cmd *cobra.Command) []string {
	c, err := a.connectForCompletion()
	if err != nil {
		return nil
	}
	list, err := c.Nodes.ListNodes(cmd.Context(), &vendettav1.ListNodesRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, n := range list.GetNodes() {
		names = append(names, n.GetName())
	}
	return names
}
