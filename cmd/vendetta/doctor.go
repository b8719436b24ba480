package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// finding is one thing that doctor looked at.
type finding struct {
	what   string
	ok     bool
	detail string
	fix    string
	// optional: something else does the same work here.
	optional bool
}

func newDoctor(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Show what is missing, and the command that fixes it", Args: exactArgs(0),
		Long: `Looks at this machine, the server and every node. It fails when something is missing
that nothing else makes up for; a node with one usable provider is well.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := a.examine(cmd.Context())
			result := &vendettav1.TestNodeResponse{}
			t := table{header: []string{"CHECK", "RESULT", "DETAIL"}, message: result}
			bad := 0
			for _, f := range findings {
				word, detail := "ok", f.detail
				if !f.ok {
					word = "missing"
					if !f.optional {
						bad++
					}
					if f.fix != "" {
						detail += "; fix: " + f.fix
					}
				}
				t.rows = append(t.rows, []string{f.what, word, detail})
				result.Checks = append(result.Checks, &vendettav1.NodeCheck{Name: f.what, Ok: f.ok, Message: f.detail, Fix: f.fix})
			}
			if err := a.print(t); err != nil {
				return err
			}
			if bad > 0 {
				return api.Errorf(api.FailedPrecondition, "doctor: %d of %d checks found something missing", bad, len(findings))
			}
			return nil
		},
	}
}

// examine looks at this machine, then at the server, then at each node.
func (a *app) examine(ctx context.Context) []finding {
	findings := []finding{a.examineStateDir()}
	findings = append(findings, examineProgram("git", "create --from", "apt-get install git"))
	findings = append(findings, a.examineBundle()...)
	c, err := a.connect(ctx)
	if err != nil {
		e := api.From(err)
		return append(findings, finding{what: "server", detail: e.Message, fix: e.Next})
	}
	status, err := c.Server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{Protocol: api.Protocol})
	if err != nil {
		e := api.From(err)
		return append(findings, finding{what: "server", detail: e.Message, fix: e.Next})
	}
	findings = append(findings, finding{what: "server", ok: true, detail: fmt.Sprintf("version %s, pid %d", status.GetVersion(), status.GetPid())})
	list, err := c.Nodes.ListNodes(ctx, &vendettav1.ListNodesRequest{})
	if err != nil {
		e := api.From(err)
		return append(findings, finding{what: "nodes", detail: e.Message, fix: e.Next})
	}
	if len(list.GetNodes()) == 0 {
		return append(findings, finding{what: "nodes", detail: "there is none", fix: "vendetta node add local --local"})
	}
	for _, n := range list.GetNodes() {
		findings = append(findings, examineNode(n)...)
	}
	return findings
}

func examineNode(n *vendettav1.Node) []finding {
	what := "node " + n.GetName()
	if n.GetState() != vendettav1.NodeState_NODE_STATE_READY && n.GetState() != vendettav1.NodeState_NODE_STATE_DRAINING {
		return []finding{{what: what, detail: enumWord(n.GetState(), "NODE_STATE_") + ": " + n.GetMessage(), fix: "vendetta node test " + n.GetName()}}
	}
	findings := []finding{{what: what, ok: true, detail: enumWord(n.GetState(), "NODE_STATE_")}}
	one := usableProviders(n) != dash("")
	for _, p := range n.GetReport().GetProviders() {
		findings = append(findings, finding{
			what: what + " " + p.GetName(), ok: p.GetUsable(), optional: one,
			detail: strings.TrimSpace(p.GetVersion() + " " + p.GetReason()), fix: p.GetFix(),
		})
	}
	return findings
}

func (a *app) examineStateDir() finding {
	f := finding{what: "state folder", ok: true, detail: a.stateDir}
	if err := os.MkdirAll(a.stateDir, 0o700); err != nil {
		return finding{what: f.what, detail: err.Error(), fix: "choose another with --state-dir or VENDETTA_STATE_DIR"}
	}
	probe, err := os.CreateTemp(a.stateDir, ".doctor-*")
	if err != nil {
		return finding{what: f.what, detail: err.Error(), fix: "make it writable, or choose another with --state-dir"}
	}
	_ = probe.Close()
	_ = os.Remove(probe.Name())
	return f
}

func examineProgram(name, purpose, fix string) finding {
	path, err := exec.LookPath(name)
	if err != nil {
		return finding{what: name, detail: "not installed; needed for " + purpose, fix: fix}
	}
	return finding{what: name, ok: true, detail: path}
}

// examineBundle looks for the programs that are put on nodes. One architecture is
// enough to work with; the other is named when it is missing.
func (a *app) examineBundle() []finding {
	dir, err := bundleDir()
	if err != nil {
		return []finding{{what: "node programs", detail: err.Error()}}
	}
	var findings []finding
	for _, arch := range []string{"amd64", "arm64"} {
		f := finding{what: "node programs " + arch, ok: true, detail: filepath.Join(dir, "linux-"+arch)}
		for _, program := range []string{"vendetta", "vendetta-guest"} {
			path := filepath.Join(dir, "linux-"+arch, program)
			if _, err := os.Stat(path); err != nil {
				f.ok = arch != runtime.GOARCH
				f.detail = path + " is missing; only needed for nodes of that architecture"
				f.fix = "make build bin/bundle/linux-" + arch
			}
		}
		findings = append(findings, f)
	}
	return findings
}

// bundleDir is the folder beside this program that holds the programs for nodes.
func bundleDir() (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	if resolved, err := filepath.EvalSymlinks(program); err == nil {
		program = resolved
	}
	dir := filepath.Dir(program)
	// On a node the program itself lies in the bundle.
	if base := filepath.Base(dir); strings.HasPrefix(base, "linux-") {
		return filepath.Dir(dir), nil
	}
	return filepath.Join(dir, "bundle"), nil
}
