package image

import (
	"path"
	"strings"
)

// limits bound what an image may make of this machine's disk and memory.
type limits struct {
	layers   int
	manifest int64 // bytes of a manifest or an index
	config   int64 // bytes of a config
	archive  int64 // bytes of an archive or a disk image
	entries  int   // of all layers
	total    int64 // bytes of all files
	file     int64 // bytes of one file
	names    int64 // bytes of all names
	path     int   // bytes of a name
	depth    int   // folders above a file
	target   int   // bytes of a symbolic link
	// ratio of unpacked to packed bytes, from free bytes on.
	ratio, free int64
	// virtual is the size that a disk image may show.
	virtual int64
}

var defaultLimits = limits{
	layers:   512,
	manifest: 4 << 20,
	config:   8 << 20,
	archive:  128 << 30,
	entries:  2_000_000,
	total:    128 << 30,
	file:     64 << 30,
	names:    256 << 20,
	path:     3072, // a path on this machine has the store before it, and 4095 bytes at most
	depth:    255,
	target:   4095,
	ratio:    200,
	free:     1 << 30,
	virtual:  2 << 40,
}

const longestBase = 255 // NAME_MAX

// clean turns an entry's name into a path inside the tree, "." for the tree.
func (l limits) clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", refuse("the image has a name with a zero byte: %.200q", name)
	}
	if len(name) > l.path+1 {
		return "", refuse("the image has a name of %d bytes, more than %d: %.100q", len(name), l.path, name)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", refuse("the image has an entry outside of its root: %.200q", name)
	}
	return clean, l.name(clean)
}

// name holds a clean path to the limits.
func (l limits) name(clean string) error {
	if len(clean) > l.path {
		return refuse("the image has a path of %d bytes, more than %d: %.100q", len(clean), l.path, clean)
	}
	if strings.Count(clean, "/") >= l.depth {
		return refuse("the image has folders %d deep, more than %d: %.100q", strings.Count(clean, "/")+1, l.depth, clean)
	}
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > longestBase {
			return refuse("the image has a name of %d bytes, more than %d: %.100q", len(part), longestBase, part)
		}
	}
	return nil
}
