package docker

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/vendetta-dev/vendetta/providers"
)

// passwdLimit bounds what is read of an image's passwd and group files.
const passwdLimit = 1 << 20

// giveProject makes an empty /workspace that is still root's the image user's
// own. The container is not running yet, so the engine does it. A /workspace with
// anything in it is left as it is.
func (p *Provider) giveProject(ctx context.Context, id, user string) error {
	if name, _, _ := strings.Cut(user, ":"); name == "" || name == "root" || name == "0" {
		return nil
	}
	fresh, err := p.untouched(ctx, id)
	if err != nil || !fresh {
		return err
	}
	uid, gid, err := p.resolve(ctx, id, user)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err = errors.Join(w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir,
		Name:     strings.TrimPrefix(providers.Project, "/") + "/",
		Mode:     0o755,
		Uid:      uid,
		Gid:      gid,
	}), w.Close())
	if err != nil {
		return err
	}
	return p.engine.CopyToContainer(ctx, id, "/", &archive, container.CopyToContainerOptions{})
}

// untouched says whether /workspace is root's and empty.
func (p *Provider) untouched(ctx context.Context, id string) (bool, error) {
	stream, _, err := p.engine.CopyFromContainer(ctx, id, providers.Project)
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	archive := tar.NewReader(stream)
	folder, err := archive.Next()
	if err != nil {
		return false, err
	}
	if folder.Uid != 0 || folder.Gid != 0 {
		return false, nil
	}
	_, err = archive.Next()
	return errors.Is(err, io.EOF), nil
}

// resolve turns an image's USER into numbers by the image's own passwd and group
// files, as the engine would.
func (p *Provider) resolve(ctx context.Context, id, user string) (uid, gid int, err error) {
	name, group, _ := strings.Cut(user, ":")
	uid, uidErr := strconv.Atoi(name)
	gid, gidErr := strconv.Atoi(group)
	if uidErr != nil || group == "" {
		entry, err := p.lookUp(ctx, id, "/etc/passwd", name)
		switch {
		case err != nil:
			return 0, 0, err
		case len(entry) >= 4:
			if uid, err = strconv.Atoi(entry[2]); err != nil {
				return 0, 0, badUser(user, err)
			}
			if group == "" {
				if gid, err = strconv.Atoi(entry[3]); err != nil {
					return 0, 0, badUser(user, err)
				}
			}
		case uidErr != nil:
			return 0, 0, badUser(user, errors.New("its /etc/passwd has no such user"))
		}
	}
	if group != "" && gidErr != nil {
		entry, err := p.lookUp(ctx, id, "/etc/group", group)
		if err != nil {
			return 0, 0, err
		}
		if len(entry) < 3 {
			return 0, 0, badUser(user, errors.New("its /etc/group has no such group"))
		}
		if gid, err = strconv.Atoi(entry[2]); err != nil {
			return 0, 0, badUser(user, err)
		}
	}
	return uid, gid, nil
}

func badUser(user string, err error) error {
	return &providers.Error{
		Kind:    providers.ErrImage,
		Message: fmt.Sprintf("the image's user %q cannot be resolved: %v", user, err),
		Next:    "set a USER in the image that exists there",
		Cause:   err,
	}
}

// lookUp returns the fields of the line in a file of the container whose name or
// number is key, nil when there is none or the file is not a plain one.
func (p *Provider) lookUp(ctx context.Context, id, file, key string) ([]string, error) {
	stream, stat, err := p.engine.CopyFromContainer(ctx, id, file)
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	if !stat.Mode.IsRegular() {
		return nil, nil
	}
	archive := tar.NewReader(stream)
	header, err := archive.Next()
	if err != nil {
		return nil, err
	}
	if header.Name != path.Base(file) {
		return nil, nil
	}
	return entryOf(io.LimitReader(archive, passwdLimit), key), nil
}

func entryOf(file io.Reader, key string) []string {
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= 3 && (fields[0] == key || fields[2] == key) {
			return fields
		}
	}
	return nil
}
