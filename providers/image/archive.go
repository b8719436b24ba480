package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// archive is a tar of which the files are read where they lie.
type archive struct {
	file  *os.File
	where map[string]span
}

type span struct{ at, size int64 }

// maxMembers bounds what an archive of an image has: a few for each layer.
const maxMembers = 16 << 10

// openArchive notes where an archive has what. It reads only its headers. The file
// is the archive's from then on.
func openArchive(f *os.File, l limits) (*archive, error) {
	a := &archive{file: f, where: map[string]span{}}
	if err := a.scan(l); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return a, nil
}

func (a *archive) scan(l limits) error {
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > l.archive {
		return refuse("the archive is %d bytes, more than %d", info.Size(), l.archive)
	}
	links := map[string]string{}
	entries := tar.NewReader(a.file)
	for n := 0; ; n++ {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		switch {
		case err != nil && n == 0:
			return refuse("it is not an archive of an image: %v (a packed one must be unpacked first; a disk image's name ends in .qcow2, .img or .raw)", err)
		case err != nil:
			return &truncated{what: "the archive", got: info.Size(), want: -1, cause: err}
		case n > maxMembers:
			return refuse("the archive has more than %d files; the archive of a root file system is not that of an image", maxMembers)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := a.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			if h.Size > info.Size()-at {
				return &truncated{what: "the archive", got: info.Size(), want: at + h.Size}
			}
			a.where[name] = span{at: at, size: h.Size}
		case tar.TypeSymlink: // older docker names a layer twice
			links[name] = path.Join(path.Dir(name), h.Linkname) //nolint:gosec // a key of the map of members; nothing is opened by it
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		}
	}
	for name, target := range links {
		if s, ok := a.where[target]; ok {
			a.where[name] = s
		}
	}
	return nil
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	s, ok := a.where[strings.TrimPrefix(name, "./")]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(a.file, s.at, s.size)), s.size, nil
}

func (a *archive) Close() error { return a.file.Close() }

func sum(raw []byte) string {
	digest := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(digest[:])
}
