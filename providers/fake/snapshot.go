package fake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// snapshot is a kept state: a copy of the volume.
type snapshot struct {
	providers.Snapshot
	dir    string
	digest string
}

// kept is the folder of a workspace's snapshots. No workspace has its name.
func (m *Machine) kept(workspace string) string { return filepath.Join(m.dir, ".snapshots", workspace) }

// Snapshot implements providers.Snapshotter. Where snapshot-memory is announced,
// one of a running instance says that it holds memory, which it cannot: a guest
// here is a goroutine, and Restore begins it anew.
func (p *Provider) Snapshot(ctx context.Context, workspace, name string) (providers.Snapshot, error) {
	m := p.machine
	if err := m.enter(ctx, Snapshot, workspace); err != nil {
		return providers.Snapshot{}, err
	}
	i, existing, err := p.snapshotOf(Snapshot, workspace, name)
	switch {
	case err != nil:
		return providers.Snapshot{}, err
	case existing != nil:
		return existing.Snapshot, nil
	case i == nil:
		return providers.Snapshot{}, noInstance(workspace)
	}
	s := &snapshot{
		Snapshot: providers.Snapshot{Name: name, CreatedAt: time.Now()},
		dir:      filepath.Join(m.kept(workspace), name),
	}
	running, err := m.copyHalted(ctx, i, s.dir)
	if err != nil {
		return providers.Snapshot{}, &providers.Error{Message: fmt.Sprintf("snapshot workspace %s: %v", workspace, err), Cause: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Memory = running && m.can(providers.CapabilitySnapshotMemory, Snapshot, workspace) == nil
	s.digest, s.Bytes = i.spec.Digest, size(s.dir)
	m.snapshots[workspace] = append(m.snapshots[workspace], s)
	return s.Snapshot, nil
}

// Snapshots implements providers.Snapshotter.
func (p *Provider) Snapshots(ctx context.Context, workspace string) ([]providers.Snapshot, error) {
	m := p.machine
	if err := m.enter(ctx, Snapshots, workspace); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.can(providers.CapabilitySnapshot, Snapshots, workspace); err != nil {
		return nil, err
	}
	all := []providers.Snapshot{}
	if m.volumes[workspace] != p.options.ServerID {
		return all, nil
	}
	for _, s := range m.snapshots[workspace] {
		all = append(all, s.Snapshot)
	}
	return all, nil
}

// Restore implements providers.Snapshotter.
func (p *Provider) Restore(ctx context.Context, workspace, name string) error {
	m := p.machine
	failure := m.enter(ctx, Restore, workspace)
	i, s, err := p.snapshotOf(Restore, workspace, name)
	switch {
	case err != nil:
		return err
	case i == nil:
		return noInstance(workspace)
	case s == nil:
		return &providers.Error{
			Kind:    providers.ErrNotFound,
			Message: fmt.Sprintf("restore workspace %s: it has no snapshot %s", workspace, name),
			Next:    "list its snapshots",
		}
	}
	m.mu.Lock()
	half := failure != nil && m.half[Restore]
	r := i.run
	m.mu.Unlock()
	if failure != nil && !half {
		return failure
	}
	if r != nil {
		m.end(i, r, "restored")
		r.gone(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if half {
		delete(m.half, Restore)
		i.state, i.message = providers.StateBroken, failure.Error()
		return failure
	}
	if err := replace(ctx, s.dir, m.volume(workspace)); err != nil {
		i.state, i.message = providers.StateBroken, err.Error()
		return &providers.Error{Message: fmt.Sprintf("restore workspace %s: %v", workspace, err), Cause: err}
	}
	i.state, i.message, i.spec.Digest = providers.StateStopped, "restored", s.digest
	if s.Memory {
		m.begin(ctx, i)
	}
	return nil
}

// RemoveSnapshot implements providers.Snapshotter.
func (p *Provider) RemoveSnapshot(ctx context.Context, workspace, name string) error {
	m := p.machine
	if err := m.enter(ctx, RemoveSnapshot, workspace); err != nil {
		return err
	}
	_, s, err := p.snapshotOf(RemoveSnapshot, workspace, name)
	if err != nil || s == nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := os.RemoveAll(s.dir); err != nil {
		return &providers.Error{Message: "remove snapshot: " + err.Error(), Cause: err}
	}
	m.snapshots[workspace] = slices.DeleteFunc(m.snapshots[workspace], func(other *snapshot) bool { return other == s })
	return nil
}

// Fork implements providers.Forker. Where fork-memory is announced the fork of a
// running instance is started, which is all that a goroutine can do.
func (p *Provider) Fork(ctx context.Context, origin string, spec providers.Spec) (providers.Instance, error) {
	m := p.machine
	if err := check(spec); err != nil {
		return providers.Instance{}, err
	}
	failure := m.enter(ctx, Fork, origin)
	m.mu.Lock()
	if err := m.can(providers.CapabilityFork, Fork, origin); err != nil {
		m.mu.Unlock()
		return providers.Instance{}, err
	}
	if m.instances[spec.Workspace] != nil {
		defer m.mu.Unlock()
		return p.make(Fork, spec, failure, nil)
	}
	from, err := p.find(origin)
	m.mu.Unlock()
	if err != nil {
		return providers.Instance{}, err
	}
	spec.Image, spec.Digest = cmp.Or(spec.Image, from.spec.Image), cmp.Or(spec.Digest, from.spec.Digest)
	spec.Network = cmp.Or(spec.Network, from.spec.Network)
	spec.Resources = merge(spec.Resources, from.spec.Resources)
	copied := filepath.Join(m.dir, ".fork-"+spec.Workspace)
	var running bool
	if failure == nil {
		if running, err = m.copyHalted(ctx, from, copied); err != nil {
			return providers.Instance{}, &providers.Error{Message: fmt.Sprintf("fork workspace %s: %v", origin, err), Cause: err}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	made, err := p.make(Fork, spec, failure, func(volume string) error {
		return errors.Join(os.RemoveAll(volume), os.Rename(copied, volume))
	})
	if err != nil {
		return made, errors.Join(err, os.RemoveAll(copied))
	}
	if running && m.can(providers.CapabilityForkMemory, Fork, origin) == nil {
		i := m.instances[spec.Workspace]
		m.begin(ctx, i)
		return m.view(i), nil
	}
	return made, nil
}

// snapshotOf finds this server's instance, nil when there is none, and its
// snapshot of that name, nil when there is none.
func (p *Provider) snapshotOf(operation Operation, workspace, name string) (*instance, *snapshot, error) {
	m := p.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.can(providers.CapabilitySnapshot, operation, workspace); err != nil {
		return nil, nil, err
	}
	if !snapshotName.MatchString(name) {
		return nil, nil, &providers.Error{
			Kind:    providers.ErrInvalid,
			Message: fmt.Sprintf("invalid snapshot name %q", name),
			Next:    "use up to 40 of a-z, 0-9 and dashes inside",
		}
	}
	if m.volumes[workspace] != p.options.ServerID {
		return nil, nil, nil
	}
	i, s := m.instances[workspace], (*snapshot)(nil)
	for _, each := range m.snapshots[workspace] {
		if each.Name == name {
			s = each
		}
	}
	return i, s, nil
}

func noInstance(workspace string) error {
	return &providers.Error{Kind: providers.ErrNotFound, Message: fmt.Sprintf("workspace %s has no instance here", workspace)}
}

// copyHalted copies an instance's volume to a new folder, with the instance
// halted meanwhile, and says whether it was up. After an error the folder is not
// there.
func (m *Machine) copyHalted(ctx context.Context, i *instance, to string) (up bool, err error) {
	m.mu.Lock()
	r, running := i.run, i.state == providers.StateRunning
	if running {
		m.halt(i, r)
	}
	m.mu.Unlock()
	err = replace(ctx, m.volume(i.spec.Workspace), to)
	if running {
		m.goOn(i, r)
	}
	return r != nil, err
}

// replace makes to a copy of the folder from, or leaves it as it is.
func replace(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(to), ".copy")
	if err == nil {
		err = copyTree(ctx, from, fresh)
	}
	if err == nil {
		err = errors.Join(os.RemoveAll(to), os.Rename(fresh, to))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	return nil
}

// copyTree copies folders, files and links. What goes while it looks is left out:
// a guest here cannot be halted, only its processes can.
func copyTree(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if ended := ctx.Err(); ended != nil {
			return ended
		}
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreGone(err)
		}
		target := filepath.Join(to, path[len(from):])
		switch {
		case path == from:
			return nil
		case entry.IsDir():
			return os.Mkdir(target, info.Mode().Perm())
		case entry.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return ignoreGone(err)
			}
			return os.Symlink(link, target) //nolint:gosec // the target is a new folder that only this call knows
		case entry.Type().IsRegular():
			return copyFile(path, target, info.Mode().Perm())
		}
		return nil // sockets and pipes are made anew by who needs them
	})
}

func copyFile(from, to string, mode fs.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// size of a tree's files.
func size(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if info, err := entry.Info(); err == nil {
				bytes += info.Size()
			}
		}
		return nil
	})
	return bytes
}
