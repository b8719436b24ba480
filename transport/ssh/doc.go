// Package ssh reaches a node agent through the OpenSSH server of its machine.
//
// A Transport keeps one connection, by way of any jump hosts, and opens a stream
// for each Dial: by direct-streamlocal@openssh.com to the agent's socket, or,
// where the sshd forbids that, over the stdin and stdout of a session that runs
// the agent's program. The same connection runs the few commands that put the
// agent onto the machine.
//
// Of ~/.ssh/config it honours Host, Match (host, originalhost, user, localuser,
// all), Include, HostName, User, Port, IdentityFile, IdentitiesOnly, ProxyJump
// and HostKeyAlias. Criteria of Match that would run a program or need what only
// OpenSSH knows (exec, final, canonical, tagged, localnetwork) never match here,
// and errors name the lines concerned. ProxyCommand is refused: a shell would
// have to run it.
//
// No host key is ever accepted unseen: it is in a known_hosts file or its
// fingerprint was accepted by the caller, else the connection fails.
package ssh
