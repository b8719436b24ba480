//go:build linux

package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

var (
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Forker      = (*Provider)(nil)
)

// kept is snapshot.json. It is the last file of a snapshot, so one without it is
// half-made, and not seen.
type kept struct {
	CreatedAt time.Time
	Bytes     int64
	// Image and Digest are what upper is an upper layer of.
	Image, Digest string
}

const keptFile = "snapshot.json"

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func (p *Provider) snapshotDir(ws, name string) string {
	return filepath.Join(p.snapshotsDir(ws), name)
}

func (p *Provider) snapshotHolder(ws, name string) string {
	return "lxc-snapshot-" + p.server + "-" + ws + "-" + name
}

func checkSnapshot(op, ws, name string) error {
	if err := checkID(op, ws); err != nil {
		return err
	}
	if snapshotName.MatchString(name) {
		return nil
	}
	return &providers.Error{
		Kind:    providers.ErrInvalid,
		Message: fmt.Sprintf("%s lxc workspace %s: %q is no name of a snapshot", op, ws, name),
		Next:    "use small letters, digits and dashes, at most 40",
	}
}

// snapshot loads one; ErrNotExist when there is none.
func (p *Provider) snapshot(ws, name string) (kept, error) {
	var k kept
	if !p.owns(ws) {
		return k, fs.ErrNotExist
	}
	err := host.Read(filepath.Join(p.snapshotDir(ws, name), keptFile), &k)
	return k, err
}

// owns says whether a workspace is not another server's.
func (p *Provider) owns(ws string) bool {
	_, err := p.load(ws)
	if !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	_, err = os.Lstat(p.instanceDir(ws))
	return errors.Is(err, fs.ErrNotExist)
}

// layers of an instance: where a part lies in it, and in a copy.
func (p *Provider) layers(ws string) map[string]string {
	return map[string]string{
		"upper":     filepath.Join(p.instanceDir(ws), "upper"),
		"workspace": filepath.Join(p.volumeDir(ws), "workspace"),
		"state":     filepath.Join(p.volumeDir(ws), "state"),
	}
}

// parts in the order in which they are copied.
var parts = []string{"upper", "workspace", "state"}

// Snapshot copies the instance's layer and volume while nothing runs in it.
func (p *Provider) Snapshot(ctx context.Context, ws, name string) (providers.Snapshot, error) {
	none := providers.Snapshot{}
	if err := checkSnapshot("snapshot", ws, name); err != nil {
		return none, err
	}
	if k, err := p.snapshot(ws, name); err == nil {
		return k.snapshot(name), nil
	}
	r, err := p.ready("snapshot", ws)
	if err != nil {
		return none, err
	}
	k := kept{CreatedAt: time.Now(), Image: r.Image, Digest: r.Digest}
	dir, holder := p.snapshotDir(ws, name), p.snapshotHolder(ws, name)
	err = p.trash.Discard(dir) // half-made
	if err == nil {
		err = p.images.Hold(r.Digest, holder)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = p.halted(ctx, ws, func() error {
			from := p.layers(ws)
			for _, part := range parts {
				copied, err := tree.Copy(ctx, from[part], filepath.Join(dir, part), nil)
				if err != nil {
					return err
				}
				k.Bytes += copied.Bytes
			}
			return nil
		})
	}
	if err == nil {
		err = tree.Flush(dir) // it is there when its file is, whatever happens to the machine
	}
	if err == nil {
		err = host.Write(filepath.Join(dir, keptFile), k)
	}
	if err != nil {
		return none, failed("snapshot", ws, errors.Join(err, p.trash.Discard(dir), p.images.Release(holder)))
	}
	return k.snapshot(name), nil
}

func (k kept) snapshot(name string) providers.Snapshot {
	return providers.Snapshot{Name: name, CreatedAt: k.CreatedAt, Bytes: k.Bytes}
}

