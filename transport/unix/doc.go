// Package unix reaches a node agent on the server's own machine through its
// socket, and joins a socket to a program's stdin and stdout, which is how a
// stream crosses an sshd that forbids forwarding.
//
// It knows of sockets alone: where they lie is the caller's business.
package unix
