//go:build linux

package native

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// Images is what the provider needs of a store of images; see [image.Store] for
// what the methods promise.
type Images interface {
	Get(ctx context.Context, ref, digest, holder string) (image.Image, error)
	Held(digest string) (image.Image, error)
	Hold(digest, holder string) error
	Release(holder string) error
}

// holder is an instance's name in the store of images.
func (p *Provider) holder(ws string) string { return "native-" + p.server + "-" + ws }

// snapshotHolder is a snapshot's.
func (p *Provider) snapshotHolder(ws, name string) string { return p.holder(ws) + "-snapshot-" + name }

// release lets go of an instance's image.
func (p *Provider) release(ws string) error {
	if p.images == nil {
		return nil
	}
	return p.images.Release(p.holder(ws))
}

// layers are the image below an instance and what the instance changed.
type layers struct {
	Lower, Upper, Work string
	// IDBase is the range that the image's ids are shown in; IDCount 0 is a
	// namespace of one id, of which an overlay is made inside.
	IDBase, IDCount uint32
}

// mount makes the overlay, attached nowhere yet.
func (l *layers) mount() (int, error) {
	if l.IDCount > 0 {
		return image.Overlay(image.OverlayOptions{
			Lower: l.Lower, Upper: l.Upper, Work: l.Work, IDBase: l.IDBase, IDCount: l.IDCount,
		})
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fd) }()
	for _, o := range []struct{ key, path string }{{"lowerdir", l.Lower}, {"upperdir", l.Upper}, {"workdir", l.Work}} {
		// By descriptor, since colons and commas in a path would be read as more.
		dir, err := unix.Open(o.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: o.path, Err: err}
		}
		defer func() { _ = unix.Close(dir) }()
		if err := unix.FsconfigSetString(fd, o.key, "/proc/self/fd/"+strconv.Itoa(dir)); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigSetFlag(fd, "userxattr"); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
}

// environment of the guest: the image's where there is one.
func environment(img *image.Image, user string) []string {
	env := []string{"PATH=" + guestPath, "HOME=/root", "USER=root", "LANG=C.UTF-8"}
	if img != nil {
		env = []string{"PATH=" + guestPath, "HOME=/root"}
		for _, own := range img.Env {
			key, _, found := strings.Cut(own, "=")
			if !found || key == "" || key == providers.EnvGuestUser || strings.ContainsRune(own, 0) {
				continue
			}
			env = append(env, own)
		}
	}
	env = append(env, providers.EnvGuestUser+"="+user)
	// The last of a name counts.
	last := map[string]int{}
	for i, e := range env {
		key, _, _ := strings.Cut(e, "=")
		last[key] = i
	}
	var all []string
	for i, e := range env {
		if key, _, _ := strings.Cut(e, "="); last[key] == i {
			all = append(all, e)
		}
	}
	return all
}

// guestUser is whom commands run as: the image's user, unless there is but root.
func (p *Provider) guestUser(img *image.Image) string {
	if img == nil || img.User == "" || !p.machine.root {
		return "root"
	}
	return img.User
}

// giveProject makes an empty /workspace that is still root's the image user's own.
func (p *Provider) giveProject(ws string, img image.Image, v volume) error {
	user := p.guestUser(&img)
	if name, _, _ := strings.Cut(user, ":"); name == "root" || name == "0" {
		return nil
	}
	dir := p.parts(ws, true)[0].path
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Uid != v.IDBase || st.Gid != v.IDBase {
		return nil
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return err
	}
	uid, gid, err := img.Owner()
	if err != nil {
		return err
	}
	return os.Lchown(dir, int(v.IDBase+uid), int(v.IDBase+gid))
}

// below returns the image of an instance, nil where there is none.
func (p *Provider) below(r record) (*image.Image, error) {
	if r.Digest == "" {
		return nil, nil
	}
	if p.images == nil {
		return nil, errNoStore
	}
	img, err := p.images.Held(r.Digest)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(img.Root); err != nil || !info.IsDir() {
		return nil, errors.Join(err, &os.PathError{Op: "open image", Path: img.Root, Err: fs.ErrNotExist})
	}
	return &img, nil
}

var errNoStore = &providers.Error{
	Kind:    providers.ErrUnsupported,
	Message: "native workspaces: this node agent has no store of images",
	Next:    "leave the image out",
}
