//go:build linux

package main

import "strings"

// channelOpened is what sshd logs for each session or stream that a connection
// opens, at the level DEBUG1.
const channelOpened = "server_input_channel_open: ctype"

// streams is how many sessions and streams the far node's sshd has opened.
func (b *bed) streams() int { return strings.Count(b.nodes[far].sshd.Log(), channelOpened) }
