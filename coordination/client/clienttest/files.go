package clienttest

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
)

// SetChanges says what the project has that exists only in the workspace.
func (g *Guest) SetChanges(names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changes = names
}

func (g *Guest) dirty() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.changes) > 0
}

// at maps a path of the workspace to one below Dir.
func (g *Guest) at(p string) string {
	if !path.IsAbs(p) {
		p = path.Join("/workspace", p)
	}
	rest, _ := strings.CutPrefix(path.Clean(p), "/workspace")
	return filepath.Join(g.Dir, filepath.FromSlash(rest))
}

type project struct {
	guestv1connect.UnimplementedProjectServiceHandler
	guest *Guest
}

func (h project) ProjectStatus(context.Context, *guestv1.ProjectStatusRequest) (*guestv1.ProjectStatusResponse, error) {
	h.guest.mu.Lock()
	defer h.guest.mu.Unlock()
	return &guestv1.ProjectStatusResponse{
		Imported: h.guest.imported, GitVersion: "git version 2.39.5", Branch: "main", Commit: "0123456789abcdef",
		ChangedFiles: h.guest.changes, ChangedFilesTotal: int32(len(h.guest.changes)),
	}, nil
}

type files struct {
	guestv1connect.UnimplementedFileServiceHandler
	guest *Guest
}

func fileError(p string, err error) error {
	code := api.Internal
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		code = api.NotFound
	}
	return api.ToConnect(&api.Error{Code: code, Message: p + ": no such file or folder", Cause: err})
}

func info(p string, i fs.FileInfo) *guestv1.FileInfo {
	out := &guestv1.FileInfo{Path: p, Type: guestv1.FileType_FILE_TYPE_REGULAR, Size: uint64(i.Size()), Mode: uint32(i.Mode().Perm()), ModifiedAt: timestamppb.New(i.ModTime()), Owner: "dev"}
	switch {
	case i.IsDir():
		out.Type = guestv1.FileType_FILE_TYPE_DIRECTORY
	case i.Mode()&fs.ModeSymlink != 0:
		out.Type, out.Target = guestv1.FileType_FILE_TYPE_SYMLINK, "target"
	}
	return out
}

func (h files) stat(p string, follow bool) (*guestv1.FileInfo, error) {
	if h.guest.missing != "" {
		return nil, noWorkspace(h.guest.missing)
	}
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	i, err := stat(h.guest.at(p))
	if err != nil {
		return nil, fileError(p, err)
	}
	return info(p, i), nil
}

func (h files) StatFile(_ context.Context, r *guestv1.StatFileRequest) (*guestv1.FileInfo, error) {
	return h.stat(r.Path, r.Follow)
}

func (h files) ListFiles(_ context.Context, r *guestv1.ListFilesRequest) (*guestv1.ListFilesResponse, error) {
	if _, err := h.stat(r.Path, true); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(h.guest.at(r.Path))
	if err != nil {
		return nil, fileError(r.Path, err)
	}
	out := &guestv1.ListFilesResponse{}
	for _, e := range entries {
		if r.Limit > 0 && len(out.Files) == int(r.Limit) {
			out.Truncated = true
			break
		}
		if i, err := e.Info(); err == nil {
			out.Files = append(out.Files, info(e.Name(), i))
		}
	}
	return out, nil
}

func (h files) ReadFile(_ context.Context, r *guestv1.ReadFileRequest) (*guestv1.ReadFileResponse, error) {
	i, err := h.stat(r.Path, true)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(h.guest.at(r.Path))
	if err != nil {
		return nil, fileError(r.Path, err)
	}
	size := uint64(len(data))
	from := min(r.Offset, size)
	to := min(from+r.Limit, size)
	return &guestv1.ReadFileResponse{Data: data[from:to], Info: i, End: to == size}, nil
}

func (h files) WriteFile(_ context.Context, r *guestv1.WriteFileRequest) (*guestv1.FileInfo, error) {
	at := h.guest.at(r.Path)
	if r.Parents {
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return nil, fileError(r.Path, err)
		}
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if r.Append {
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	mode := fs.FileMode(r.Mode)
	if mode == 0 {
		mode = 0o644
	}
	f, err := os.OpenFile(at, flags, mode)
	if err != nil {
		return nil, fileError(r.Path, err)
	}
	_, err = f.Write(r.Data)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fileError(r.Path, err)
	}
	return h.stat(r.Path, false)
}

