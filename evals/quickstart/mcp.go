package main

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"
)

// driveByMCP starts the gateway as an MCP client does and calls tools, printing
// each call with its answer.
func (q *quickstart) driveByMCP(ctx context.Context) (err error) {
	q.say("\n$ vendetta mcp     # as an MCP client would, over stdio")
	c, err := client.NewStdioMCPClient(q.program, nil, "mcp")
	if err != nil {
		return err
	}
	defer func() {
		if cerr := c.Close(); err == nil && cerr != nil {
			err = cerr
		}
	}()
	hello := mcp.InitializeRequest{}
	hello.Params.ProtocolVersion = mcp.LATEST_PROTOCOL_VERSION
	hello.Params.ClientInfo = mcp.Implementation{Name: "quickstart", Version: "1"}
	if _, err := c.Initialize(ctx, hello); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	tools, err := c.ListTools(ctx, mcp.ListToolsRequest{})
	if err != nil {
		return fmt.Errorf("list tools: %w", err)
	}
	names := make([]string, len(tools.Tools))
	for i, t := range tools.Tools {
		names[i] = t.Name
	}
	q.say("-> tools/list\n<- %s", strings.Join(names, " "))

	w := q.workspace
	if _, err := q.call(ctx, c, "exec", map[string]any{"workspace": w, "argv": []string{"git", "log", "-1", "--oneline"}}); err != nil {
		return err
	}
	if _, err := q.call(ctx, c, "file_write", map[string]any{"workspace": w, "path": demoFile, "content": "written through MCP\n"}); err != nil {
		return err
	}
	read, err := q.call(ctx, c, "file_read", map[string]any{"workspace": w, "path": demoFile})
	if err != nil {
		return err
	}
	if !strings.Contains(read, "written through MCP") {
		return fmt.Errorf("file_read answered something else than what was written: %q", read)
	}
	started, err := q.call(ctx, c, "exec", map[string]any{
		"workspace": w, "script": "for i in 1 2 3; do echo step $i; sleep 1; done; echo done", "wait_seconds": 1,
	})
	if err != nil {
		return err
	}
	id := regexp.MustCompile(`"?process(?:_id)?"?[:= ]+"?([a-z0-9-]{6,40})`).FindStringSubmatch(started)
	if id == nil {
		return fmt.Errorf("exec named no process to wait for: %q", started)
	}
	finished, err := q.call(ctx, c, "process_output", map[string]any{"workspace": w, "process_id": id[1], "wait_seconds": 30})
	if err != nil {
		return err
	}
	if !strings.Contains(finished, "done") {
		return fmt.Errorf("the long command did not end as it should: %q", finished)
	}
	return nil
}

// call calls one tool and prints the exchange; a tool's failure is an error.
func (q *quickstart) call(ctx context.Context, c *client.Client, tool string, args map[string]any) (string, error) {
	shown, err := json.Marshal(args)
	if err != nil {
		return "", err
	}
	q.say("-> %s %s", tool, shown)
	req := mcp.CallToolRequest{}
	req.Params.Name = tool
	req.Params.Arguments = args
	result, err := c.CallTool(ctx, req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", tool, err)
	}
	var text strings.Builder
	for _, content := range result.Content {
		if t, ok := content.(mcp.TextContent); ok {
			text.WriteString(t.Text)
		}
	}
	for _, line := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		q.say("<- %s", line)
	}
	if result.IsError {
		return "", fmt.Errorf("%s answered an error", tool)
	}
	return text.String(), nil
}
