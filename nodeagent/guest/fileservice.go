//go:build linux

package guest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
)

// The limits that the contract names.
const (
	listDefault = 1000
	listMost    = 10_000
	readMost    = 1 << 20
	writeMost   = 4 << 20
)

type fileService struct{ g *Guest }

// fileInfo describes a file. Names that are not UTF-8 are shown with
// replacement characters, since the contract's strings must be.
func (g *Guest) fileInfo(shown string, info os.FileInfo, target string) *guestv1.FileInfo {
	f := &guestv1.FileInfo{
		Path: strings.ToValidUTF8(shown, "\uFFFD"), Size: uint64(info.Size()), Mode: permissions(info.Mode()),
		ModifiedAt: timestamppb.New(info.ModTime()), Target: strings.ToValidUTF8(target, "\uFFFD"), Type: fileType(info.Mode()),
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		f.Owner = strings.ToValidUTF8(g.accounts.name(stat.Uid), "\uFFFD")
	}
	return f
}

func fileType(mode os.FileMode) guestv1.FileType {
	switch {
	case mode.IsRegular():
		return guestv1.FileType_FILE_TYPE_REGULAR
	case mode.IsDir():
		return guestv1.FileType_FILE_TYPE_DIRECTORY
	case mode&os.ModeSymlink != 0:
		return guestv1.FileType_FILE_TYPE_SYMLINK
	}
	return guestv1.FileType_FILE_TYPE_OTHER
}

// permissions are the bits as chmod takes them.
func permissions(mode os.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for i, special := range []os.FileMode{os.ModeSticky, os.ModeSetgid, os.ModeSetuid} {
		if mode&special != 0 {
			bits |= 0o1000 << i
		}
	}
	return bits
}

// fileMode is the reverse of permissions.
func fileMode(bits uint32) os.FileMode {
	mode := os.FileMode(bits & 0o777)
	for i, special := range []os.FileMode{os.ModeSticky, os.ModeSetgid, os.ModeSetuid} {
		if bits&(0o1000<<i) != 0 {
			mode |= special
		}
	}
	return mode
}

func (s fileService) StatFile(_ context.Context, req *guestv1.StatFileRequest) (*guestv1.FileInfo, error) {
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	stat, target := p.Lstat, ""
	if req.GetFollow() {
		stat = p.Stat
	}
	info, err := stat(p.name)
	if err == nil && info.Mode()&os.ModeSymlink != 0 {
		target, err = p.Readlink(p.name)
	}
	if err != nil {
		return nil, p.fail("stat", err)
	}
	return s.g.fileInfo(p.asked, info, target), nil
}