func (h files) EditFile(_ context.Context, r *guestv1.EditFileRequest) (*guestv1.EditFileResponse, error) {
	data, err := os.ReadFile(h.guest.at(r.Path))
	if err != nil {
		return nil, fileError(r.Path, err)
	}
	n := strings.Count(string(data), r.OldText)
	if n == 0 || n > 1 && !r.All {
		return nil, api.ToConnect(api.Errorf(api.FailedPrecondition, "edit %s: the old text occurs %d times", r.Path, n).WithNext("give more of what stands around it"))
	}
	line := 1 + strings.Count(string(data[:strings.Index(string(data), r.OldText)]), "\n")
	if err := os.WriteFile(h.guest.at(r.Path), []byte(strings.ReplaceAll(string(data), r.OldText, r.NewText)), 0o644); err != nil {
		return nil, fileError(r.Path, err)
	}
	i, err := h.stat(r.Path, false)
	return &guestv1.EditFileResponse{Info: i, Replaced: int32(n), Line: int32(line)}, err
}

func (h files) SearchFiles(_ context.Context, r *guestv1.SearchFilesRequest) (*guestv1.SearchFilesResponse, error) {
	re, err := regexp.Compile(r.Pattern)
	if err != nil {
		return nil, api.ToConnect(api.Errorf(api.InvalidArgument, "search: %w", err))
	}
	out := &guestv1.SearchFilesResponse{}
	err = fs.WalkDir(os.DirFS(h.guest.at(r.Path)), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(h.guest.at(r.Path), p))
		out.FilesSearched++
		for i, line := range strings.Split(string(data), "\n") {
			if re.MatchString(line) {
				if r.Limit > 0 && len(out.Matches) == int(r.Limit) {
					out.Truncated = true
					return fs.SkipAll
				}
				out.Matches = append(out.Matches, &guestv1.SearchMatch{Path: p, Line: int32(i + 1), Text: line})
			}
		}
		return err
	})
	return out, fileError(r.Path, err)
}

func (h files) Import(_ context.Context, s *connect.ClientStream[guestv1.ImportRequest]) (*guestv1.ImportResponse, error) {
	if h.guest.missing != "" {
		return nil, noWorkspace(h.guest.missing)
	}
	s.Receive()
	begin := s.Msg().GetBegin()
	pr, pw := io.Pipe()
	h.guest.server.owner.Go(func() {
		for s.Receive() {
			if _, err := pw.Write(s.Msg().GetData()); err != nil {
				return
			}
		}
		_ = pw.CloseWithError(s.Err())
	})
	n, err := extract(h.guest.at(begin.GetPath()), pr)
	_ = pr.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		return nil, api.ToConnect(api.Errorf(api.InvalidArgument, "import: %w", err))
	}
	if begin.GetProject() {
		h.guest.mu.Lock()
		h.guest.imported = true
		h.guest.mu.Unlock()
	}
	return &guestv1.ImportResponse{Entries: n}, nil
}

// extract trusts its archive, which comes from the test.
func extract(dir string, r io.Reader) (entries int64, err error) {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return entries, err
		}
		if err != nil {
			return entries, err
		}
		entries++
		to := filepath.Join(dir, h.Name) //nolint:gosec // see above
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(to, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, to)
		default:
			var data []byte
			if data, err = io.ReadAll(t); err == nil {
				err = os.WriteFile(to, data, fs.FileMode(h.Mode))
			}
		}
		if err != nil {
			return entries, err
		}
	}
}

// SetExport makes every Export answer with these bytes.
func (g *Guest) SetExport(archive []byte) { g.mu.Lock(); defer g.mu.Unlock(); g.export = archive }

func (h files) Export(_ context.Context, r *guestv1.ExportRequest, s *connect.ServerStream[guestv1.ExportResponse]) error {
	h.guest.mu.Lock()
	archive := h.guest.export
	h.guest.mu.Unlock()
	if archive != nil {
		return s.Send(&guestv1.ExportResponse{Data: archive})
	}
	if _, err := h.stat(r.Path, false); err != nil {
		return err
	}
	w := tar.NewWriter(exportWriter{s})
	top := h.guest.at(r.Path)
	err := filepath.Walk(top, func(p string, i fs.FileInfo, err error) error {
		if err != nil {
			return err
		}
		target := ""
		if i.Mode()&fs.ModeSymlink != 0 {
			target, _ = os.Readlink(p)
		}
		header, err := tar.FileInfoHeader(i, target)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(filepath.Dir(top), p)
		header.Name = filepath.ToSlash(rel)
		if err := w.WriteHeader(header); err != nil || !i.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p) //nolint:gosec // the test's own folder
		_, writeErr := w.Write(data)
		return errors.Join(err, writeErr)
	})
	return errors.Join(err, w.Close())
}

type exportWriter struct {
	s *connect.ServerStream[guestv1.ExportResponse]
}

func (w exportWriter) Write(p []byte) (int, error) {
	return len(p), w.s.Send(&guestv1.ExportResponse{Data: p})
}

// Forget makes the guest say that no project was imported.
func (g *Guest) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.imported = false
}
