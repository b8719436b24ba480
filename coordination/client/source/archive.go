package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
)

// ProjectPath is where a project lies in every workspace.
const ProjectPath = "/workspace"

// Archive is a repository that is ready to be sent. Its clone lies in a folder for
// temporary files until Close; its files are read when they are sent.
type Archive struct {
	// Source is what the workspace's spec records.
	Source *vendettav1.Source
	// Notes name what was not brought, one sentence each.
	Notes []string

	repo  *repository
	clone string
	files []tracked
	// others are untracked files, nil when only HEAD was asked for.
	others []string
	clean  bool
	now    time.Time
}

// Pack prepares the repository that dir lies in: its history, and its files as
// they stand or, with clean, as HEAD has them. The caller closes the archive.
func Pack(ctx context.Context, dir string, clean bool) (*Archive, error) {
	r, err := open(ctx, dir)
	if err != nil {
		return nil, err
	}
	a := &Archive{
		Source: &vendettav1.Source{Path: r.dir, Commit: r.commit, Branch: r.branch},
		repo:   r, clean: clean, now: time.Now(),
	}
	if err := a.list(ctx); err != nil {
		return nil, err
	}
	if a.clone, err = os.MkdirTemp("", "vendetta-source-"); err != nil {
		return nil, fmt.Errorf("make room for a clone: %w", err)
	}
	if err := r.cloneTo(ctx, a.clone); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Archive) list(ctx context.Context) (err error) {
	if a.clean {
		a.files, err = a.repo.head(ctx)
		a.note()
		return err
	}
	if a.files, err = a.repo.index(ctx); err != nil {
		return err
	}
	others, err := a.repo.untracked(ctx)
	if err != nil {
		return err
	}
	for _, p := range others {
		if nested, ok := strings.CutSuffix(p, "/"); ok {
			a.Notes = append(a.Notes, "the repository "+nested+" inside this one was not brought")
			continue
		}
		a.others = append(a.others, p)
	}
	a.note()
	changed, err := a.repo.changed(ctx)
	a.Source.Dirty = changed || len(a.others) > 0
	return err
}

func (a *Archive) note() {
	for _, f := range a.files {
		if f.mode == modeSubmodule {
			a.Notes = append(a.Notes, "the contents of the submodule "+f.path+" were not brought; fetch them in the workspace: git submodule update --init "+f.path)
		}
	}
}

// Close removes the clone from this machine.
func (a *Archive) Close() error { return os.RemoveAll(a.clone) }

// WriteTar writes the project as one tar: first .git, then the files. It can be
// repeated; the files are read as they stand then.
func (a *Archive) WriteTar(ctx context.Context, out io.Writer) error {
	w := tar.NewWriter(out)
	steps := []func(context.Context, *tar.Writer) error{a.writeClone, a.writeFiles}
	for _, step := range steps {
		if err := step(ctx, w); err != nil {
			return fmt.Errorf("pack %s: %w", a.Source.GetPath(), err)
		}
	}
	return w.Close()
}

// Send streams the archive into the workspace as its project.
func Send(ctx context.Context, guest *client.Guest, a *Archive) error {
	_, err := guest.Import(ctx, &guestv1.ImportBegin{Path: ProjectPath, Project: true}, func(w io.Writer) error {
		return a.WriteTar(ctx, w)
	})
	return err
}

func (a *Archive) writeClone(ctx context.Context, w *tar.Writer) error {
	root, err := os.OpenRoot(a.clone)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".git", func(p string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		file := filepath.FromSlash(p)
		info, err := root.Lstat(file)
		if err != nil {
			return err
		}
		return client.WriteFile(w, root, file, p, info, info.Mode())
	})
}

// tree writes files of the work tree.
type tree struct {
	archive *Archive
	w       *tar.Writer
	root    *os.Root
	blobs   *blobs
	// folders tells which paths are real folders on this machine, and which
	// were written.
	folders map[string]bool
	written map[string]bool
}

