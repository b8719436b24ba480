//go:build linux

package guest

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
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// Limits of one archive.
const (
	entriesMost = 2_000_000
	unpackMost  = 256 << 30
)

func (s fileService) Import(ctx context.Context, stream *connect.ClientStream[guestv1.ImportRequest]) (*guestv1.ImportResponse, error) {
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), api.Errorf(api.InvalidArgument, "import: the stream was empty"))
	}
	begin := stream.Msg().GetBegin()
	if begin == nil {
		return nil, api.Errorf(api.InvalidArgument, "import: the first message must carry begin")
	}
	target, project := begin.GetPath(), begin.GetProject()
	u := &unpacker{guest: s.g, ctx: ctx, safe: map[string]bool{".": true}}
	var err error
	if u.owner, err = s.g.owner(); err != nil {
		return nil, err
	}
	data := &importReader{stream: stream}
	if project {
		err = s.g.importProject(target, u, data)
	} else {
		err = s.g.importInto(target, u, data)
	}
	if err != nil {
		return nil, err
	}
	return &guestv1.ImportResponse{Entries: u.entries, Bytes: u.bytes}, nil
}

func (g *Guest) importInto(target string, u *unpacker, data io.Reader) error {
	p, err := g.at(target)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	if err := p.mkdirAll("import into", p.name, u.owner); err != nil {
		return err
	}
	// Not following a symlink out of the project is the tree's matter; what lies
	// below the folder is the root's.
	if root, ok := p.tree.(*os.Root); ok {
		u.root, err = root.OpenRoot(p.name)
	} else {
		u.root, err = os.OpenRoot(p.name)
	}
	if err != nil {
		return p.fail("import into", err)
	}
	defer func() { _ = u.root.Close() }()
	return u.unpack(data)
}

// importReader is the tar in an import's messages.
type importReader struct {
	stream *connect.ClientStream[guestv1.ImportRequest]
	rest   []byte
}

func (r *importReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, fmt.Errorf("import: receive: %w", err)
			}
			return 0, io.EOF
		}
		if r.stream.Msg().GetBegin() != nil {
			return 0, api.Errorf(api.InvalidArgument, "import: begin came twice")
		}
		r.rest = r.stream.Msg().GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// unpacker writes the entries of a tar below a root. An entry never goes through
// a symlink, not even one that stays inside: folders on its way are checked, or
// were made, by the unpacker itself, and the root guards what changes meanwhile.
type unpacker struct {
	guest *Guest
	ctx   context.Context //nolint:containedctx // an unpacker lives for one call
	root  *os.Root
	owner account

	entries int64
	bytes   uint64
	// safe are the folders known not to be symlinks.
	safe map[string]bool
	// dir is the folder of the entry before, kept open since entries come in order.
	dir     *os.Root
	dirName string
	// folders get their modes and times at the end, when nothing is written in
	// them any more.
	folders []folder
	// note is told of everything that was made, for the project's manifest.
	note func(name string, info os.FileInfo, target string)
}

type folder struct {
	name  string
	mode  os.FileMode
	mtime time.Time
}

func refuseEntry(name, format string, args ...any) error {
	return api.Errorf(api.InvalidArgument, "import: entry %.200q "+format, append([]any{name}, args...)...)
}

func (u *unpacker) unpack(data io.Reader) error {
	defer u.leave()
	archive := tar.NewReader(data)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
		if u.entries++; u.entries > entriesMost {
			return api.Errorf(api.InvalidArgument, "import: more than %d entries", entriesMost)
		}
		if err := u.entry(header, archive); err != nil {
			return fsError("import", strings.ToValidUTF8(header.Name, "\uFFFD"), err)
		}
	}
	u.leave()
	// What follows the archive is padding.
	if _, err := io.Copy(io.Discard, data); err != nil {
		return archiveError(err)
	}
	for _, f := range slices.Backward(u.folders) {
		if err := u.finishFolder(f); err != nil {
			return fsError("import", strings.ToValidUTF8(f.name, "\uFFFD"), err)
		}
	}
	return nil
}

func archiveError(err error) error {
	var own *api.Error
	var wire *connect.Error
	if errors.As(err, &own) || errors.As(err, &wire) {
		return err
	}
	return api.Errorf(api.InvalidArgument, "import: read the archive: %w", err)
}

