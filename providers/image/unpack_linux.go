package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteout  = ".wh."
	opaque    = ".wh..wh..opq"
	auxiliary = ".wh..wh." // what aufs kept for itself

	xattrPrefix = "SCHILY.xattr."
	capability  = "security.capability"
	maxXattr    = 64 << 10
	maxID       = 1<<32 - 2
)

// budget counts what the layers of one image took so far.
type budget struct {
	limits  limits
	entries int
	files   int64
	names   int64
}

func (b *budget) entry(h *tar.Header) error {
	if b.entries++; b.entries > b.limits.entries {
		return refuse("the image has more than %d entries", b.limits.entries)
	}
	if b.names += int64(len(h.Name) + len(h.Linkname)); b.names > b.limits.names {
		return refuse("the image has more than %d bytes of names", b.limits.names)
	}
	switch {
	case h.Size < 0 || h.Size > b.limits.file:
		return refuse("the image has a file of %d bytes, more than %d: %.200q", h.Size, b.limits.file, h.Name)
	case h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID:
		return refuse("%.200q belongs to an id that does not exist: %d:%d", h.Name, h.Uid, h.Gid)
	case h.Typeflag == tar.TypeSymlink && (len(h.Linkname) > b.limits.target || h.Linkname == "" || strings.IndexByte(h.Linkname, 0) >= 0):
		return refuse("%.200q is a symbolic link of %d bytes", h.Name, len(h.Linkname))
	}
	if h.Typeflag == tar.TypeReg {
		if b.files += h.Size; b.files > b.limits.total {
			return refuse("the image unpacks to more than %d bytes", b.limits.total)
		}
	}
	return nil
}

// unpack lays one layer over a tree. packed is held to digest and size (none when
// the digest is empty), what comes out of it to diff.
func (t *tree) unpack(ctx context.Context, b *budget, packed io.Reader, digest string, size int64, diff string) error {
	var outer *checked
	what := "a layer"
	if digest != "" {
		what = "what layer " + digest + " unpacks to"
		outer = check(packed, "layer "+digest, digest, size)
		packed = outer
	}
	in := &measured{r: packed}
	plain, done, err := decompress(in)
	if err != nil {
		return damaged(ctx, err, outer)
	}
	defer done()
	l := &layer{
		tree:   t,
		budget: b,
		fresh:  map[uint64]struct{}{},
		most:   func() int64 { return min(max(b.limits.free, in.n*b.limits.ratio), 2*b.limits.total) },
		word:   fmt.Sprintf("a layer unpacks to more than %d times its size", b.limits.ratio),
	}
	out := &measured{r: plain, max: l.most, word: l.word}
	inner := check(&cancelled{ctx: ctx, r: out}, what, diff, -1)
	if err := l.read(tar.NewReader(inner)); err != nil {
		return damaged(ctx, err, outer)
	}
	if err := inner.finish(); err != nil {
		return damaged(ctx, err, outer)
	}
	if outer != nil {
		return outer.finish()
	}
	return nil
}

// damaged prefers what the digest says of a layer to what its damage looks like:
// other bytes than those asked for are the cause of whatever comes of them.
func damaged(ctx context.Context, err error, outer *checked) error {
	if ctx.Err() != nil {
		return err
	}
	if outer != nil {
		var packed *mismatch
		if errors.As(err, &packed) && packed.what == outer.what {
			return err
		}
		if worse := outer.finish(); worse != nil {
			return worse
		}
	}
	var (
		no    *refused
		wrong *mismatch
		short *truncated
		path  *fs.PathError
		errno unix.Errno
	)
	if errors.As(err, &no) || errors.As(err, &wrong) || errors.As(err, &short) || errors.As(err, &path) || errors.As(err, &errno) {
		return err
	}
	// The rest comes from those who read the archive.
	return refuse("a layer is damaged: %v", err)
}

// layer is one layer on its way into a tree.
type layer struct {
	tree   *tree
	budget *budget
	// fresh are the inodes that this layer made or named: whiteouts are about the
	// layers below.
	fresh map[uint64]struct{}
	dirs  []dirTime
	// written are the bytes of files, holes included, which take nothing in the
	// layer; most is what the layer's size allows, word what is said past that.
	written int64
	most    func() int64
	word    string
}

type dirTime struct {
	name string
	at   time.Time
}

func (l *layer) read(entries *tar.Reader) error {
	for {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := l.entry(h, entries); err != nil {
			return err
		}
	}
	for _, d := range l.dirs {
		if err := l.tree.touch(d.name, d.at); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeGNUSparse, tar.TypeCont:
		h.Typeflag = tar.TypeReg
	}
	if err := l.budget.entry(h); err != nil {
		return err
	}
	name, err := l.budget.limits.clean(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag == tar.TypeDir {
			_, err = l.tree.furnish(l.tree.top, ".", h, unix.O_RDONLY|unix.O_DIRECTORY)
		}
		return err
	}
	parent, base := path.Split(name)
	dir, err := l.tree.folder(path.Clean(parent))
	if err != nil {
		return notFolder(err, h.Name)
	}
	defer func() { _ = unix.Close(dir) }()
	if strings.HasPrefix(base, whiteout) {
		return l.whiteout(dir, base, h.Name)
	}
	inode, err := l.tree.put(dir, base, h, &measured{r: content, n: l.written, max: l.most, word: l.word})
	if h.Typeflag == tar.TypeReg {
		l.written += h.Size
	}
	if err != nil {
		return notFolder(err, h.Name)
	}
	if inode != 0 {
		l.fresh[inode] = struct{}{}
	}
	if h.Typeflag == tar.TypeDir {
		l.dirs = append(l.dirs, dirTime{name: name, at: h.ModTime})
	}
	return nil
}

// whiteout takes away what the layers below have.
func (l *layer) whiteout(dir int, base, name string) error {
	switch hidden := strings.TrimPrefix(base, whiteout); {
	case base == opaque:
		return empty(dir, ".", l.fresh)
	case strings.HasPrefix(base, auxiliary):
		return nil
	case hidden == "" || hidden == "." || hidden == "..":
		return refuse("the image has a whiteout of nothing: %.200q", name)
	default:
		return hide(dir, hidden, l.fresh)
	}
}

// notFolder words that an entry lies where the image has no folder.
func notFolder(err error, name string) error {
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return refuse("%.200q lies in something that is not a folder", name)
	}
	return err
}

// attributes are the extended attributes that are kept: file capabilities and the
// user's own, but for those that an overlay file system would take as its orders.
func attributes(h *tar.Header) map[string]string {
	var kept map[string]string
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || len(value) > maxXattr || len(name) > longestBase {
			continue
		}
		if name != capability && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			continue
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[name] = value
	}
	return kept
}
