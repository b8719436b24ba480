//go:build linux

package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// DefaultImage is the image of a workspace that names none.
const DefaultImage = "debian:12"

// The bounds of what a machine can be given.
const (
	leastMemory = 64 << 20
	mostCPUs    = 255
)

// Create makes the disks of a machine.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	if err := check(&spec); err != nil {
		return none, err
	}
	ws := spec.Workspace
	if err := ctx.Err(); err != nil {
		return none, failed("create", ws, err)
	}
	if known, i, err := p.known(ctx, ws); known || err != nil {
		return i, err
	}
	if spec.Image == "" {
		spec.Image = DefaultImage
	}
	r := newRecord(p.server, spec)
	err := p.resolve(ctx, ws, spec, &r)
	if err == nil {
		err = p.build(ctx, ws, r, nil)
	}
	if err != nil {
		return none, failed("create", ws, errors.Join(err, p.abandon(ws)))
	}
	return p.Inspect(ctx, ws)
}

// known returns the instance that a workspace has already; a half-made one is
// cleared away.
func (p *Provider) known(ctx context.Context, ws string) (bool, providers.Instance, error) {
	none := providers.Instance{}
	r, err := p.load(ws)
	switch {
	case err == nil && r.Ready:
		i, err := p.Inspect(ctx, ws)
		return true, i, err
	case err == nil:
		return false, none, failed("create", ws, p.abandon(ws))
	case !errors.Is(err, fs.ErrNotExist):
		return false, none, failed("create", ws, err)
	}
	return false, none, nil
}

// abandon removes what a call that failed has made. The volume stays when it was
// there before: one without Ready is this call's.
func (p *Provider) abandon(ws string) error {
	err := errors.Join(discard(p.instanceDir(ws)), p.opts.Images.Release(p.holder(ws)))
	if v, verr := p.volume(ws); verr == nil && !v.Ready {
		err = errors.Join(err, discard(p.volumeDir(ws)))
	}
	return err
}

// hostName is what may stand in a cloud-init file.
var hostName = regexp.MustCompile(`^[A-Za-z0-9.-]{0,64}$`)

func check(spec *providers.Spec) error {
	if err := checkID("create", spec.Workspace); err != nil {
		return err
	}
	refuse := func(next, format string, args ...any) error {
		return invalid(next, "create qemu workspace %s: %s", spec.Workspace, fmt.Sprintf(format, args...))
	}
	switch spec.Network {
	case "":
		spec.Network = providers.NetworkPrivate
	case providers.NetworkPrivate, providers.NetworkNone:
	case providers.NetworkHost:
		return refuse("use private or none, or --provider docker", "a virtual machine cannot use the node's own network")
	default:
		return refuse("use private or none", "there is no network %q", spec.Network)
	}
	if spec.Privileged {
		return &providers.Error{
			Kind:    providers.ErrUnsupported,
			Message: fmt.Sprintf("create qemu workspace %s: there are no privileged virtual machines: root inside has all of the machine, and nothing of the node", spec.Workspace),
			Next:    "leave --privileged out",
		}
	}
	if !hostName.MatchString(spec.Name) {
		return refuse("", "%q is no host name", spec.Name)
	}
	r := &spec.Resources
	if r.CPUs < 0 || r.MemoryBytes < 0 || r.PIDs < 0 || r.DiskBytes < 0 {
		return refuse("", "a limit is negative")
	}
	if r.CPUs == 0 {
		r.CPUs = DefaultCPUs
	}
	if r.MemoryBytes == 0 {
		r.MemoryBytes = DefaultMemoryBytes
	}
	if r.PIDs == 0 {
		r.PIDs = DefaultPIDs
	}
	if r.DiskBytes == 0 {
		r.DiskBytes = DefaultDiskBytes
	}
	return checkBounds(*r, refuse)
}

