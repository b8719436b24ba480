package mcp

import (
	"context"
	"errors"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

const (
	// callMost is the longest a call takes: several clients give up at 60 seconds.
	callMost = 45 * time.Second
	// answerIn is what a call that waits leaves for its answer.
	answerIn = time.Second
	// progressEvery is the least time between two progress messages.
	progressEvery = 10 * time.Second
	// drain lets a notification reach the wire before the answer of its call.
	drain = 5 * time.Millisecond
)

// call is one call of a tool.
type call struct {
	arguments
	tool *tool

	mu     sync.Mutex
	status func() string
}

// say sets what the next progress message tells.
func (c *call) say(status func() string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

func (c *call) saying() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == nil {
		return c.tool.title
	}
	return c.status()
}

// workspace is the guest that the call's `workspace` names.
func (c *call) workspace(g *Gateway) *client.Guest { return g.client.Guest(c.text("workspace")) }

// call runs a tool. Whatever happens in it, the answer is a result that the model
// can read and never an error of the protocol.
func (g *Gateway) call(ctx context.Context, t *tool, r mcp.CallToolRequest) *mcp.CallToolResult {
	ctx, cancel := context.WithTimeout(ctx, callMost)
	defer cancel()
	args, err := t.parse(r.Params.Arguments)
	if err != nil {
		return failed(err)
	}
	c := &call{arguments: args, tool: t}
	stop := g.progress(ctx, c, r)
	answer, err := g.guarded(ctx, t.name, func() (string, error) { return t.run(ctx, g, c) })
	stop()
	if err != nil {
		return failed(err)
	}
	return mcp.NewToolResultText(answer)
}

// guarded turns a panic into an error; the stack is for the log.
func (g *Gateway) guarded(ctx context.Context, name string, run func() (string, error)) (answer string, err error) {
	defer func() {
		if v := recover(); v != nil {
			g.log.ErrorContext(ctx, "tool panicked", "tool", name, "panic", v, "stack", string(debug.Stack()))
			err = api.Errorf(api.Internal, "%s: the gateway has a bug and cannot tell what was done", name).
				WithNext("look at the state first, e.g. with workspace_status or process_list")
		}
	}()
	return run()
}

// progress reports while a call runs, if its client asked for that. The returned
// function ends the reporting and returns when its messages are out.
func (g *Gateway) progress(ctx context.Context, c *call, r mcp.CallToolRequest) (stop func()) {
	if r.Params.Meta == nil || r.Params.Meta.ProgressToken == nil {
		return func() {}
	}
	done := make(chan struct{})
	began := time.Now()
	var owner conc.WaitGroup
	notified := false
	owner.Go(func() {
		tick := time.NewTicker(g.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				notified = true
				seconds := int(time.Since(began).Seconds())
				err := g.server.SendNotificationToClient(ctx, "notifications/progress", map[string]any{
					"progressToken": r.Params.Meta.ProgressToken, "progress": seconds,
					"message": c.saying() + ", " + plural(seconds, "second") + " so far",
				})
				if err != nil {
					g.log.DebugContext(ctx, "progress not sent", "tool", c.tool.name, "error", err)
				}
			case <-done:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		close(done)
		owner.Wait()
		if notified {
			settled := time.NewTimer(drain)
			<-settled.C
		}
	}
}

// waitFor is how long a call that was asked to wait may do so.
func waitFor(ctx context.Context, seconds int64) time.Duration {
	wait := time.Duration(seconds) * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)-answerIn)
	}
	return wait
}

// nextSteps are for errors that bring none of their own.
var nextSteps = map[api.Code]string{
	api.InvalidArgument:    "correct the arguments and call again",
	api.Unauthenticated:    "the user has to give the gateway a valid token",
	api.PermissionDenied:   "this is not allowed; ask the user",
	api.NotFound:           "workspace_list, process_list and file_list show what there is",
	api.AlreadyExists:      "use what is there, or choose another name",
	api.Conflict:           "look at the present state with workspace_status, then decide",
	api.FailedPrecondition: "look at the present state with workspace_status; workspace_up starts a workspace that is stopped",
	api.ResourceExhausted:  "free something up, or ask the user for more",
	api.DeadlineExceeded:   "call again; what was begun goes on",
	api.Unavailable:        "try again in a few seconds; node_list shows which nodes are reachable",
	api.Unimplemented:      "the other side is older than the gateway: the user has to upgrade it",
	api.Internal:           "look at the present state with workspace_status before trying again",
}

// toolSteps are the tools that do what a command of the CLI does, by the
// beginning of the command; its last word is the name.
var toolSteps = []struct{ command, tool string }{
	{"vendetta workspace list", "workspace_list"},
	{"vendetta workspace status ", "workspace_status"},
	{"vendetta workspace up ", "workspace_up"},
	{"vendetta workspace rm ", "workspace_rm"},
	{"vendetta node list", "node_list"},
	{"vendetta node status ", "node_status"},
}

// toolStep turns a next step that is one command of the CLI into the call of the
// tool; anything else stays as it is, for the user.
func toolStep(next string) string {
	for _, s := range toolSteps {
		rest, found := strings.CutPrefix(next, s.command)
		switch {
		case !found:
		case rest == "" && !strings.HasSuffix(s.command, " "):
			return s.tool
		case rest != "" && strings.HasSuffix(s.command, " ") && !strings.ContainsAny(rest, " ,;"):
			return asCall(s.tool, "name", rest)
		}
	}
	return next
}

// failed renders an error: what happened, and what to do.
func failed(err error) *mcp.CallToolResult {
	e := api.From(err)
	next := e.Next
	if next == "" {
		next = nextSteps[e.Code]
	}
	next = toolStep(next)
	if errors.Is(err, context.DeadlineExceeded) && e.Message == context.DeadlineExceeded.Error() {
		e = api.Errorf(api.DeadlineExceeded, "no answer within %d seconds", int(callMost.Seconds()))
	}
	var b strings.Builder
	b.WriteString("error (" + string(e.Code) + "): ")
	b.WriteString(printable([]byte(e.Message), 4000))
	b.WriteString("\nnext: ")
	b.WriteString(printable([]byte(next), 2000))
	return mcp.NewToolResultError(b.String())
}
