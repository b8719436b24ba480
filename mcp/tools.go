package mcp

import "slices"

// Toolsets.
const (
	setNodes      = "nodes"
	setWorkspaces = "workspaces"
	setProcesses  = "processes"
	setFiles      = "files"
)

// waitMost is the longest wait that an argument may ask for, in seconds.
const waitMost = 45

// tools is the table of everything the gateway can offer.
func tools() []*tool {
	return slices.Concat(nodeTools(), workspaceTools(), processTools(), fileTools())
}

// Parameters that several tools have.
var (
	paramWorkspace = param{name: "workspace", kind: text, required: true, description: "Name of the workspace."}
	paramProcess   = param{name: "process_id", kind: text, required: true, description: "Id of the process, as exec returned it."}
	paramPath      = param{name: "path", kind: text, required: true, description: "Relative to /workspace, or absolute."}
)

func waitSeconds(otherwise string) param {
	return param{name: "wait_seconds", kind: integer, most: waitMost, description: "Wait at most so long for the end of the command; " + otherwise + " unless given, 45 at most."}
}