func (a *Archive) writeFiles(ctx context.Context, w *tar.Writer) error {
	root, err := os.OpenRoot(a.repo.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	blobs, err := a.repo.openBlobs(ctx)
	if err != nil {
		return err
	}
	defer blobs.close()
	t := &tree{archive: a, w: w, root: root, blobs: blobs, folders: map[string]bool{".": true}, written: map[string]bool{".": true}}
	for _, f := range a.files {
		if err := errors.Join(ctx.Err(), t.tracked(f)); err != nil {
			return err
		}
	}
	for _, p := range a.others {
		if err := errors.Join(ctx.Err(), t.file(p, modeRegular)); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) tracked(f tracked) error {
	switch {
	case f.mode == modeSubmodule:
		if t.archive.clean || t.isFolder(f.path) {
			return t.folder(f.path)
		}
		return nil
	case t.archive.clean:
		return t.blob(f)
	case f.absent && !t.exists(f.path):
		return t.blob(f)
	}
	return t.file(f.path, f.mode)
}

// file writes what stands in the work tree; what was deleted there is left out.
func (t *tree) file(p string, indexMode int64) error {
	local := filepath.FromSlash(p)
	info, err := t.lstat(p)
	if err != nil || info == nil || info.IsDir() {
		return err
	}
	if !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return nil // git tracks no such thing either
	}
	if err := t.folder(path.Dir(p)); err != nil {
		return err
	}
	return client.WriteFile(t.w, t.root, local, p, info, permissions(info.Mode(), indexMode, runtime.GOOS != "windows"))
}

// permissions are the file system's own where it keeps any, else what git's
// index says.
func permissions(mode fs.FileMode, indexMode int64, kept bool) fs.FileMode {
	switch {
	case kept:
		return mode.Perm()
	case indexMode == modeExecutable:
		return 0o755
	}
	return 0o644
}

// lstat gives nil for what is not there, a path that leads through a symlink included:
// to git that is a deleted file.
func (t *tree) lstat(p string) (fs.FileInfo, error) {
	if !t.isFolder(path.Dir(p)) {
		return nil, nil
	}
	info, err := t.root.Lstat(filepath.FromSlash(p))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return info, err
}

func (t *tree) exists(p string) bool {
	info, err := t.lstat(p)
	return err == nil && info != nil
}

// isFolder: p and all above it are folders and not symlinks to some.
func (t *tree) isFolder(p string) bool {
	known, ok := t.folders[p]
	if !ok {
		if t.isFolder(path.Dir(p)) {
			info, err := t.root.Lstat(filepath.FromSlash(p))
			known = err == nil && info.IsDir()
		}
		t.folders[p] = known
	}
	return known
}

// folder writes p and what is above it once.
func (t *tree) folder(p string) error {
	if t.written[p] {
		return nil
	}
	if err := t.folder(path.Dir(p)); err != nil {
		return err
	}
	t.written[p] = true
	return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p + "/", Mode: 0o755, ModTime: t.archive.now})
}

// blob writes a file as git has it stored.
func (t *tree) blob(f tracked) error {
	if !filepath.IsLocal(filepath.FromSlash(f.path)) {
		return api.Errorf(api.InvalidArgument, "%q leads out of the repository", f.path)
	}
	if err := t.folder(path.Dir(f.path)); err != nil {
		return err
	}
	return t.blobs.read(f.object, func(size int64, data io.Reader) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: 0o644, Size: size, ModTime: t.archive.now}
		switch f.mode {
		case modeExecutable:
			h.Mode = 0o755
		case modeSymlink:
			var target bytes.Buffer
			if _, err := io.Copy(&target, data); err != nil {
				return err
			}
			h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, target.String(), 0o777, 0
			return t.w.WriteHeader(h)
		}
		if err := t.w.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(t.w, data)
		return err
	})
}
