//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/tree"
)

var _ providers.Snapshotter = (*Provider)(nil)

// kept is snapshot.json: a snapshot, and what an instance must be to take it.
type kept struct {
	CreatedAt time.Time
	// Memory: stateDisk holds the machine's memory.
	Memory bool
	// Instance as it was; for one with memory the limits it ran with.
	Instance record
}

const (
	snapshotFile = "snapshot.json"
	// stateDisk is a qcow2 without content; the memory is its internal snapshot.
	stateDisk = "state.qcow2"
	// stateTag names that.
	stateTag = "memory"
)

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func (p *Provider) snapshotsDir(ws string) string { return filepath.Join(p.volumeDir(ws), "snapshots") }
func (p *Provider) snapshotDir(ws, name string) string {
	return filepath.Join(p.snapshotsDir(ws), name)
}

// snapshotHolder is the name under which a snapshot keeps its image.
func (p *Provider) snapshotHolder(ws, name string) string { return p.holder(ws) + "-snapshot-" + name }

func checkSnapshot(op, ws, name string) error {
	if err := checkID(op, ws); err != nil {
		return err
	}
	if !snapshotName.MatchString(name) {
		return invalid("use letters, digits and dashes, at most 40", "%s qemu workspace %s: %q is no name of a snapshot", op, ws, name)
	}
	return nil
}

