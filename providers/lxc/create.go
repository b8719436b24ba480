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
	"runtime"
	"strconv"
	"strings"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// minMemory is less than a guest gets by with.
const minMemory = 6 << 20

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Create prepares the folders of an instance and of its volume.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	if err := p.check(spec); err != nil {
		return none, err
	}
	ws := spec.Workspace
	switch there, err := p.clear(ctx, ws); {
	case err != nil:
		return none, failed("create", ws, err)
	case there:
		return p.Inspect(ctx, ws)
	}
	if err := p.usable(); err != nil {
		return none, err
	}
	ref := spec.Image
	if ref == "" {
		ref = DefaultImage
	}
	base, err := p.images.Get(ctx, ref, spec.Digest, p.holder(ws))
	if err != nil {
		if rerr := p.images.Release(p.holder(ws)); rerr != nil {
			p.log.Warn("let go of an image", "workspace", ws, "error", rerr)
		}
		return none, failed("create", ws, badImage(err))
	}
	r := p.record(spec)
	r.Image, r.Digest, r.User, r.Env = ref, base.Digest, base.User, environment(base.Env)
	fresh, err := p.makeVolume(ws, r.Privileged)
	if err == nil {
		err = p.makeInstance(ws, r, func(v volume) error {
			if err := p.makeLayers(ws, v); err != nil {
				return err
			}
			return p.giveProject(ws, base, v)
		})
	}
	if err != nil {
		return none, failed("create", ws, errors.Join(err, p.undo(ws, fresh)))
	}
	return p.Inspect(ctx, ws)
}

// badImage says of a reference that is none that it is no image.
func badImage(err error) error {
	var own *providers.Error
	if errors.As(err, &own) && errors.Is(own.Kind, providers.ErrInvalid) {
		return &providers.Error{Kind: providers.ErrImage, Message: own.Message, Next: own.Next, Cause: err}
	}
	return err
}

