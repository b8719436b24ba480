//go:build linux

package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

var _ providers.Forker = (*Provider)(nil)

// Fork copies an instance and its volume while it is halted, into ids of the
// fork's own.
func (p *Provider) Fork(ctx context.Context, origin string, spec providers.Spec) (providers.Instance, error) {
	none := providers.Instance{}
	if err := p.check("fork", spec); err != nil {
		return none, err
	}
	if err := checkID("fork", origin); err != nil {
		return none, err
	}
	ws := spec.Workspace
	if err := ctx.Err(); err != nil {
		return none, failed("fork", ws, err)
	}
	if r, err := p.load(ws); err == nil && r.Ready {
		return p.Inspect(ctx, ws)
	}
	from, err := p.ready("fork", origin)
	if err != nil {
		return none, err
	}
	if spec.Image != "" && spec.Image != from.Image || spec.Digest != "" && spec.Digest != from.Digest {
		return none, &providers.Error{
			Kind:    providers.ErrInvalid,
			Message: fmt.Sprintf("fork native workspace %s: a fork has its origin's image and no other", ws),
			Next:    "leave the image out",
		}
	}
	spec.Resources = merge(from.Resources, spec.Resources)
	if spec.Network == "" {
		spec.Network = from.Network
	}
	if err := p.sweep(ws); err != nil {
		return none, failed("fork", ws, err)
	}
	if _, err := p.volume(ws); err == nil {
		return none, &providers.Error{
			Kind:    providers.ErrInvalid,
			Message: fmt.Sprintf("fork native workspace %s: it has files of its own", ws),
			Next:    "fork into a new workspace",
		}
	}
	r := p.newRecord(spec)
	r.Image, r.Digest, r.Forked = from.Image, from.Digest, true
	if err := p.fork(ctx, origin, ws, from, r); err != nil {
		return none, failed("fork", ws, also(err, p.abandon(ws, true)))
	}
	p.log.Info("forked a native instance", "workspace", ws, "origin", origin)
	return p.Inspect(ctx, ws)
}

func (p *Provider) fork(ctx context.Context, origin, ws string, from, r record) error {
	// The record comes first, so that List shows what a call left that died.
	if err := p.beginInstance(ws, r); err != nil {
		return err
	}
	if r.Digest != "" {
		if err := p.images.Hold(r.Digest, p.holder(ws)); err != nil {
			return err
		}
	}
	// An empty volume takes the ids; its folders are then exchanged for the copies.
	if _, err := p.makeVolume(ws); err != nil {
		return err
	}
	old, err := p.volume(origin)
	if err != nil {
		return err
	}
	v, err := p.volume(ws)
	if err != nil {
		return err
	}
	fresh := filepath.Join(p.instanceDir(ws), "fork")
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if _, err := p.copyHeld(ctx, origin, from, fresh, old.IDBase, v.IDBase); err != nil {
		return err
	}
	dir := p.instanceDir(ws)
	image := r.Digest != ""
	err = errors.Join(
		p.makeDir(filepath.Join(dir, "link"), 0o755, v, false),
		p.makeLayers(dir, v, image, true),
	)
	for _, part := range p.parts(ws, image) {
		err = errors.Join(err, exchange(filepath.Join(fresh, part.name), part.path))
	}
	if err = errors.Join(err, p.trash.Discard(fresh)); err != nil {
		return err
	}
	r.Ready = true
	return host.Write(filepath.Join(dir, recordFile), r)
}

// sweep removes what an earlier call for a workspace left that died.
func (p *Provider) sweep(ws string) error {
	r, err := p.load(ws)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.abandon(ws, r.Forked)
}

// abandon removes an instance that is not Ready, with the volume that was made
// for it.
func (p *Provider) abandon(ws string, volume bool) error {
	err := p.trash.Discard(p.instanceDir(ws))
	if volume {
		err = errors.Join(err, p.trash.Discard(p.volumeDir(ws)))
	}
	return errors.Join(err, p.release(ws))
}

// merge takes from more what it names, and else from r.
func merge(r, more providers.Resources) providers.Resources {
	if more.CPUs != 0 {
		r.CPUs = more.CPUs
	}
	if more.MemoryBytes != 0 {
		r.MemoryBytes = more.MemoryBytes
	}
	if more.PIDs != 0 {
		r.PIDs = more.PIDs
	}
	return r
}