func checkBounds(r providers.Resources, refuse func(next, format string, args ...any) error) error {
	switch {
	case r.CPUs > mostCPUs:
		return refuse("", "%g processors are more than %d", r.CPUs, mostCPUs)
	case r.MemoryBytes < leastMemory:
		return refuse("give it more memory", "%d bytes of memory are less than the %d that a kernel needs", r.MemoryBytes, leastMemory)
	case r.DiskBytes < leastDisk || r.DiskBytes > math.MaxInt64/2:
		return refuse("give it a larger disk", "a disk of %d bytes is not between %d and what there is", r.DiskBytes, leastDisk)
	}
	return nil
}

func newRecord(server string, spec providers.Spec) record {
	r := record{
		Labels: map[string]string{
			providers.LabelServer:     server,
			providers.LabelWorkspace:  spec.Workspace,
			providers.LabelGeneration: strconv.FormatInt(spec.Generation, 10),
		},
		Name:       spec.Name,
		Image:      spec.Image,
		Resources:  spec.Resources,
		Network:    spec.Network,
		BaseFormat: "raw",
	}
	r.Resources.DiskBytes = (r.Resources.DiskBytes + 511) &^ 511
	return r
}

// resolve fetches the image and writes into r what it is.
func (p *Provider) resolve(ctx context.Context, ws string, spec providers.Spec, r *record) error {
	if image.IsDisk(spec.Image) {
		d, err := p.opts.Images.GetDisk(ctx, spec.Image, spec.Checksum, spec.Digest, p.holder(ws))
		if err != nil {
			return err
		}
		r.Disk, r.Digest, r.BaseFormat = true, d.Digest, d.Format
		return nil
	}
	if spec.Checksum != "" {
		return invalid("pin a container image by its digest: name@sha256:...",
			"create qemu workspace %s: a checksum belongs to a disk image", ws)
	}
	i, err := p.opts.Images.Get(ctx, spec.Image, spec.Digest, p.holder(ws))
	if err != nil {
		return err
	}
	r.Digest, r.Env, r.User = i.Digest, i.Env, i.User
	return nil
}

// base returns the file below an instance's root disk.
func (p *Provider) base(ctx context.Context, r record) (string, error) {
	if r.Disk {
		d, err := p.opts.Images.HeldDisk(r.Digest)
		return d.Path, err
	}
	i, err := p.opts.Images.Held(r.Digest)
	if err != nil {
		return "", err
	}
	return p.baseDisk(ctx, i)
}

// disks to begin with; the zero value means empty ones.
type disks struct {
	root, volume string
}

