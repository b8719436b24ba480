// Package image turns an OCI image into a root file system, once for a machine:
// it fetches what a reference names, or takes a layout or an archive, checks
// every byte against its digest, and unpacks the layers into a store that is
// addressed by content. Providers lay their instances over what it unpacked and
// never write to it. Disk images, which a user names by their address, are kept
// beside.
//
// What an image says is untrusted: entries, sizes and ratios are bounded, and
// nothing is written outside of the target. Docker keeps its own store; nothing
// of instances, workspaces or mounts into them may enter here, but for the
// overlay that a root agent lays over a base with shifted ids.
package image
