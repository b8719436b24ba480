// Package e2e runs vendetta whole, as its users do: the scripts below testdata
// read like a session at a terminal, and the tests beside them build networks of
// namespaces with sshd, Docker and MCP clients and then break them.
package e2e
