//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// Create prepares the folders of an instance and of its volume.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	if err := p.check(spec); err != nil {
		return none, err
	}
	ws := spec.Workspace
	if err := ctx.Err(); err != nil {
		return none, failed("create", ws, err)
	}
	switch r, err := p.load(ws); {
	case err == nil && r.Ready:
		return p.Inspect(ctx, ws)
	case err == nil: // half-made by an earlier call
		if err := p.trash.Discard(p.instanceDir(ws)); err != nil {
			return none, failed("create", ws, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return none, failed("create", ws, err)
	}
	fresh, err := p.makeVolume(ws)
	if err != nil {
		return none, failed("create", ws, err)
	}
	if err := p.makeInstance(spec); err != nil {
		err = errors.Join(err, p.trash.Discard(p.instanceDir(ws)))
		if fresh {
			err = errors.Join(err, p.trash.Discard(p.volumeDir(ws)))
		}
		return none, failed("create", ws, err)
	}
	return p.Inspect(ctx, ws)
}

func (p *Provider) check(spec providers.Spec) error {
	if err := checkID("create", spec.Workspace); err != nil {
		return err
	}
	because := func(kind error, next, format string, args ...any) error {
		return &providers.Error{
			Kind: kind, Next: next,
			Message: fmt.Sprintf("create native workspace %s: ", spec.Workspace) + fmt.Sprintf(format, args...),
		}
	}
	refuse := func(next, format string, args ...any) error {
		return because(providers.ErrInvalid, next, format, args...)
	}
	if spec.Image != "" {
		return refuse("leave the image out, or use --provider docker",
			"the native provider uses the node's own system and takes no image (%q)", spec.Image)
	}
	switch spec.Network {
	case "", providers.NetworkPrivate, providers.NetworkNone, providers.NetworkHost:
	default:
		return refuse("use private, none or host", "there is no network %q", spec.Network)
	}
	r := spec.Resources
	if r.CPUs < 0 || r.MemoryBytes < 0 || r.PIDs < 0 || r.DiskBytes < 0 {
		return refuse("", "a limit is negative")
	}
	if r.DiskBytes > 0 {
		return because(providers.ErrUnsupported, "leave the disk limit out, or use --provider qemu", "a native workspace shares the node's file system, which has no limit for it")
	}
	if spec.Privileged {
		return because(providers.ErrUnsupported, "leave privileged out, or use --provider lxc", "native workspaces are never privileged")
	}
	if strings.ContainsAny(spec.Name, "\x00\n /") || len(spec.Name) > 64 {
		return refuse("", "%q is no host name", spec.Name)
	}
	return nil
}

// makeInstance builds the instance's folders. The record comes first, in one
// rename with the folder, and says that the rest is missing; so a call that dies
// leaves something that List shows.
func (p *Provider) makeInstance(spec providers.Spec) error {
	dir := p.instanceDir(spec.Workspace)
	r := record{
		Labels: map[string]string{
			providers.LabelServer:     p.server,
			providers.LabelWorkspace:  spec.Workspace,
			providers.LabelGeneration: strconv.FormatInt(spec.Generation, 10),
		},
		Name:      spec.Name,
		Resources: spec.Resources,
		Network:   spec.Network,
	}
	if r.Network == "" {
		r.Network = providers.NetworkPrivate
	}
	if r.Resources.PIDs == 0 {
		r.Resources.PIDs = DefaultPIDs
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(p.dir, "new-*")
	if err != nil {
		return err
	}
	if err := errors.Join(host.Write(filepath.Join(fresh, recordFile), r)); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	if err := os.Rename(fresh, dir); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	v, err := p.volume(spec.Workspace)
	if err != nil {
		return err
	}
	for _, d := range []struct {
		path  string
		mode  fs.FileMode
		owner bool
	}{
		{"link", 0o755, false},
		{"root", 0o755, true},
		{"root/home", 0o755, true},
		{"root/root", 0o700, true},
		{"root/tmp", 0o1777, true},
		{"root/var", 0o755, true},
		{"root/var/tmp", 0o1777, true},
		{"etc", 0o755, true},
		{"etc/upper", 0o755, true},
		{"etc/work", 0o755, true},
	} {
		if err := p.makeDir(filepath.Join(dir, d.path), d.mode, v, d.owner); err != nil {
			return err
		}
	}
	r.Ready = true
	return host.Write(filepath.Join(dir, recordFile), r)
}

// makeDir makes one folder that nobody else can reach yet. owned ones are the
// instance's root's.
func (p *Provider) makeDir(path string, mode fs.FileMode, v volume, owned bool) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if owned && p.machine.root {
		if err := os.Lchown(path, int(v.IDBase), int(v.IDBase)); err != nil {
			return err
		}
	}
	perm := mode.Perm()
	if mode&0o1000 != 0 {
		perm |= fs.ModeSticky
	}
	return os.Chmod(path, perm)
}

// makeVolume makes the workspace's own folders where there are none, and says
// whether it did. A volume that stands is kept as it is, ids included.
func (p *Provider) makeVolume(ws string) (fresh bool, err error) {
	dir := p.volumeDir(ws)
	release, err := p.lock()
	if err != nil {
		return false, err
	}
	defer release()
	if _, err := p.volume(ws); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := p.trash.Discard(dir); err != nil { // half-made: the state folder comes last
		return false, err
	}
	v := volume{}
	if p.machine.root {
		if v.IDBase, err = p.freeIDs(ws); err != nil {
			return false, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	err = p.makeDir(filepath.Join(dir, "workspace"), 0o755, v, true)
	if err == nil {
		err = p.makeDir(filepath.Join(dir, "state"), 0o700, v, true)
	}
	if err != nil {
		return false, errors.Join(err, p.trash.Discard(dir))
	}
	return true, nil
}

// volume is what the files of a workspace say of themselves.
type volume struct {
	// IDBase is the first id of the workspace's range, under a root agent.
	IDBase uint32
}

// volume tells which ids a workspace has by who owns its folders: that cannot get
// lost, and a workspace can give them to ids of its own range alone.
func (p *Provider) volume(ws string) (volume, error) {
	path := filepath.Join(p.volumeDir(ws), "state")
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return volume{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	m := p.machine
	if !m.root {
		return volume{}, nil
	}
	if st.Uid < m.idBase || (st.Uid-m.idBase)/idsPerInstance >= m.idSlots {
		return volume{}, &providers.Error{
			Message: fmt.Sprintf("the volume of native workspace %s belongs to user %d, which is outside of root's range of ids", ws, st.Uid),
			Next:    "restore root's entry in /etc/subuid, or run the node agent as that user",
		}
	}
	return volume{IDBase: st.Uid - (st.Uid-m.idBase)%idsPerInstance}, nil
}

// freeIDs picks a range that no other volume has. It starts where the
// workspace's id hashes to, so that providers of other servers, whose folders
// are not looked at, hardly ever pick the same. The caller holds the lock.
func (p *Provider) freeIDs(ws string) (uint32, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	used := map[uint32]bool{}
	for _, e := range entries {
		if v, err := p.volume(e.Name()); err == nil {
			used[v.IDBase] = true
		}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.server + "/" + ws)) // never fails
	first := h.Sum32() % p.machine.idSlots
	for i := range p.machine.idSlots {
		base := p.machine.idBase + (first+i)%p.machine.idSlots*idsPerInstance
		if !used[base] {
			return base, nil
		}
	}
	return 0, &providers.Error{
		Kind:    providers.ErrExhausted,
		Message: fmt.Sprintf("create native workspace %s: all %d ranges of user ids are in use", ws, p.machine.idSlots),
		Next:    "give root a larger range in /etc/subuid, or remove workspaces",
	}
}