// entryName checks a name from an archive and returns it clean.
func entryName(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return "", refuseEntry(name, "has an absolute name")
	}
	if name == "" || len(name) > 4096 || strings.ContainsRune(name, 0) || slices.Contains(strings.Split(name, "/"), "..") {
		return "", refuseEntry(name, "has a name that is empty, too long or leaves the folder")
	}
	return path.Clean(name), nil
}

func (u *unpacker) entry(header *tar.Header, data io.Reader) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := entryName(header.Name)
	if err != nil {
		return err
	}
	if header.Typeflag == tar.TypeDir {
		return u.folder(name, header)
	}
	if name == "." {
		return refuseEntry(header.Name, "is not a folder")
	}
	if err := u.enter(path.Dir(name)); err != nil {
		return err
	}
	base := path.Base(name)
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(name, base, header, data)
	case tar.TypeSymlink:
		return u.symlink(name, base, header.Linkname)
	case tar.TypeLink:
		return u.link(name, header)
	}
	return refuseEntry(header.Name, "is of kind %q: only files, folders and links are taken", header.Typeflag)
}

// enter opens a folder to work in. Missing ones are made.
func (u *unpacker) enter(name string) error {
	if u.dir != nil && u.dirName == name {
		return nil
	}
	if err := u.check(name); err != nil {
		return err
	}
	dir, err := u.root.OpenRoot(name)
	if err != nil {
		return err
	}
	u.leave()
	u.dir, u.dirName = dir, name
	return nil
}

func (u *unpacker) leave() {
	if u.dir != nil {
		_ = u.dir.Close()
		u.dir = nil
	}
}

// check makes sure that name and all above it are folders and no symlinks.
func (u *unpacker) check(name string) error {
	if u.safe[name] {
		return nil
	}
	if err := u.check(path.Dir(name)); err != nil {
		return err
	}
	info, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return u.make(name)
	case err != nil:
		return err
	case !info.IsDir():
		return refuseEntry(name, "would be written through %s", kindName(info.Mode()))
	}
	u.safe[name] = true
	return nil
}

func (u *unpacker) make(name string) error {
	if err := u.root.Mkdir(name, 0o755); err != nil {
		return err
	}
	if err := u.root.Lchown(name, int(u.owner.uid), int(u.owner.gid)); err != nil {
		return err
	}
	u.safe[name] = true
	return nil
}

func (u *unpacker) folder(name string, header *tar.Header) error {
	if name != "." {
		if err := u.check(path.Dir(name)); err != nil {
			return err
		}
		info, err := u.root.Lstat(name)
		if err == nil && !info.IsDir() {
			if err := u.root.Remove(name); err != nil {
				return err
			}
			err = fs.ErrNotExist
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = u.make(name)
		} else if err == nil {
			err = u.check(name)
		}
		if err != nil {
			return err
		}
		u.folders = append(u.folders, folder{name: name, mode: fileMode(uint32(header.Mode)), mtime: header.ModTime})
	}
	return nil
}

func (u *unpacker) finishFolder(f folder) error {
	if err := u.root.Chmod(f.name, f.mode); err != nil {
		return err
	}
	if err := u.root.Chtimes(f.name, f.mtime, f.mtime); err != nil {
		return err
	}
	if u.note == nil {
		return nil
	}
	info, err := u.root.Lstat(f.name)
	if err == nil {
		u.note(f.name, info, "")
	}
	return err
}

// clear removes what stands where a file or link is to be made.
func (u *unpacker) clear(name, base string) error {
	info, err := u.dir.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return api.Errorf(api.FailedPrecondition, "import: entry %.200q: a folder stands there", name)
	}
	return u.dir.Remove(base)
}

func (u *unpacker) file(name, base string, header *tar.Header, data io.Reader) (err error) {
	if header.Size < 0 || u.bytes+uint64(header.Size) > unpackMost {
		return api.Errorf(api.InvalidArgument, "import: the archive unpacks to more than %d bytes", int64(unpackMost))
	}
	const flags = os.O_CREATE | os.O_EXCL | os.O_WRONLY | syscall.O_NOFOLLOW
	file, err := u.dir.OpenFile(base, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err := u.clear(name, base); err != nil {
			return err
		}
		file, err = u.dir.OpenFile(base, flags, 0o600)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			_ = u.dir.Remove(base)
		}
	}()
	n, err := io.Copy(file, data)
	u.bytes += uint64(n)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return archiveError(err)
		}
		return err
	}
	if err := file.Chown(int(u.owner.uid), int(u.owner.gid)); err != nil {
		return err
	}
	if err := file.Chmod(fileMode(uint32(header.Mode))); err != nil {
		return err
	}
	if err := u.dir.Chtimes(base, header.ModTime, header.ModTime); err != nil {
		return err
	}
	if u.note == nil {
		return nil
	}
	info, err := file.Stat()
	if err == nil {
		u.note(name, info, "")
	}
	return err
}

