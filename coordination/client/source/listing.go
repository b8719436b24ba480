package source

import (
	"context"
	"strconv"
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// Modes of git's index and trees.
const (
	modeRegular    = 0o100644
	modeExecutable = 0o100755
	modeSymlink    = 0o120000
	modeSubmodule  = 0o160000
)

// tracked is one path of the index or of HEAD.
type tracked struct {
	path   string
	mode   int64
	object string
	// absent: git itself keeps it out of the work tree (a sparse checkout), so
	// that it is not there does not mean that it was deleted.
	absent bool
}

// index lists what git tracks; a path in conflict appears once.
func (r *repository) index(ctx context.Context) ([]tracked, error) {
	out, err := r.run(ctx, "ls-files", "-z", "--cached", "--stage", "-t")
	if err != nil {
		return nil, err
	}
	var files []tracked
	for entry := range entries(out) {
		// TAG MODE OBJECT STAGE\tPATH
		meta, path, ok := strings.Cut(entry, "\t")
		fields := strings.Fields(meta)
		if !ok || len(fields) != 4 {
			return nil, api.Errorf(api.Internal, "git ls-files: unexpected line %q", entry)
		}
		if n := len(files); n > 0 && files[n-1].path == path {
			continue
		}
		f, err := newTracked(path, fields[1], fields[2])
		if err != nil {
			return nil, err
		}
		f.absent = fields[0] == "S"
		files = append(files, f)
	}
	return files, nil
}

// head lists the files of the commit.
func (r *repository) head(ctx context.Context) ([]tracked, error) {
	if r.commit == "" {
		return nil, nil
	}
	out, err := r.run(ctx, "ls-tree", "-z", "-r", "--full-tree", r.commit)
	if err != nil {
		return nil, err
	}
	var files []tracked
	for entry := range entries(out) {
		// MODE TYPE OBJECT\tPATH
		meta, path, ok := strings.Cut(entry, "\t")
		fields := strings.Fields(meta)
		if !ok || len(fields) != 3 {
			return nil, api.Errorf(api.Internal, "git ls-tree: unexpected line %q", entry)
		}
		f, err := newTracked(path, fields[0], fields[2])
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func newTracked(path, mode, object string) (tracked, error) {
	m, err := strconv.ParseInt(mode, 8, 64)
	if err != nil {
		return tracked{}, api.Errorf(api.Internal, "git: unexpected mode %q of %q", mode, path)
	}
	return tracked{path: path, mode: m, object: object}, nil
}

// untracked lists what git neither tracks nor ignores. A nested repository is one
// entry that ends with a slash.
func (r *repository) untracked(ctx context.Context) ([]string, error) {
	out, err := r.run(ctx, "ls-files", "-z", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	var paths []string
	for p := range entries(out) {
		paths = append(paths, p)
	}
	return paths, nil
}

// changed tells whether a tracked file differs from HEAD.
func (r *repository) changed(ctx context.Context) (bool, error) {
	out, err := r.run(ctx, "status", "--porcelain", "-z", "--untracked-files=no", "--ignore-submodules=all")
	return out != "", err
}

// entries yields the parts of a list that NUL ends.
func entries(list string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for list != "" {
			entry, rest, _ := strings.Cut(list, "\x00")
			if !yield(entry) {
				return
			}
			list = rest
		}
	}
}
