// Package link is the meeting point of a node agent and a guest in a container
// or a sandbox: a folder with a listening socket, mounted read-only into the
// instance, which the guest dials. The folder is mounted and not the socket,
// because a restarted agent makes a new socket in it, and the guest finds that
// one under the old name.
//
// Nothing about guests, instances or protocols may enter here: the product is a
// stream on which no byte was exchanged yet.
package link
