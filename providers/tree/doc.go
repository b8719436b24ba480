// Package tree copies and removes trees of files that a workspace made. It
// follows no link, leaves the tree for nothing, and holds a bounded number of
// descriptors, whatever the workspace put there.
//
// The folder that holds a tree, and every folder above it, is the agent's own;
// nothing else that the paths name may be in a workspace's hands. Nothing of
// instances or snapshots may enter here.
package tree