func (s fileService) ListFiles(ctx context.Context, req *guestv1.ListFilesRequest) (*guestv1.ListFilesResponse, error) {
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = listDefault
	}
	limit = min(limit, listMost)
	resp := &guestv1.ListFilesResponse{}
	err = p.walk(ctx, "list", func(below string, entry fs.DirEntry) (bool, error) {
		if len(resp.GetFiles()) == limit {
			resp.Truncated = true
			return false, errEnough
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		target := ""
		if info.Mode()&os.ModeSymlink != 0 {
			target, _ = p.Readlink(path.Join(p.name, below))
		}
		resp.Files = append(resp.Files, s.g.fileInfo(below, info, target))
		return strings.Count(below, "/") < int(req.GetDepth()), nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// errEnough ends a walk without an error.
var errEnough = errors.New("enough")

// walk visits what lies below a folder, sorted, a folder before what is in it.
// visit says whether to enter a folder. Symlinks are not followed below p.
func (p place) walk(ctx context.Context, operation string, visit func(below string, entry fs.DirEntry) (enter bool, err error)) error {
	err := p.walkBelow(ctx, "", visit)
	if errors.Is(err, errEnough) {
		return nil
	}
	return p.fail(operation, err)
}

func (p place) walkBelow(ctx context.Context, below string, visit func(string, fs.DirEntry) (bool, error)) error {
	flags := os.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NONBLOCK
	if below != "" {
		flags |= syscall.O_NOFOLLOW
	}
	dir, err := p.OpenFile(path.Join(p.name, below), flags, 0)
	if err != nil {
		if below != "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR)) {
			return nil // gone, changed or closed to us since
		}
		return err
	}
	entries, err := dir.ReadDir(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(below, entry.Name())
		enter, err := visit(name, entry)
		if err != nil {
			return err
		}
		if enter && entry.IsDir() {
			if err := p.walkBelow(ctx, name, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s fileService) ReadFile(_ context.Context, req *guestv1.ReadFileRequest) (*guestv1.ReadFileResponse, error) {
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	file, info, err := p.openRegular("read")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	limit := req.GetLimit()
	if limit == 0 || limit > readMost {
		limit = readMost
	}
	if req.GetOffset() > 1<<62 {
		return nil, api.Errorf(api.InvalidArgument, "read %s: offset %d is too large", p.asked, req.GetOffset())
	}
	// One byte more tells whether this was the end, for files that do not know
	// their size as well.
	data, err := io.ReadAll(io.NewSectionReader(file, int64(req.GetOffset()), int64(limit)+1))
	if err != nil {
		return nil, p.fail("read", err)
	}
	end := uint64(len(data)) <= limit
	if !end {
		data = data[:limit]
	}
	return &guestv1.ReadFileResponse{Data: data, Info: s.g.fileInfo(p.asked, info, ""), End: end}, nil
}

func (s fileService) WriteFile(_ context.Context, req *guestv1.WriteFileRequest) (*guestv1.FileInfo, error) {
	if len(req.GetData()) > writeMost {
		return nil, api.Errorf(api.InvalidArgument, "write %s: %d bytes, at most %d are possible in one call", req.GetPath(), len(req.GetData()), writeMost).
			WithNext("write the rest with append")
	}
	if req.GetMode() > 0o7777 {
		return nil, api.Errorf(api.InvalidArgument, "write %s: %o are not permission bits", req.GetPath(), req.GetMode())
	}
	p, err := s.g.at(req.GetPath())
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	owner, err := s.g.owner()
	if err != nil {
		return nil, err
	}
	if p, err = p.final("write"); err != nil {
		return nil, err
	}
	if req.GetParents() {
		if err := p.mkdirAll("write", dirOf(p.name), owner); err != nil {
			return nil, err
		}
	}
	bits := req.GetMode()
	if bits == 0 {
		bits = 0o644
	}
	info, err := p.write(req.GetData(), req.GetAppend(), fileMode(bits), owner)
	if err != nil {
		return nil, p.fail("write", err)
	}
	return s.g.fileInfo(p.asked, info, ""), nil
}

// write replaces or extends a file. What it replaces keeps mode and owner.
func (p place) write(data []byte, extend bool, mode os.FileMode, owner account) (os.FileInfo, error) {
	uid, gid := int(owner.uid), int(owner.gid)
	old, err := p.Lstat(p.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := p.mustBeRegular("write", old); err != nil {
			return nil, err
		}
		if extend {
			return p.extend(data)
		}
		mode = old.Mode()
		if stat, ok := old.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(stat.Uid), int(stat.Gid)
		}
	}
	return p.replace(data, mode, uid, gid)
}

// replace writes beside the file and renames, so that a reader sees the old file
// or the new one. Nothing is left behind when it fails.
func (p place) replace(data []byte, mode os.FileMode, uid, gid int) (os.FileInfo, error) {
	dir := dirOf(p.name)
	beside := dir + "/.vendetta-" + randomName()
	file, err := p.OpenFile(beside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Chown(uid, gid)
	}
	if err == nil {
		err = file.Chmod(mode) // after chown, which clears set-user-id
	}
	var info os.FileInfo
	if err == nil {
		info, err = file.Stat()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = p.Rename(beside, p.name)
	}
	if err != nil {
		_ = p.Remove(beside)
		return nil, err
	}
	return info, nil
}

// extend appends; bytes of a write that did not succeed whole are taken back.
func (p place) extend(data []byte) (os.FileInfo, error) {
	file, err := p.OpenFile(p.name, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	before, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if err := p.mustBeRegular("write", before); err != nil {
		return nil, err
	}
	if n, err := file.Write(data); err != nil {
		if n > 0 {
			err = errors.Join(err, file.Truncate(before.Size()))
		}
		return nil, err
	}
	return file.Stat()
}