func (u *unpacker) symlink(name, base, target string) error {
	if target == "" || len(target) > 4095 || strings.ContainsRune(target, 0) {
		return refuseEntry(name, "is a symlink to nothing possible")
	}
	if err := u.clear(name, base); err != nil {
		return err
	}
	if err := u.dir.Symlink(target, base); err != nil {
		return err
	}
	if err := u.dir.Lchown(base, int(u.owner.uid), int(u.owner.gid)); err != nil {
		return err
	}
	return u.noted(name)
}

// link makes a hard link to a file that lies in the folder.
func (u *unpacker) link(name string, header *tar.Header) error {
	target, err := entryName(header.Linkname)
	if err != nil {
		return err
	}
	if err := u.check(path.Dir(target)); err != nil {
		return err
	}
	info, err := u.root.Lstat(target)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return refuseEntry(header.Name, "is a hard link to %s", kindName(info.Mode()))
	}
	if target == name {
		return nil
	}
	if err := u.clear(name, path.Base(name)); err != nil {
		return err
	}
	if err := u.root.Link(target, name); err != nil {
		return err
	}
	return u.noted(name)
}

func (u *unpacker) noted(name string) error {
	if u.note == nil {
		return nil
	}
	info, err := u.root.Lstat(name)
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&os.ModeSymlink != 0 {
		if target, err = u.root.Readlink(name); err != nil {
			return err
		}
	}
	u.note(name, info, target)
	return nil
}

// importProject unpacks the project. A marker stands while it is under way, so
// that the next one begins anew after one that did not finish.
func (g *Guest) importProject(target string, u *unpacker, data io.Reader) error {
	if target != "" && target != "." && filepath.Clean(target) != filepath.Clean(g.opts.ProjectDir) {
		return api.Errorf(api.InvalidArgument, "import: the project goes to %s, not to %s", g.opts.ProjectDir, target)
	}
	if !g.project.TryLock() {
		return api.Errorf(api.Conflict, "import: another import of the project is under way").
			WithNext("wait for it to end")
	}
	defer g.project.Unlock()
	var err error
	if u.root, err = os.OpenRoot(g.opts.ProjectDir); err != nil {
		return fsError("import into", g.opts.ProjectDir, err)
	}
	defer func() { _ = u.root.Close() }()
	marker := filepath.Join(g.opts.StateDir, "importing")
	if err := g.prepareProject(u.root, marker); err != nil {
		return err
	}
	writer, err := createManifest(g.manifestPath())
	if err != nil {
		return fsError("import", "the project's manifest", err)
	}
	defer writer.abandon()
	u.note = writer.add
	if err := u.unpack(data); err != nil {
		return err
	}
	if err := writer.addRefs(readRefs(u.ctx, u.root)); err != nil {
		return fsError("import", "the project's refs", err)
	}
	if err := writer.commit(); err != nil {
		return fsError("import", "the project's manifest", err)
	}
	if err := os.Remove(marker); err != nil {
		return fsError("import", marker, err)
	}
	return nil
}

// prepareProject empties the project of an import that did not finish, refuses
// one that holds anything else, and sets the marker.
func (g *Guest) prepareProject(root *os.Root, marker string) error {
	dir, err := root.Open(".")
	if err != nil {
		return fsError("import into", g.opts.ProjectDir, err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return fsError("import into", g.opts.ProjectDir, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == "lost+found" })
	_, err = os.Lstat(marker)
	interrupted := err == nil
	if len(names) > 0 && !interrupted {
		return api.Errorf(api.FailedPrecondition, "import: %s has files already, such as %s", g.opts.ProjectDir, strings.ToValidUTF8(slices.Min(names), "\uFFFD")).
			WithNext("import into another folder, or into a new workspace")
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return fsError("import", marker, err)
	}
	for _, name := range names {
		if err := root.RemoveAll(name); err != nil {
			return fsError("import: remove what an earlier import left:", strings.ToValidUTF8(name, "\uFFFD"), err)
		}
	}
	return nil
}
