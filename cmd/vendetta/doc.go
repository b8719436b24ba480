// Command vendetta is the one program of vendetta: the CLI for people, the
// coordination server (`vendetta server`), the node agent (`vendetta nodeagent`)
// and the MCP gateway (`vendetta mcp`).
//
// Flags, environment and output live here, and so does all wiring: each file
// named after a noun holds its commands, wiring.go joins the packages together.
// What a command does belongs into those packages, not here.
package main
