// Package liblxc does to one container what a request asks for, with liblxc. Only
// the program vendetta-lxc may import it: liblxc forks, which a server with many
// threads must not do.
//
// It is built with the tag lxc where liblxc's headers are, and without says so.
package liblxc
