//go:build linux

package native

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

var _ providers.Snapshotter = (*Provider)(nil)

// kept is snapshot.json, beside the trees of a snapshot.
type kept struct {
	Labels        map[string]string
	Image, Digest string
	Created       time.Time
	Bytes         int64
}

const snapshotFile = "snapshot.json"

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func checkName(op, ws, name string) error {
	if err := checkID(op, ws); err != nil {
		return err
	}
	if snapshotName.MatchString(name) {
		return nil
	}
	return &providers.Error{
		Kind:    providers.ErrInvalid,
		Message: fmt.Sprintf("%s: %q is no name of a snapshot", op, name),
		Next:    "use small letters, digits and dashes between them, 40 at most",
	}
}

// part is one of the trees that an instance's state is made of.
type part struct {
	// name in a snapshot.
	name string
	// path in the instance or its volume.
	path string
}

// parts of an instance whose root is made of an image, or of the machine's own.
func (p *Provider) parts(ws string, image bool) []part {
	dir, vol := p.instanceDir(ws), p.volumeDir(ws)
	all := []part{{"workspace", filepath.Join(vol, "workspace")}, {"state", filepath.Join(vol, "state")}}
	if image {
		return append(all, part{"upper", filepath.Join(dir, "upper")})
	}
	return append(all, part{"root", filepath.Join(dir, "root")}, part{"etc", filepath.Join(dir, "etc", "upper")})
}

// snapshot loads one that is kept; ErrNotExist for none and another server's.
func (p *Provider) snapshot(ws, name string) (kept, error) {
	var k kept
	err := host.Read(filepath.Join(p.snapshotsDir(ws), name, snapshotFile), &k)
	if err == nil && k.Labels[providers.LabelServer] != p.server {
		err = fs.ErrNotExist
	}
	return k, err
}

func (k kept) told(name string) providers.Snapshot {
	return providers.Snapshot{Name: name, CreatedAt: k.Created, Bytes: k.Bytes}
}

// Snapshot copies the instance's trees while it is halted. They are built beside
// and appear under their name at once.
func (p *Provider) Snapshot(ctx context.Context, ws, name string) (providers.Snapshot, error) {
	none := providers.Snapshot{}
	if err := checkName("snapshot", ws, name); err != nil {
		return none, err
	}
	r, err := p.ready("snapshot", ws)
	if err != nil {
		return none, err
	}
	if k, err := p.snapshot(ws, name); err == nil {
		return k.told(name), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return none, failed("snapshot", ws, err)
	}
	k, err := p.take(ctx, ws, name, r)
	if err != nil {
		// What the last one would have been is gone, and with it the folder.
		_ = unix.Rmdir(p.snapshotsDir(ws))
		return none, failed("snapshot", ws, err)
	}
	p.log.Info("kept a snapshot", "workspace", ws, "snapshot", name, "bytes", k.Bytes)
	return k.told(name), nil
}

func (p *Provider) take(ctx context.Context, ws, name string, r record) (k kept, err error) {
	dir := p.snapshotsDir(ws)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return k, err
	}
	// What a call left that died.
	stale, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	for _, path := range stale {
		err = errors.Join(err, p.trash.Discard(path))
	}
	if err != nil {
		return k, err
	}
	fresh := filepath.Join(dir, ".new-"+rand.Text())
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return k, err
	}
	holder := p.snapshotHolder(ws, name)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.trash.Discard(fresh))
			if r.Digest != "" {
				err = errors.Join(err, p.images.Release(holder))
			}
		}
	}()
	v, err := p.volume(ws)
	if err != nil {
		return k, err
	}
	if r.Digest != "" {
		if err := p.images.Hold(r.Digest, holder); err != nil {
			return k, err
		}
	}
	k = kept{Labels: r.Labels, Image: r.Image, Digest: r.Digest, Created: time.Now()}
	if k.Bytes, err = p.copyHeld(ctx, ws, r, fresh, v.IDBase, v.IDBase); err != nil {
		return k, err
	}
	if err := host.Write(filepath.Join(fresh, snapshotFile), k); err != nil {
		return k, err
	}
	if err := tree.Flush(fresh); err != nil {
		return k, err
	}
	return k, os.Rename(fresh, filepath.Join(dir, name))
}

// copyHeld copies all parts of an instance, as they are in one moment, into the
// folder to.
func (p *Provider) copyHeld(ctx context.Context, ws string, r record, to string, fromBase, toBase uint32) (bytes int64, err error) {
	letGo, err := p.hold(ctx, ws)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, letGo()) }()
	for _, part := range p.parts(ws, r.Digest != "") {
		done, err := p.copyTree(ctx, part.path, filepath.Join(to, part.name), fromBase, toBase)
		if err != nil {
			return 0, err
		}
		bytes += done.Bytes
	}
	return bytes, nil
}

// copyTree copies one tree of the range fromBase into the range toBase.
func (p *Provider) copyTree(ctx context.Context, from, to string, fromBase, toBase uint32) (tree.Copied, error) {
	var ids *tree.IDs
	if p.machine.root {
		ids = &tree.IDs{From: fromBase, To: toBase, Count: idsPerInstance}
	}
	return tree.Copy(ctx, from, to, ids)
}

// Snapshots lists what is kept of a workspace.
func (p *Provider) Snapshots(_ context.Context, ws string) ([]providers.Snapshot, error) {
	if err := checkID("list snapshots", ws); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.snapshotsDir(ws))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failed("list snapshots", ws, err)
	}
	var all []providers.Snapshot
	for _, e := range entries {
		if !snapshotName.MatchString(e.Name()) {
			continue
		}
		k, err := p.snapshot(ws, e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, failed("list snapshots", ws, err)
		}
		all = append(all, k.told(e.Name()))
	}
	slices.SortFunc(all, func(a, b providers.Snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, nil
}

// RemoveSnapshot removes one.
func (p *Provider) RemoveSnapshot(_ context.Context, ws, name string) error {
	if err := checkName("remove snapshot", ws, name); err != nil {
		return err
	}
	dir := filepath.Join(p.snapshotsDir(ws), name)
	_, err := p.snapshot(ws, name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(dir); err == nil {
			return nil // another server's
		}
	}
	err = p.trash.Discard(dir)
	if err == nil && p.images != nil {
		err = p.images.Release(p.snapshotHolder(ws, name))
	}
	_ = unix.Rmdir(p.snapshotsDir(ws)) // when it was the last
	return failed("remove snapshot", ws, err)
}

// discardSnapshots removes all that are kept of a workspace.
func (p *Provider) discardSnapshots(ws string) error {
	dir := p.snapshotsDir(ws)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if k, err := p.snapshot(ws, e.Name()); err == nil && k.Digest != "" {
			if err := p.images.Release(p.snapshotHolder(ws, e.Name())); err != nil {
				return err
			}
		}
	}
	return p.trash.Discard(dir)
}
