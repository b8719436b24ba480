// Package network makes the links, bridges and firewall rules by which instances
// reach out, over rtnetlink and iptables, and tells which name servers they reach.
//
// The kernel's own state is the register: what is there is found by name prefix
// and address, so that neither a crash nor a reboot can make it wrong.
package network
