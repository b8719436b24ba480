package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// Both directions name their destination as `docker cp` does: an existing folder
// gets the source inside it under its own name; "folder/." as a source means what
// the folder holds; a destination that does not exist becomes the copy, its
// parent must exist; a file replaces a file and nothing else. Symlinks are copied
// as symlinks.

// CopyTo copies a file or folder of this machine into the workspace.
func (g *Guest) CopyTo(ctx context.Context, local, remote string) error {
	info, err := statSource(local)
	if err != nil {
		return localError("copy", local, err)
	}
	dest, err := g.Files.StatFile(ctx, &guestv1.StatFileRequest{Path: remote, Follow: true})
	missing := api.CodeOf(err) == api.NotFound
	if err != nil && !missing {
		return err
	}
	dir, name := remote, sourceName(local)
	switch {
	case dest.GetType() == guestv1.FileType_FILE_TYPE_DIRECTORY:
		if info.IsDir() && contentsOnly(local) {
			name = ""
		}
	case !missing && (info.IsDir() || namesFolder(remote)):
		return api.Errorf(api.FailedPrecondition, "copy %s: %s:%s is not a folder", local, g.workspace, remote)
	case missing && !info.IsDir() && namesFolder(remote):
		return g.missingFolder(err, remote)
	default:
		clean := path.Clean(remote)
		dir, name = path.Dir(clean), path.Base(clean)
		if err := g.wantFolder(ctx, dir); err != nil {
			return err
		}
	}
	_, err = g.Import(ctx, &guestv1.ImportBegin{Path: dir}, func(w io.Writer) error {
		return writeTree(ctx, w, local, info, name)
	})
	return localError("copy", local, err)
}

func (g *Guest) wantFolder(ctx context.Context, dir string) error {
	info, err := g.Files.StatFile(ctx, &guestv1.StatFileRequest{Path: dir, Follow: true})
	if err != nil {
		return g.missingFolder(err, dir)
	}
	if info.GetType() != guestv1.FileType_FILE_TYPE_DIRECTORY {
		return api.Errorf(api.FailedPrecondition, "copy: %s:%s is not a folder", g.workspace, dir)
	}
	return nil
}

// missingFolder adds the next step to an answer that says what is missing, which
// may also be the workspace itself.
func (g *Guest) missingFolder(err error, dir string) error {
	e := api.From(err)
	if e.Code != api.NotFound || e.Next != "" {
		return err
	}
	return e.WithNext("make it first: vendetta workspace exec %s -- mkdir -p %s", g.workspace, dir)
}

// CopyFrom copies a file or folder of the workspace to this machine. The
// workspace is not trusted: whatever it sends stays below the destination.
func (g *Guest) CopyFrom(ctx context.Context, remote, local string) error {
	info, err := g.Files.StatFile(ctx, &guestv1.StatFileRequest{Path: remote, Follow: namesFolder(remote)})
	if err != nil {
		return err
	}
	folder := info.GetType() == guestv1.FileType_FILE_TYPE_DIRECTORY
	u := &unpacker{}
	dir := local
	dest, err := os.Stat(local)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return localError("copy to", local, err)
	case err == nil && dest.IsDir():
		if !folder || !contentsOnly(remote) {
			u.as = path.Base(path.Clean(remote))
		}
		if !usableName(u.as) {
			u.as = ""
		}
	case err == nil && (folder || namesFolder(local)):
		return api.Errorf(api.FailedPrecondition, "copy %s:%s: %s is not a folder", g.workspace, remote, local)
	case err != nil && !folder && namesFolder(local):
		return api.Errorf(api.NotFound, "copy %s:%s: the folder %s does not exist", g.workspace, remote, local)
	default:
		clean := filepath.Clean(local)
		dir, u.as = filepath.Dir(clean), filepath.Base(clean)
	}
	if u.root, err = os.OpenRoot(dir); err != nil {
		return localError("copy to", local, err)
	}
	defer u.root.Close()
	err = g.Export(ctx, path.Clean(remote), func(r io.Reader) error { return u.unpack(ctx, r) })
	return localError("copy to", local, err)
}

// usableName tells names that a folder can have from "/", "." and "..".
func usableName(name string) bool { return name != "/" && name != "." && name != ".." }

// contentsOnly: "folder/." stands for what the folder holds.
func contentsOnly(p string) bool {
	p = filepath.ToSlash(p)
	return p == "." || strings.HasSuffix(p, "/.")
}

// namesFolder: such a path can only mean a folder, and follows a symlink to one.
func namesFolder(p string) bool {
	return strings.HasSuffix(filepath.ToSlash(p), "/") || contentsOnly(p)
}

// statSource does not follow a symlink unless its name asks for the folder behind.
func statSource(local string) (fs.FileInfo, error) {
	if namesFolder(local) {
		info, err := os.Stat(local)
		if err == nil && !info.IsDir() {
			err = api.Errorf(api.FailedPrecondition, "copy %s: it is not a folder", local)
		}
		return info, err
	}
	return os.Lstat(local)
}

// sourceName is the name under which local arrives in an existing folder.
func sourceName(local string) string {
	if abs, err := filepath.Abs(local); err == nil {
		local = abs
	}
	if base := filepath.Base(local); usableName(filepath.ToSlash(base)) {
		return base
	}
	return ""
}

// localError gives an error of this machine's file system a code; what the server
// or guest said stays as it is.
func localError(doing, local string, err error) error {
	var perr *fs.PathError
	if !errors.As(err, &perr) {
		return err
	}
	code := api.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = api.NotFound
	case errors.Is(err, fs.ErrPermission):
		code = api.PermissionDenied
	case errors.Is(err, syscall.ENOTDIR):
		code = api.FailedPrecondition
	}
	return &api.Error{Code: code, Message: doing + " " + local + ": " + err.Error(), Cause: err}
}
