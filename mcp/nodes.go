package mcp

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func nodeTools() []*tool {
	return []*tool{
		{
			name: "node_list", title: "List nodes", set: setNodes, readOnly: true, idempotent: true,
			description: "List the machines that can host workspaces: state, providers, free memory, labels.",
			run:         runNodeList,
		},
		{
			name: "node_status", title: "Show a node", set: setNodes, readOnly: true, idempotent: true,
			description: "Show one machine: capacity, why a provider is not usable and what fixes it, its workspaces.",
			params:      []param{{name: "name", kind: text, required: true, description: "Name of the node."}},
			run:         runNodeStatus,
		},
	}
}

func runNodeList(ctx context.Context, g *Gateway, _ *call) (string, error) {
	r, err := g.client.Nodes.ListNodes(ctx, &vendettav1.ListNodesRequest{})
	if err != nil {
		return "", err
	}
	var l lines
	if len(r.GetNodes()) == 0 {
		l.add("no nodes yet; the user adds one with: vendetta node add NAME USER@HOST, or vendetta node add --local NAME")
	}
	for _, n := range r.GetNodes() {
		l.add("%s: %s, providers %s, %s of %s memory free, %s%s", n.GetName(), nodeState(n), usable(n),
			bytesText(n.GetReport().GetCapacity().GetMemoryFreeBytes()), bytesText(n.GetReport().GetCapacity().GetMemoryBytes()),
			plural(int(n.GetWorkspaces()), "workspace"), labels(n))
	}
	return l.text("ask for one with node_status"), nil
}

func nodeState(n *vendettav1.Node) string {
	s := state(n.GetState(), "NODE_STATE_")
	if n.GetMessage() != "" {
		s += " (" + n.GetMessage() + ")"
	}
	return s
}

func usable(n *vendettav1.Node) string {
	var names []string
	for _, p := range n.GetReport().GetProviders() {
		if p.GetUsable() {
			names = append(names, p.GetName())
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}

func labels(n *vendettav1.Node) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(n.GetLabels())) {
		fmt.Fprintf(&b, ", %s=%s", name, n.GetLabels()[name])
	}
	return b.String()
}

func runNodeStatus(ctx context.Context, g *Gateway, c *call) (string, error) {
	n, err := g.client.Nodes.GetNode(ctx, &vendettav1.GetNodeRequest{Name: c.text("name")})
	if err != nil {
		return "", hint(err, "node_list shows the names")
	}
	r, capacity := n.GetReport(), n.GetReport().GetCapacity()
	var l lines
	l.add("node: %s", n.GetName())
	l.add("state: %s", nodeState(n))
	l.add("system: %s %s, kernel %s, host name %s", r.GetOs(), r.GetArch(), r.GetKernel(), r.GetHostname())
	l.add("capacity: %s, load %.2f, memory %s free of %s, disk %s free of %s", plural(int(capacity.GetCpus()), "processor"), capacity.GetLoad1(),
		bytesText(capacity.GetMemoryFreeBytes()), bytesText(capacity.GetMemoryBytes()), bytesText(capacity.GetDiskFreeBytes()), bytesText(capacity.GetDiskBytes()))
	for _, p := range r.GetProviders() {
		line := "provider " + p.GetName() + ": usable, version " + p.GetVersion()
		if !p.GetUsable() {
			line = "provider " + p.GetName() + ": not usable"
		}
		if p.GetReason() != "" {
			line += ": " + p.GetReason()
		}
		if p.GetFix() != "" {
			line += "; the user can fix it with: " + p.GetFix()
		}
		l.add("%s", line)
	}
	for _, spare := range n.GetSpares() {
		line := fmt.Sprintf("spares of %s: %d of %d ready", strings.TrimSpace(spare.GetProvider()+" "+spare.GetImage()), spare.GetReady(), spare.GetCount())
		if spare.GetMessage() != "" {
			line += "; " + spare.GetMessage()
		}
		l.add("%s; a workspace_create that asks for the same takes one at once", line)
	}
	l.add("workspaces: %d%s", n.GetWorkspaces(), labels(n))
	l.add("last heartbeat: %s, agent %s", stamp(n.GetLastHeartbeat()), r.GetAgentVersion())
	return l.text("that is all that fits"), nil
}