// build makes the instance's folder with its root disk, and the volume where
// there is none. The record comes first, in one rename with the folder, and says
// that the rest is missing; so a call that dies leaves something that List shows.
func (p *Provider) build(ctx context.Context, ws string, r record, from *disks) error {
	base, err := p.base(ctx, r)
	if err != nil {
		return err
	}
	info, err := inspectDisk(ctx, base, r.BaseFormat)
	if err != nil {
		return err
	}
	if r.Resources.DiskBytes < info.Size {
		return invalid(fmt.Sprintf("give it a disk of at least %d MiB", (info.Size>>20)+1),
			"create qemu workspace %s: its image needs %d bytes and the disk has %d", ws, info.Size, r.Resources.DiskBytes)
	}
	dir := p.instanceDir(ws)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(p.dir, "new-*")
	if err != nil {
		return err
	}
	if err = host.Write(filepath.Join(fresh, recordFile), r); err == nil {
		err = os.Rename(fresh, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	if from == nil {
		from = &disks{}
	}
	if from.root == "" {
		if from.root, err = p.overlayTemplate(ctx, r.BaseFormat, r.Resources.DiskBytes); err != nil {
			return err
		}
	}
	if err := copyFile(ctx, from.root, filepath.Join(dir, rootDisk)); err != nil {
		return err
	}
	if err := p.makeVolume(ctx, ws, r.Resources.DiskBytes, from.volume); err != nil {
		return err
	}
	r.Ready = true
	return p.save(ws, r)
}

// makeVolume makes the workspace's own disk where there is none. A volume that
// stands is kept as it is, and grows when the workspace was made larger.
func (p *Provider) makeVolume(ctx context.Context, ws string, size int64, from string) error {
	dir := p.volumeDir(ws)
	disk := filepath.Join(dir, volumeDisk)
	v, err := p.volume(ws)
	switch {
	case err == nil && v.Ready:
		return growDisk(ctx, disk, size)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if from == "" {
		if from, err = p.volumeTemplate(ctx, size); err != nil {
			return err
		}
	}
	if err := p.claimVolume(ws); err != nil {
		return err
	}
	if err := copyFile(ctx, from, disk); err != nil {
		return err
	}
	if v, err = p.volume(ws); err != nil {
		return err
	}
	v.Ready = true
	return host.Write(filepath.Join(dir, volumeFile), v)
}

// growDisk makes a qcow2 of ours as large as size; one that is larger stays. An
// overlay's header names a base that is nowhere, and whoever broke out into a QEMU
// may have written others into it: qemu-img opens none.
func growDisk(ctx context.Context, path string, size int64) error {
	has, err := ownSize(path)
	if err != nil || has >= size {
		return err
	}
	alone := node(map[string]any{"driver": "qcow2", "backing": nil, "file": map[string]any{"driver": "file", "filename": path}})
	return tool(ctx, nil, "qemu-img", "resize", "-q", "json:"+alone, strconv.FormatInt(size, 10))
}

// ownSize reads the size out of the header of a qcow2 of ours; see
// docs/interop/qcow2.txt of QEMU.
func ownSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 80)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, err
	}
	size := binary.BigEndian.Uint64(head[24:])
	const externalData = 1 << 2
	if string(head[:4]) != "QFI\xfb" || binary.BigEndian.Uint32(head[4:]) != 3 || size > math.MaxInt64/2 ||
		binary.BigEndian.Uint64(head[72:])&externalData != 0 {
		return 0, fmt.Errorf("%s is not the disk that was made", filepath.Base(path))
	}
	return int64(size), nil
}

// claimVolume makes the folder of a volume, with a user id that no other has.
func (p *Provider) claimVolume(ws string) error {
	release, err := p.lock()
	if err != nil {
		return err
	}
	defer release()
	v := volume{Server: p.server}
	if p.root {
		if v.UID, err = p.freeID(ws); err != nil {
			return err
		}
	}
	dir := p.volumeDir(ws)
	if err := discard(dir); err != nil { // half-made
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return host.Write(filepath.Join(dir, volumeFile), v)
}

// idInRange is the id of a range that a QEMU runs as: one that a container of the
// native or LXC provider with that range hardly has a use for.
const idInRange = 65533

// freeID picks a user that no other volume has. It starts where the workspace's id
// hashes to, so that other servers' providers hardly ever pick the same. The
// caller holds the lock.
func (p *Provider) freeID(ws string) (uint32, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	used := map[uint32]bool{}
	for _, e := range entries {
		if v, err := p.volume(e.Name()); err == nil && e.Name() != ws {
			used[v.UID] = true
		}
	}
	pool, _ := host.RootIDs() // QEMU needs no user namespace
	h := fnv.New32a()
	_, _ = h.Write([]byte(Name + "/" + p.server + "/" + ws)) // never fails
	first := h.Sum32() % pool.Slots
	for i := range pool.Slots {
		uid := pool.Base + (first+i)%pool.Slots*host.IDsPerInstance + idInRange
		if !used[uid] {
			return uid, nil
		}
	}
	return 0, &providers.Error{
		Kind:    providers.ErrExhausted,
		Message: fmt.Sprintf("create qemu workspace %s: all %d ranges of user ids are in use", ws, pool.Slots),
		Next:    "give root a larger range in /etc/subuid, or remove workspaces",
	}
}