// clear makes way for an instance: there says that a whole one stands, and a
// half-made one of an earlier call is removed.
func (p *Provider) clear(ctx context.Context, ws string) (there bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	r, err := p.load(ws)
	switch {
	case err == nil && r.Ready:
		return true, nil
	case err == nil:
		return false, p.trash.Discard(p.instanceDir(ws))
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, err
}

// undo removes what a failed create made.
func (p *Provider) undo(ws string, volume bool) error {
	err := p.trash.Discard(p.instanceDir(ws))
	if volume {
		err = errors.Join(err, p.trash.Discard(p.volumeDir(ws)))
	}
	return errors.Join(err, p.images.Release(p.holder(ws)))
}

// holder is the name by which the store of images knows an instance.
func (p *Provider) holder(ws string) string { return "lxc-" + p.server + "-" + ws }

func (p *Provider) record(spec providers.Spec) record {
	r := record{
		Labels: map[string]string{
			providers.LabelServer:     p.server,
			providers.LabelWorkspace:  spec.Workspace,
			providers.LabelGeneration: strconv.FormatInt(spec.Generation, 10),
		},
		Name:       spec.Name,
		Privileged: spec.Privileged,
		Resources:  spec.Resources,
		Network:    spec.Network,
	}
	if r.Name == "" {
		r.Name = spec.Workspace
	}
	if r.Network == "" {
		r.Network = providers.NetworkPrivate
	}
	if r.Resources.PIDs == 0 {
		r.Resources.PIDs = DefaultPIDs
	}
	if r.Resources.MemoryBytes == 0 {
		r.Resources.MemoryBytes = p.machine.memory / 2
	}
	return r
}

func (p *Provider) check(spec providers.Spec) error {
	ws := spec.Workspace
	if err := checkID("create", ws); err != nil {
		return err
	}
	switch spec.Network {
	case "", providers.NetworkPrivate, providers.NetworkNone:
	case providers.NetworkHost:
		return invalid(ws, "use the network private or none", "lxc workspaces do not get the machine's own network")
	default:
		return invalid(ws, "use the network private or none", "there is no network %q", spec.Network)
	}
	if spec.Name != "" && !hostName.MatchString(spec.Name) {
		return invalid(ws, "use small letters, digits and dashes", "%q is no host name", spec.Name)
	}
	if spec.Checksum != "" || image.IsDisk(spec.Image) {
		return invalid(ws, "use --provider qemu, or name a container image such as "+DefaultImage, "a disk image is none that a container can be made of")
	}
	if err := p.checkLimits(spec.Resources); err != nil {
		return invalid(ws, err.next, "%s", err.text)
	}
	if spec.Resources.DiskBytes > 0 {
		return unlimitedDisk("create", ws)
	}
	return nil
}

func unlimitedDisk(op, ws string) error {
	return &providers.Error{
		Kind:    providers.ErrUnsupported,
		Message: fmt.Sprintf("%s lxc workspace %s: lxc cannot limit the disk", op, ws),
		Next:    "leave the disk limit out, or use --provider qemu",
	}
}

type badLimit struct{ next, text string }

func (p *Provider) checkLimits(r providers.Resources) *badLimit {
	switch cpus := runtime.NumCPU(); {
	case r.CPUs < 0 || r.CPUs != r.CPUs || r.MemoryBytes < 0 || r.PIDs < 0 || r.DiskBytes < 0:
		return &badLimit{"", "a limit is negative or no number"}
	case r.CPUs > float64(cpus):
		return &badLimit{fmt.Sprintf("ask for %d at most", cpus), fmt.Sprintf("%v cpus asked for, the machine has %d", r.CPUs, cpus)}
	case r.MemoryBytes > 0 && r.MemoryBytes < minMemory:
		return &badLimit{"ask for 6 MiB at least", fmt.Sprintf("a memory limit of %d bytes", r.MemoryBytes)}
	case r.MemoryBytes > p.machine.memory:
		return &badLimit{fmt.Sprintf("ask for %d bytes at most", p.machine.memory), fmt.Sprintf("%d bytes of memory asked for, the machine has %d", r.MemoryBytes, p.machine.memory)}
	}
	return nil
}

// environment is what of an image's can be handed on: NAME=VALUE, and a sane name.
func environment(image []string) []string {
	var env []string
	for _, e := range image {
		name, _, ok := strings.Cut(e, "=")
		if ok && name != "" && !strings.ContainsAny(e, "\x00") && !strings.HasPrefix(name, "VENDETTA_") {
			env = append(env, e)
		}
	}
	return env
}

// makeInstance builds the instance's folder. The record comes first, in one rename
// with the folder, and says that the rest, which fill makes, is missing; so a call
// that dies leaves something that List shows.
func (p *Provider) makeInstance(ws string, r record, fill func(volume) error) error {
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
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	if r.Privileged != (v.IDBase == 0) {
		return &providers.Error{
			Kind:    providers.ErrInvalid,
			Message: fmt.Sprintf("create lxc workspace %s: its volume was made for a workspace that is privileged where this one is not, or the other way round", ws),
			Next:    "create it as it was, or remove the workspace with its files first",
		}
	}
	if err := makeDir(filepath.Join(dir, "link"), 0o755, volume{}); err != nil {
		return err
	}
	if err := fill(v); err != nil {
		return err
	}
	r.Ready = true
	return host.Write(filepath.Join(dir, recordFile), r)
}

// makeLayers makes the instance's own layer of the root file system, empty.
func (p *Provider) makeLayers(ws string, v volume) error {
	dir := p.instanceDir(ws)
	return errors.Join(
		makeDir(filepath.Join(dir, "upper"), 0o755, v),
		makeDir(filepath.Join(dir, "work"), 0o755, v),
	)
}

// makeDir makes one folder that nobody else can reach yet, v's root's.
func makeDir(path string, mode fs.FileMode, v volume) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := os.Lchown(path, int(v.IDBase), int(v.IDBase)); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// makeVolume makes the workspace's own folders where there are none, and says
// whether it did. A volume that stands is kept as it is, ids included.
func (p *Provider) makeVolume(ws string, privileged bool) (fresh bool, err error) {
	return p.newVolume(ws, privileged, func(dir string, v volume) error {
		return errors.Join(
			makeDir(filepath.Join(dir, "workspace"), 0o755, v),
			// The folder that says that the volume is whole comes last.
			makeDir(filepath.Join(dir, "state"), 0o700, v),
		)
	})
}

// newVolume has fill make a volume where there is none. Ranges of ids are handed
// out under the lock of the state folder.
func (p *Provider) newVolume(ws string, privileged bool, fill func(dir string, v volume) error) (fresh bool, err error) {
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
	if err := p.trash.Discard(dir); err != nil { // half-made
		return false, err
	}
	v := volume{}
	if !privileged {
		if v.IDBase, err = p.freeIDs(ws); err != nil {
			return false, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	if err := fill(dir, v); err != nil {
		return false, errors.Join(err, p.trash.Discard(dir))
	}
	return true, nil
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
	base, ok := p.machine.ids.Pick(Name+"/"+p.server+"/"+ws, used, p.machine.ids.Taken(host.Volumes(p.dir)))
	if !ok {
		return 0, &providers.Error{
			Kind:    providers.ErrExhausted,
			Message: fmt.Sprintf("create lxc workspace %s: all %d ranges of user ids are in use", ws, p.machine.ids.Slots),
			Next:    "give root a larger range in /etc/subuid, or remove workspaces",
		}
	}
	return base, nil
}