// Snapshot copies the machine's disks while it is halted, and has QEMU save the
// memory of one that runs.
func (p *Provider) Snapshot(ctx context.Context, ws, name string) (providers.Snapshot, error) {
	none := providers.Snapshot{}
	if err := checkSnapshot("snapshot", ws, name); err != nil {
		return none, err
	}
	r, err := p.ready("snapshot", ws)
	if err != nil {
		return none, err
	}
	if k, err := p.kept(ws, name); err == nil {
		return p.describe(ws, name, k), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return none, failed("snapshot", ws, err)
	}
	if err := ctx.Err(); err != nil {
		return none, failed("snapshot", ws, err)
	}
	dir := p.snapshotDir(ws, ".new")
	if err := discard(dir); err != nil {
		return none, failed("snapshot", ws, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return none, failed("snapshot", ws, err)
	}
	k := kept{CreatedAt: time.Now(), Instance: r}
	err = p.copyInto(ctx, ws, dir, &k)
	if err == nil {
		err = p.opts.Images.Hold(r.Digest, p.snapshotHolder(ws, name))
	}
	if err == nil {
		err = host.Write(filepath.Join(dir, snapshotFile), k)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = tree.Flush(dir) // it is whole by its name, whatever happens to the machine
	}
	if err == nil {
		err = os.Rename(dir, p.snapshotDir(ws, name))
	}
	if err != nil {
		return none, failed("snapshot", ws, errors.Join(err, discard(dir), p.opts.Images.Release(p.snapshotHolder(ws, name))))
	}
	return p.describe(ws, name, k), nil
}

// copyInto copies the disks, and the memory where there is some, into dir.
func (p *Provider) copyInto(ctx context.Context, ws, dir string, k *kept) error {
	return p.halted(ctx, ws, func(running bool, last run) error {
		if running {
			k.Memory = true
			k.Instance.Resources.CPUs, k.Instance.Resources.MemoryBytes = last.Resources.CPUs, last.Resources.MemoryBytes
			if err := p.saveMemory(ctx, ws, filepath.Join(dir, stateDisk)); err != nil {
				return err
			}
		}
		return p.copyDisks(ctx, ws, filepath.Join(dir, rootDisk), filepath.Join(dir, volumeDisk))
	})
}

func (p *Provider) copyDisks(ctx context.Context, ws, root, volume string) error {
	if err := copyFile(ctx, filepath.Join(p.instanceDir(ws), rootDisk), root); err != nil {
		return err
	}
	return copyFile(ctx, filepath.Join(p.volumeDir(ws), volumeDisk), volume)
}

// halted does something while the machine stands still and its disks are
// written. running says that it ran; it runs on afterwards, whatever happens.
func (p *Provider) halted(ctx context.Context, ws string, do func(running bool, last run) error) (err error) {
	last, err := p.run(ws)
	if err != nil {
		return err
	}
	if !last.Alive() {
		return do(false, last)
	}
	state, err := p.state(ctx, ws)
	if err != nil {
		return err
	}
	if state != providers.StateRunning {
		return do(false, last)
	}
	clean := context.WithoutCancel(ctx)
	defer func() {
		if cerr := p.cont(clean, ws); cerr != nil {
			err = errors.Join(err, cerr)
			return
		}
		p.tellTime(clean, ws)
	}()
	// Halting is not called off: a word that was given up may be heard later.
	if err := p.command(clean, ws, "stop", nil, nil); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return do(true, last)
}

// cont lets a machine go on and sees that it does.
func (p *Provider) cont(ctx context.Context, ws string) error {
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	return p.await(ctx, ws, func(s string) (bool, error) {
		if stateOf(s) == providers.StateRunning {
			return true, nil
		}
		if stateOf(s) == providers.StateStopped {
			return false, fmt.Errorf("the virtual machine has ended: %s", s)
		}
		return false, p.command(ctx, ws, "cont", nil, nil)
	})
}

// saveMemory has QEMU write the memory of a halted machine into a new disk.
func (p *Provider) saveMemory(ctx context.Context, ws, path string) (err error) {
	if err := qemuImg(ctx, "create", "-q", "-f", "qcow2", path, "64K"); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// A job that was begun is waited for: it cannot be called off.
	clean := context.WithoutCancel(ctx)
	err = p.talk(clean, ws, func(m *monitor) error {
		var set struct {
			ID int `json:"fdset-id"`
		}
		if err := m.send("add-fd", nil, f, &set); err != nil {
			return err
		}
		return m.do("blockdev-add", stateNode(fmt.Sprintf("/dev/fdset/%d", set.ID)), nil)
	})
	if err != nil {
		return err
	}
	err = p.job(clean, ws, "snapshot-save", map[string]any{"tag": stateTag, "vmstate": nodeState, "devices": []string{nodeState}})
	return errors.Join(err, p.command(clean, ws, "blockdev-del", map[string]any{"node-name": nodeState}, nil))
}

// job runs a command that goes on by itself and waits for its end.
func (p *Provider) job(ctx context.Context, ws, command string, arguments map[string]any) error {
	arguments["job-id"] = command
	if err := p.command(ctx, ws, command, arguments, nil); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var jobs []struct {
			ID     string `json:"id"`
			Status string `json:"status"`
			Error  string `json:"error"`
		}
		if err := p.command(ctx, ws, "query-jobs", nil, &jobs); err != nil {
			return err
		}
		for _, j := range jobs {
			if j.ID != command || j.Status != "concluded" {
				continue
			}
			err := p.command(ctx, ws, "job-dismiss", map[string]any{"id": command}, nil)
			if j.Error != "" {
				err = errors.Join(fmt.Errorf("%s: %s", command, j.Error), err)
			}
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *Provider) kept(ws, name string) (kept, error) {
	var k kept
	err := host.Read(filepath.Join(p.snapshotDir(ws, name), snapshotFile), &k)
	if err == nil && k.Instance.Labels[providers.LabelServer] != p.server {
		err = fs.ErrNotExist
	}
	return k, err
}

func (p *Provider) describe(ws, name string, k kept) providers.Snapshot {
	dir := p.snapshotDir(ws, name)
	return providers.Snapshot{
		Name: name, CreatedAt: k.CreatedAt, Memory: k.Memory,
		Bytes: allocated(filepath.Join(dir, rootDisk), filepath.Join(dir, volumeDisk), filepath.Join(dir, stateDisk)),
	}
}

// Snapshots returns those of a workspace, the oldest first.
func (p *Provider) Snapshots(_ context.Context, ws string) ([]providers.Snapshot, error) {
	if err := checkID("list the snapshots of", ws); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.snapshotsDir(ws))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failed("list the snapshots of", ws, err)
	}
	var all []providers.Snapshot
	for _, e := range entries {
		if !snapshotName.MatchString(e.Name()) {
			continue
		}
		k, err := p.kept(ws, e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, failed("list the snapshots of", ws, err)
		}
		all = append(all, p.describe(ws, e.Name(), k))
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].CreatedAt.Before(all[j].CreatedAt) })
	return all, nil
}

// RemoveSnapshot removes one; an absent one is success.
func (p *Provider) RemoveSnapshot(_ context.Context, ws, name string) error {
	if err := checkSnapshot("remove a snapshot of", ws, name); err != nil {
		return err
	}
	if _, err := p.kept(ws, name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	gone := p.snapshotDir(ws, ".gone-"+name)
	err := discard(gone)
	if err == nil {
		err = os.Rename(p.snapshotDir(ws, name), gone)
	}
	if err == nil {
		err = errors.Join(discard(gone), p.opts.Images.Release(p.snapshotHolder(ws, name)))
	}
	return failed("remove a snapshot of", ws, err)
}

// releaseSnapshots lets go of the images of all that are kept of a workspace, which
// are about to be removed.
func (p *Provider) releaseSnapshots(ws string) error {
	entries, err := os.ReadDir(p.snapshotsDir(ws))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if snapshotName.MatchString(e.Name()) {
			err = errors.Join(err, p.opts.Images.Release(p.snapshotHolder(ws, e.Name())))
		}
	}
	return err
}