// Snapshots lists those of a workspace, the oldest first.
func (p *Provider) Snapshots(_ context.Context, ws string) ([]providers.Snapshot, error) {
	if err := checkID("list the snapshots of", ws); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.snapshotsDir(ws))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failed("list the snapshots of", ws, err)
	}
	all := []providers.Snapshot{}
	for _, e := range entries {
		if k, err := p.snapshot(ws, e.Name()); err == nil {
			all = append(all, k.snapshot(e.Name()))
		}
	}
	slices.SortFunc(all, func(a, b providers.Snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, nil
}

// Restore copies a snapshot beside what is there, ends what runs and changes them
// round.
func (p *Provider) Restore(ctx context.Context, ws, name string) error {
	if err := checkSnapshot("restore", ws, name); err != nil {
		return err
	}
	r, err := p.ready("restore", ws)
	if err != nil {
		return err
	}
	k, err := p.snapshot(ws, name)
	if errors.Is(err, fs.ErrNotExist) {
		return &providers.Error{
			Kind:    providers.ErrNotFound,
			Message: fmt.Sprintf("restore lxc workspace %s: there is no snapshot %s", ws, name),
			Next:    "see vendetta workspace snapshot list",
		}
	}
	if err != nil {
		return failed("restore", ws, err)
	}
	return failed("restore", ws, p.restore(ctx, ws, name, r, k))
}

func (p *Provider) restore(ctx context.Context, ws, name string, r record, k kept) error {
	base, err := p.images.Get(ctx, k.Image, k.Digest, p.holder(ws))
	if err != nil {
		return err
	}
	from, to := p.snapshotDir(ws, name), p.layers(ws)
	fresh := func(part string) string { return to[part] + ".new" }
	for _, part := range parts {
		if err := p.trash.Discard(fresh(part)); err != nil {
			return err
		}
		if _, err := tree.Copy(ctx, filepath.Join(from, part), fresh(part), nil); err != nil {
			for _, part := range parts {
				err = errors.Join(err, p.trash.Discard(fresh(part)))
			}
			return err
		}
	}
	if err := tree.Flush(p.instanceDir(ws)); err != nil {
		return err
	}
	last, err := p.run(ws)
	if err != nil {
		return err
	}
	if err := p.end(ctx, ws, last); err != nil {
		return err
	}
	// From here on the instance is not whole before the last part is there.
	r.Broken = "a restore of its snapshot " + name + " was interrupted"
	path := filepath.Join(p.instanceDir(ws), recordFile)
	if err := host.Write(path, r); err != nil {
		return err
	}
	for _, part := range parts {
		if err := p.trash.Replace(fresh(part), to[part]); err != nil {
			return err
		}
	}
	r.Broken, r.Image, r.Digest, r.User, r.Env = "", k.Image, k.Digest, base.User, environment(base.Env)
	return host.Write(path, r)
}

// RemoveSnapshot of an absent one is success.
func (p *Provider) RemoveSnapshot(_ context.Context, ws, name string) error {
	if err := checkSnapshot("remove a snapshot of", ws, name); err != nil {
		return err
	}
	if !p.owns(ws) {
		return nil
	}
	err := p.trash.Discard(p.snapshotDir(ws, name))
	if err == nil {
		err = p.images.Release(p.snapshotHolder(ws, name))
	}
	_ = os.Remove(p.snapshotsDir(ws)) // with its last one
	return failed("remove a snapshot of", ws, err)
}

func (p *Provider) removeSnapshots(ws string) error {
	entries, err := os.ReadDir(p.snapshotsDir(ws))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, p.images.Release(p.snapshotHolder(ws, e.Name())))
	}
	return errors.Join(err, p.trash.Discard(p.snapshotsDir(ws)))
}

// Fork makes an instance with copies of another one's layer and volume, moved into
// its own range of ids.
func (p *Provider) Fork(ctx context.Context, origin string, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	if err := p.check(spec); err != nil {
		return none, err
	}
	ws := spec.Workspace
	from, err := p.ready("fork", origin)
	if err != nil {
		return none, err
	}
	switch there, err := p.clear(ctx, ws); {
	case err != nil:
		return none, failed("fork", origin, err)
	case there:
		return p.Inspect(ctx, ws)
	}
	r := p.forked(from, spec)
	if r.Digest != from.Digest {
		return none, invalid(ws, "leave the image out", "a fork of %s has its image", origin)
	}
	if r.Privileged != from.Privileged {
		return none, invalid(ws, "", "a fork is privileged where its origin %s is, and only there", origin)
	}
	if err := p.images.Hold(r.Digest, p.holder(ws)); err != nil {
		return none, failed("fork", origin, err)
	}
	// A volume of an earlier instance of this workspace makes way.
	if err := p.trash.Discard(p.volumeDir(ws)); err != nil {
		return none, failed("fork", origin, errors.Join(err, p.images.Release(p.holder(ws))))
	}
	err = p.makeFork(ctx, origin, ws, r)
	if err != nil {
		return none, failed("fork", origin, errors.Join(err, p.undo(ws, true)))
	}
	return p.Inspect(ctx, ws)
}

// forked is the record of a fork: what spec leaves open is origin's.
func (p *Provider) forked(origin record, spec providers.Spec) record {
	r := p.record(spec)
	if spec.Network == "" {
		r.Network = origin.Network
	}
	if spec.Resources.CPUs == 0 {
		r.Resources.CPUs = origin.Resources.CPUs
	}
	if spec.Resources.MemoryBytes == 0 {
		r.Resources.MemoryBytes = origin.Resources.MemoryBytes
	}
	if spec.Resources.PIDs == 0 {
		r.Resources.PIDs = origin.Resources.PIDs
	}
	r.Privileged = spec.Privileged || origin.Privileged
	r.Image, r.Digest, r.User, r.Env = origin.Image, origin.Digest, origin.User, origin.Env
	if spec.Digest != "" {
		r.Digest = spec.Digest
	}
	return r
}

func (p *Provider) makeFork(ctx context.Context, origin, ws string, r record) error {
	from, err := p.volume(origin)
	if err != nil {
		return err
	}
	layers := p.layers(origin)
	shift := func(to volume) *tree.IDs {
		return &tree.IDs{From: from.IDBase, To: to.IDBase, Count: host.IDsPerInstance}
	}
	// The ids are handed out first; a folder that is its root's marks them taken.
	if _, err := p.makeVolume(ws, r.Privileged); err != nil {
		return err
	}
	return p.makeInstance(ws, r, func(v volume) error {
		if err := makeDir(filepath.Join(p.instanceDir(ws), "work"), 0o755, v); err != nil {
			return err
		}
		return p.halted(ctx, origin, func() error {
			to := p.layers(ws)
			for _, part := range parts {
				// Copies go beside what marks the ids, and take its place.
				fresh := to[part] + ".new"
				if _, err := tree.Copy(ctx, layers[part], fresh, shift(v)); err != nil {
					return err
				}
				if err := p.trash.Replace(fresh, to[part]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
