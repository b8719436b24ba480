// Package mcp is the gateway: it shows nodes, workspaces, commands and files as
// tools to an AI client that speaks the Model Context Protocol. A tool parses its
// arguments, calls the client and renders the answer as text; it can do nothing
// that the CLI cannot.
//
// Every tool is one entry of the table in tools.go. What all of them owe the
// client stands in call.go: arguments checked against the table, errors that say
// what to do next, no call longer than 45 seconds, progress, and an answer that
// fits a context window. What runs long is a process in a workspace or an
// operation of the server, never a call: a lost client kills nothing.
//
// Handles (workspace names, process ids) travel in arguments. There is no current
// workspace and nothing is kept between two calls but the copying of a
// repository, which calls that repeat the same arguments join.
package mcp
