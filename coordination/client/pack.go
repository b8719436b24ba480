package client

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// errShrank is met when a file shrank while it was read; the header had promised more.
var errShrank = errors.New("the file became shorter while it was read")

// WriteFile adds one file, folder or symlink of this machine to a tar under the
// given name, with the given permission bits, its time and no owner. info is what
// Lstat says of it. A symlink is stored as one and never followed. What is none of
// these is refused.
func WriteFile(w *tar.Writer, root *os.Root, file, name string, info fs.FileInfo, perm fs.FileMode) error {
	h := &tar.Header{Name: name, Mode: int64(perm.Perm()), ModTime: info.ModTime()}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return w.WriteHeader(h)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(file)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, filepath.ToSlash(target), 0o777
		return w.WriteHeader(h)
	case !info.Mode().IsRegular():
		return api.Errorf(api.InvalidArgument, "copy %s: neither a file, a folder nor a symlink", file)
	}
	f, err := root.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(info, now) {
		return fmt.Errorf("copy %s: it was replaced while it was read", file)
	}
	h.Typeflag, h.Size = tar.TypeReg, now.Size()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyN(w, f, now.Size())
	if errors.Is(err, io.EOF) && n < now.Size() {
		return fmt.Errorf("copy %s: %w", file, errShrank)
	}
	return err
}

// writeTree adds local, and all below it when it is a folder, under name. An
// empty name adds what the folder holds without the folder.
func writeTree(ctx context.Context, out io.Writer, local string, info fs.FileInfo, name string) error {
	dir, base := local, "."
	if !info.IsDir() {
		dir, base = filepath.Dir(local), filepath.Base(local)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := tar.NewWriter(out)
	if info.IsDir() {
		err = writeFolder(ctx, w, root, name)
	} else {
		err = WriteFile(w, root, base, name, info, info.Mode())
	}
	if err != nil {
		return err
	}
	return w.Close()
}

func writeFolder(ctx context.Context, w *tar.Writer, root *os.Root, name string) error {
	return fs.WalkDir(root.FS(), ".", func(p string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		target := path.Join(name, p)
		if err != nil || target == "." {
			return err
		}
		file := filepath.FromSlash(p)
		info, err := root.Lstat(file)
		if err != nil {
			return err
		}
		return WriteFile(w, root, file, target, info, info.Mode())
	})
}
