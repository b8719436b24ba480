//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

// Restore copies the snapshot's trees beside the instance's, ends it, and
// exchanges them. Only between the first exchange and the last is the instance
// neither what it was nor what it becomes; its record says so meanwhile.
func (p *Provider) Restore(ctx context.Context, ws, name string) error {
	if err := checkName("restore", ws, name); err != nil {
		return err
	}
	r, err := p.load(ws)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notFound("restore", ws)
	case err != nil:
		return failed("restore", ws, err)
	}
	if r.Restoring == "" {
		if r, err = p.ready("restore", ws); err != nil {
			return err
		}
	}
	k, err := p.snapshot(ws, name)
	if errors.Is(err, fs.ErrNotExist) {
		return &providers.Error{
			Kind:    providers.ErrNotFound,
			Message: fmt.Sprintf("restore native workspace %s: there is no snapshot %s", ws, name),
			Next:    "list them with vendetta workspace snapshot list",
		}
	}
	if err != nil {
		return failed("restore", ws, err)
	}
	fresh := filepath.Join(p.instanceDir(ws), "restore")
	err = p.restore(ctx, ws, name, r, k, fresh)
	err = errors.Join(err, p.trash.Discard(fresh))
	if err == nil {
		p.log.Info("restored a snapshot", "workspace", ws, "snapshot", name)
	}
	return failed("restore", ws, err)
}

func (p *Provider) restore(ctx context.Context, ws, name string, r record, k kept, fresh string) error {
	if err := p.trash.Discard(fresh); err != nil { // of a call that died
		return err
	}
	if _, err := p.makeVolume(ws); err != nil {
		return err
	}
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	from := filepath.Join(p.snapshotsDir(ws), name)
	fromBase, err := p.idsOf(filepath.Join(from, "state"), ws)
	if err != nil {
		return err
	}
	image := k.Digest != ""
	// The layers' folders but for what is copied into them.
	if err := p.makeLayers(fresh, v, image, true); err != nil {
		return err
	}
	for _, part := range p.parts(ws, image) {
		to := filepath.Join(fresh, part.name)
		if part.name == "etc" {
			to = filepath.Join(fresh, "etc", "upper")
		}
		if _, err := p.copyTree(ctx, filepath.Join(from, part.name), to, fromBase, v.IDBase); err != nil {
			return err
		}
	}
	if image {
		if err := p.images.Hold(k.Digest, p.holder(ws)); err != nil {
			return err
		}
	}
	if err := tree.Flush(fresh); err != nil {
		return err
	}
	last, err := p.run(ws)
	if err != nil {
		return err
	}
	if err := p.end(ctx, ws, last); err != nil {
		return err
	}
	path := filepath.Join(p.instanceDir(ws), recordFile)
	r.Restoring = name
	if err := host.Write(path, r); err != nil {
		return err
	}
	for _, layer := range []part{
		{"workspace", filepath.Join(p.volumeDir(ws), "workspace")},
		{"state", filepath.Join(p.volumeDir(ws), "state")},
		{"root", filepath.Join(p.instanceDir(ws), "root")},
		{"etc", filepath.Join(p.instanceDir(ws), "etc")},
		{"upper", filepath.Join(p.instanceDir(ws), "upper")},
		{"work", filepath.Join(p.instanceDir(ws), "work")},
	} {
		if err := exchange(filepath.Join(fresh, layer.name), layer.path); err != nil {
			return err
		}
	}
	was := r.Digest
	r.Image, r.Digest, r.Restoring = k.Image, k.Digest, ""
	if err := host.Write(path, r); err != nil {
		return err
	}
	if was == "" || was == k.Digest {
		return nil
	}
	if err := p.release(ws); err != nil || !image {
		return err
	}
	return p.images.Hold(k.Digest, p.holder(ws))
}

// exchange puts what lies at fresh in the place of old, and old where fresh was.
// Either may be missing.
func exchange(fresh, old string) error {
	_, freshErr := os.Lstat(fresh)
	_, oldErr := os.Lstat(old)
	missing := func(err error) bool { return errors.Is(err, fs.ErrNotExist) }
	switch {
	case missing(freshErr) && missing(oldErr):
		return nil
	case missing(freshErr):
		return os.Rename(old, fresh)
	case missing(oldErr):
		return os.Rename(fresh, old)
	}
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, old, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on this file system
		return errors.Join(os.Rename(old, fresh+".old"), os.Rename(fresh, old))
	}
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: fresh, New: old, Err: err}
	}
	return nil
}
