//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// Create prepares the folders of an instance and of its volume.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	if err := p.check("create", spec); err != nil {
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
		if err := p.sweep(ws); err != nil {
			return none, failed("create", ws, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return none, failed("create", ws, err)
	}
	if err := p.create(ctx, spec); err != nil {
		return none, failed("create", ws, err)
	}
	return p.Inspect(ctx, ws)
}

func (p *Provider) create(ctx context.Context, spec providers.Spec) error {
	ws := spec.Workspace
	var img *image.Image
	r := p.newRecord(spec)
	if spec.Image != "" {
		got, err := p.images.Get(ctx, spec.Image, spec.Digest, p.holder(ws))
		if err != nil {
			return also(badImage(err), p.release(ws))
		}
		img, r.Digest = &got, got.Digest
	}
	fresh, err := p.makeVolume(ws)
	if err == nil {
		err = p.makeInstance(ws, r, img)
	}
	if err != nil {
		return also(err, p.abandon(ws, fresh))
	}
	return nil
}

// badImage says of a reference that is none that it is no image.
func badImage(err error) error {
	var own *providers.Error
	if errors.As(err, &own) && errors.Is(own.Kind, providers.ErrInvalid) {
		return &providers.Error{Kind: providers.ErrImage, Message: own.Message, Next: own.Next, Cause: err}
	}
	return err
}

func (p *Provider) check(op string, spec providers.Spec) error {
	if err := checkID(op, spec.Workspace); err != nil {
		return err
	}
	refuse := func(kind error, next, format string, args ...any) error {
		return &providers.Error{
			Kind: kind, Next: next,
			Message: fmt.Sprintf("%s native workspace %s: ", op, spec.Workspace) + fmt.Sprintf(format, args...),
		}
	}
	switch spec.Network {
	case "", providers.NetworkPrivate, providers.NetworkNone, providers.NetworkHost:
	default:
		return refuse(providers.ErrInvalid, "use private, none or host", "there is no network %q", spec.Network)
	}
	switch {
	case spec.Image != "" && p.images == nil:
		return refuse(providers.ErrInvalid, "leave the image out", "this node agent keeps no images")
	case image.IsDisk(spec.Image):
		return refuse(providers.ErrInvalid, "name a container image, or use provider qemu", "%q is a disk image", spec.Image)
	case spec.Checksum != "":
		return refuse(providers.ErrInvalid, "pin a container image by its digest: NAME@sha256:...", "a checksum is for disk images that are fetched by their address")
	case spec.Privileged:
		return refuse(providers.ErrUnsupported, "leave privileged out, or use provider lxc with it", "native workspaces are never privileged")
	case strings.ContainsAny(spec.Name, "\x00\n /") || len(spec.Name) > 64:
		return refuse(providers.ErrInvalid, "", "%q is no host name", spec.Name)
	}
	return p.checkResources(op, spec.Workspace, spec.Resources)
}

// checkResources refuses limits that nothing here would hold an instance to.
func (p *Provider) checkResources(op, ws string, r providers.Resources) error {
	e := &providers.Error{Kind: providers.ErrUnsupported, Message: fmt.Sprintf("%s native workspace %s: ", op, ws)}
	switch {
	case !(r.CPUs >= 0) || r.MemoryBytes < 0 || r.PIDs < 0 || r.DiskBytes < 0:
		e.Kind = providers.ErrInvalid
		e.Message += "a limit is negative"
	case r.DiskBytes > 0:
		e.Message += "it shares the node's file system, which has no limit for it"
		e.Next = "leave the disk limit out, or use provider qemu with it"
	case r.CPUs > 0 && !p.machine.limits()["cpu"]:
		e.Message += "nothing here can limit its processors"
		e.Next = "leave the number of cpus out, or run the node agent as root"
	default:
		return nil
	}
	return e
}

