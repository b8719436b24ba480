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
	"strings"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// unpacker writes a tar that a workspace sent below one folder of the user's
// machine. The archive is untrusted: no entry leaves the folder, nothing is
// written through a symlink whether the archive made it or it was there before,
// a folder is never replaced by anything else, and set-id bits and devices do not
// come along.
type unpacker struct {
	root *os.Root
	// top is the name that the archive's first entry must have and all others
	// lie below; as is what it is called here, "" for the folder itself.
	top, as string
	// made holds folders known to be real ones. They are never replaced, so what
	// was found once stays true.
	made map[string]bool
	// modes are set at the end, as a folder may forbid writing into itself.
	modes []folderMode
	seen  bool
}

type folderMode struct {
	name string
	mode fs.FileMode
}

func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	u.made = map[string]bool{".": true}
	t := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := u.entry(h, t); err != nil {
			return err
		}
	}
	if !u.seen {
		return api.Errorf(api.Internal, "read the archive: it is empty")
	}
	for i := len(u.modes) - 1; i >= 0; i-- {
		if err := u.root.Chmod(u.modes[i].name, u.modes[i].mode); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) entry(h *tar.Header, data io.Reader) error {
	name, err := u.place(h.Name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.folder(name); err != nil {
			return err
		}
		// The folder that the user named keeps its own permissions.
		if name != "." {
			u.modes = append(u.modes, folderMode{name, mode})
		}
		u.seen = true
		return nil
	case tar.TypeReg, tar.TypeSymlink:
	default:
		return api.Errorf(api.Unimplemented, "copy %q: an entry of type %q is not copied", h.Name, string(h.Typeflag)).
			WithNext("leave it out, or pack it inside the workspace with tar and copy the archive")
	}
	if name == "." {
		return hostile(h.Name, "a file stands where the folder should be")
	}
	if err := u.folder(path.Dir(name)); err != nil {
		return err
	}
	if err := u.clear(name); err != nil {
		return err
	}
	u.seen = true
	local := filepath.FromSlash(name)
	if h.Typeflag == tar.TypeSymlink {
		return u.root.Symlink(h.Linkname, local)
	}
	return u.file(local, mode, h, data)
}

func (u *unpacker) file(local string, mode fs.FileMode, h *tar.Header, data io.Reader) error {
	f, err := u.root.OpenFile(local, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = u.root.Remove(local)
		return fmt.Errorf("write %s: %w", local, err)
	}
	return u.root.Chtimes(local, h.ModTime, h.ModTime)
}

// place turns an entry's name into where it goes, "." being the root itself.
func (u *unpacker) place(name string) (string, error) {
	clean := strings.TrimSuffix(name, "/")
	if !filepath.IsLocal(filepath.FromSlash(clean)) || strings.ContainsRune(clean, 0) || path.Clean(clean) != clean {
		return "", hostile(name, "its name leads out of the folder")
	}
	if u.top == "" {
		u.top, _, _ = strings.Cut(clean, "/")
	}
	if clean == u.top {
		return path.Join(".", u.as), nil
	}
	below, ok := strings.CutPrefix(clean, u.top+"/")
	if !ok {
		return "", hostile(name, "it does not belong to "+u.top)
	}
	return path.Join(u.as, below), nil
}

// folder makes sure that name and all above it are real folders.
func (u *unpacker) folder(name string) error {
	if u.made[name] {
		return nil
	}
	if err := u.folder(path.Dir(name)); err != nil {
		return err
	}
	local := filepath.FromSlash(name)
	info, err := u.root.Lstat(local)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := u.root.Mkdir(local, 0o755); err != nil {
			return err
		}
	case err != nil:
		return err
	case !info.IsDir():
		return hostile(name, "a file or symlink of that name is in its way")
	}
	u.made[name] = true
	return nil
}

// clear removes the file or symlink that an entry replaces.
func (u *unpacker) clear(name string) error {
	local := filepath.FromSlash(name)
	info, err := u.root.Lstat(local)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return hostile(name, "a folder of that name is in its way")
	}
	return u.root.Remove(local)
}

// hostile refuses an entry. The archive is refused from there on; what was
// written before stays.
func hostile(name, why string) error {
	return api.Errorf(api.InvalidArgument, "copy %q: %s", name, why)
}
