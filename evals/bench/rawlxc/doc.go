// Command rawlxc is what LXC costs without vendetta: one container at a time by
// go-lxc alone, in the configuration that vendetta gives its own. It is built
// with the tag lxc, where liblxc's headers are, and serves the bench: each line
// "create" on standard input makes a container and runs a first command in it,
// each line "remove" ends it, and each is answered by a line.
package main