// newRecord is what spec says, with defaults.
func (p *Provider) newRecord(spec providers.Spec) record {
	r := record{
		Labels: map[string]string{
			providers.LabelServer:     p.server,
			providers.LabelWorkspace:  spec.Workspace,
			providers.LabelGeneration: strconv.FormatInt(spec.Generation, 10),
		},
		Name:      spec.Name,
		Image:     spec.Image,
		Resources: spec.Resources,
		Network:   spec.Network,
	}
	if r.Network == "" {
		r.Network = providers.NetworkPrivate
	}
	if r.Resources.PIDs == 0 {
		r.Resources.PIDs = DefaultPIDs
	}
	return r
}

// beginInstance makes the instance's folder and its record, which says that the
// rest is missing, in one rename; so a call that dies leaves something that List
// shows.
func (p *Provider) beginInstance(ws string, r record) error {
	dir := p.instanceDir(ws)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(p.dir, "new-*")
	if err != nil {
		return err
	}
	err = host.Write(filepath.Join(fresh, recordFile), r)
	if err == nil {
		err = os.Rename(fresh, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	return nil
}

// makeInstance builds the instance's folders.
func (p *Provider) makeInstance(ws string, r record, img *image.Image) error {
	if err := p.beginInstance(ws, r); err != nil {
		return err
	}
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	dir := p.instanceDir(ws)
	if err := p.makeDir(filepath.Join(dir, "link"), 0o755, v, false); err != nil {
		return err
	}
	if err := p.makeLayers(dir, v, img != nil, false); err != nil {
		return err
	}
	if img != nil {
		if err := p.giveProject(ws, *img, v); err != nil {
			return err
		}
	}
	r.Ready = true
	return host.Write(filepath.Join(dir, recordFile), r)
}

// makeLayers makes the folders below dir in which an instance keeps what it
// changes; with bare set only those around what is then copied.
func (p *Provider) makeLayers(dir string, v volume, image, bare bool) error {
	for _, d := range []struct {
		path        string
		mode        fs.FileMode
		image, bare bool
	}{
		{"root", 0o755, false, false},
		{"root/home", 0o755, false, false},
		{"root/root", 0o700, false, false},
		{"root/tmp", 0o1777, false, false},
		{"root/var", 0o755, false, false},
		{"root/var/tmp", 0o1777, false, false},
		{"etc", 0o755, false, true},
		{"etc/upper", 0o755, false, false},
		{"etc/work", 0o755, false, true},
		{"upper", 0o755, true, false},
		{"work", 0o755, true, true},
	} {
		if d.image != image || bare && !d.bare {
			continue
		}
		if err := p.makeDir(filepath.Join(dir, d.path), d.mode, v, true); err != nil {
			return err
		}
	}
	return nil
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
	base, err := p.idsOf(filepath.Join(p.volumeDir(ws), "state"), ws)
	return volume{IDBase: base}, err
}

// idsOf is the first id of the range that a folder of a workspace belongs to.
func (p *Provider) idsOf(path, ws string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	m := p.machine
	if !m.root {
		return 0, nil
	}
	if st.Uid < m.idBase || (st.Uid-m.idBase)/idsPerInstance >= m.idSlots {
		return 0, &providers.Error{
			Message: fmt.Sprintf("the volume of native workspace %s belongs to user %d, which is outside of root's range of ids", ws, st.Uid),
			Next:    "restore root's entry in /etc/subuid, or run the node agent as that user",
		}
	}
	return st.Uid - (st.Uid-m.idBase)%idsPerInstance, nil
}

// freeIDs picks a range that no other volume has. The caller holds the lock.
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
	ids := host.IDs{Base: p.machine.idBase, Slots: p.machine.idSlots}
	if base, ok := ids.Pick(p.server+"/"+ws, used, ids.Taken(host.Volumes(p.dir))); ok {
		return base, nil
	}
	return 0, &providers.Error{
		Kind:    providers.ErrExhausted,
		Message: fmt.Sprintf("create native workspace %s: all %d ranges of user ids are in use", ws, p.machine.idSlots),
		Next:    "give root a larger range in /etc/subuid, or remove workspaces",
	}
}
