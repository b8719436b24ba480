//go:build linux

package guest

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// exportWriter sends a tar in messages of up to chunkMost.
type exportWriter struct {
	stream *connect.ServerStream[guestv1.ExportResponse]
	buf    []byte
}

func (w *exportWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, rest[:n]...)
		rest = rest[n:]
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

func (w *exportWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.stream.Send(&guestv1.ExportResponse{Data: w.buf})
	w.buf = w.buf[:0]
	return err
}

// Export sends a tar of a file or folder. Files are what they are while they are
// read: one that shrinks meanwhile is an error, since the archive cannot say so.
func (s fileService) Export(ctx context.Context, req *guestv1.ExportRequest, stream *connect.ServerStream[guestv1.ExportResponse]) error {
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	info, err := p.Lstat(p.name)
	if err != nil {
		return p.fail("export", err)
	}
	base := filepath.Base(p.name)
	if p.name == "." {
		base = filepath.Base(s.g.opts.ProjectDir)
	}
	if base == "/" {
		return api.Errorf(api.InvalidArgument, "export /: choose a folder below it")
	}
	buf := chunkBuffers.Get().(*[]byte)
	defer chunkBuffers.Put(buf)
	out := &exportWriter{stream: stream, buf: (*buf)[:0]}
	archive := tar.NewWriter(out)
	if err := p.pack(archive, base, "", info); err != nil {
		return p.fail("export", err)
	}
	if info.IsDir() {
		err = p.walk(ctx, "export", func(below string, entry fs.DirEntry) (bool, error) {
			info, err := entry.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			return true, p.pack(archive, path.Join(base, below), below, info)
		})
		if err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return out.flush()
}

// pack writes one entry. Sockets, FIFOs and devices are left out: no archive of
// a project is the better for them.
func (p place) pack(archive *tar.Writer, name, below string, info os.FileInfo) error {
	at := p
	if below != "" {
		at.name = path.Join(p.name, below)
	}
	switch {
	case info.Mode().IsRegular():
		return at.packFile(archive, name)
	case info.IsDir():
		return archive.WriteHeader(header(name+"/", tar.TypeDir, info))
	case info.Mode()&os.ModeSymlink != 0:
		target, err := at.Readlink(at.name)
		if err != nil {
			return err
		}
		h := header(name, tar.TypeSymlink, info)
		h.Linkname = target
		return archive.WriteHeader(h)
	}
	return nil
}

func (p place) packFile(archive *tar.Writer, name string) error {
	file, info, err := p.openRegular("export")
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	h := header(name, tar.TypeReg, info)
	h.Size = info.Size()
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyN(archive, file, info.Size())
	if errors.Is(err, io.EOF) {
		return api.Errorf(api.Conflict, "export %s: it shrank from %d to %d bytes while it was read", p.name, info.Size(), n).
			WithNext("export again")
	}
	return err
}

func header(name string, kind byte, info os.FileInfo) *tar.Header {
	h := &tar.Header{
		Typeflag: kind, Name: name, Mode: int64(permissions(info.Mode())), ModTime: info.ModTime(), Format: tar.FormatPAX,
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid = int(stat.Uid), int(stat.Gid)
	}
	return h
}
