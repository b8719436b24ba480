// Package tree copies and removes trees of files that a workspace made. It
// follows no link, leaves the tree for nothing, and holds a bounded number of
// descriptors, whatever the workspace put there.
package tree