// Restore puts copies of a snapshot's disks in place of the machine's, and has one
// with memory go on from it.
func (p *Provider) Restore(ctx context.Context, ws, name string) error {
	if err := checkSnapshot("restore", ws, name); err != nil {
		return err
	}
	r, err := p.load(ws)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound("restore", ws)
	}
	if err == nil && !r.Ready {
		_, err = p.ready("restore", ws)
	}
	if err != nil {
		return failed("restore", ws, err)
	}
	k, err := p.kept(ws, name)
	if errors.Is(err, fs.ErrNotExist) {
		return &providers.Error{
			Kind:    providers.ErrNotFound,
			Message: fmt.Sprintf("restore qemu workspace %s: there is no snapshot %s", ws, name),
			Next:    "vendetta workspace snapshot list",
		}
	}
	if err != nil {
		return failed("restore", ws, err)
	}
	return failed("restore", ws, p.restore(ctx, ws, r, name, k))
}

func (p *Provider) restore(ctx context.Context, ws string, r record, name string, k kept) (err error) {
	from := p.snapshotDir(ws, name)
	// First what may fail, beside the machine's own.
	fresh := disks{root: filepath.Join(p.instanceDir(ws), "restored-"+rootDisk), volume: filepath.Join(p.volumeDir(ws), "restored-"+volumeDisk)}
	defer func() {
		for _, path := range []string{fresh.root, fresh.volume} {
			if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	for _, c := range []struct{ from, to string }{
		{filepath.Join(from, rootDisk), fresh.root}, {filepath.Join(from, volumeDisk), fresh.volume},
	} {
		if err := os.Remove(c.to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := copyFile(ctx, c.from, c.to); err != nil {
			return err
		}
	}
	if err := p.opts.Images.Hold(k.Instance.Digest, p.holder(ws)); err != nil {
		return err
	}
	last, err := p.run(ws)
	if err != nil {
		return err
	}
	if err := p.end(ctx, ws, last); err != nil {
		return err
	}
	// From here on it is broken until all is in place.
	r = p.asKept(r, k, name)
	if err := p.save(ws, r); err != nil {
		return err
	}
	if err := os.Rename(fresh.root, filepath.Join(p.instanceDir(ws), rootDisk)); err != nil {
		return err
	}
	if err := os.Rename(fresh.volume, filepath.Join(p.volumeDir(ws), volumeDisk)); err != nil {
		return err
	}
	if k.Memory {
		running := r
		running.Resources.CPUs, running.Resources.MemoryBytes = k.Instance.Resources.CPUs, k.Instance.Resources.MemoryBytes
		running.Network = k.Instance.Network
		if err := p.goOn(ctx, ws, running, filepath.Join(from, stateDisk)); err != nil {
			return err
		}
	}
	r.Restoring = ""
	return p.save(ws, r)
}

// asKept is an instance's record with what its disks say of it.
func (p *Provider) asKept(r record, k kept, name string) record {
	r.Restoring = name
	r.Image, r.Digest, r.Disk, r.BaseFormat = k.Instance.Image, k.Instance.Digest, k.Instance.Disk, k.Instance.BaseFormat
	r.Env, r.User = k.Instance.Env, k.Instance.User
	r.Resources.DiskBytes = k.Instance.Resources.DiskBytes
	return r
}

// goOn starts a machine that goes on from a saved memory.
func (p *Provider) goOn(ctx context.Context, ws string, r record, state string) error {
	f, err := os.OpenFile(state, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := p.spawn(ctx, ws, r, start{state: f}); err != nil {
		return err
	}
	err = p.job(ctx, ws, "snapshot-load", map[string]any{"tag": stateTag, "vmstate": nodeState, "devices": []string{nodeState}})
	if err == nil {
		err = p.command(ctx, ws, "blockdev-del", map[string]any{"node-name": nodeState}, nil)
	}
	if err == nil {
		err = p.cont(ctx, ws)
	}
	if err != nil {
		last, rerr := p.run(ws)
		if rerr == nil {
			rerr = p.end(context.WithoutCancel(ctx), ws, last)
		}
		return errors.Join(err, rerr)
	}
	p.tellTime(ctx, ws)
	return nil
}
