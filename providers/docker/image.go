package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	engineimage "github.com/docker/docker/api/types/image"

	"github.com/vendetta-dev/vendetta/providers"
)

// image is what an instance needs to know of one.
type image struct {
	// id is what the engine is told.
	id string
	// user is the image's USER as it stands there, NAME or ID with or without
	// :GROUP; empty means root.
	user string
	// digest is what Instance.Digest says: a name that the engine takes for this
	// image and no other. It is REPOSITORY@sha256:HEX where a registry has the
	// image, so that it can be fetched again; else, for one that was built or
	// loaded on this machine, its id, sha256:HEX.
	digest string
	// root is the name of an image that was made of an instance, else empty.
	root string
}

// DefaultImage is the image of a workspace that names none.
const DefaultImage = "debian:12"

// image returns the image of a reference, or of a digest where there is one,
// pulled when the machine does not have it.
func (p *Provider) image(ctx context.Context, m *machine, ref, digest string) (image, error) {
	if ref == "" {
		ref = DefaultImage
	}
	wanted := ref
	if digest != "" {
		wanted = digest
	}
	// The reference becomes part of a path of the engine's API.
	parsed, err := reference.ParseAnyReference(wanted)
	if err != nil {
		return image{}, &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("image %q: %v", wanted, err),
			Next:    "name it as docker pull does, e.g. debian:12 or ghcr.io/owner/name:tag",
			Cause:   err,
		}
	}
	found, err := p.engine.ImageInspect(ctx, wanted)
	if cerrdefs.IsNotFound(err) {
		if _, named := parsed.(reference.Named); !named {
			return image{}, gone(ref, wanted)
		}
		if err := p.engine.pull(ctx, wanted, nil); err != nil {
			return image{}, err
		}
		found, err = p.engine.ImageInspect(ctx, wanted)
	}
	if err != nil {
		return image{}, p.explain("look up image "+ref, err)
	}
	if err := m.runs(ref, found); err != nil {
		return image{}, err
	}
	i := image{id: found.ID, digest: digest}
	if digest == "" {
		i.digest = digestOf(ref, found)
	}
	if found.Config != nil {
		i.user = found.Config.User
	}
	return i, nil
}

// gone is the error for an image that only this machine had.
func gone(ref, id string) error {
	e := &providers.Error{
		Kind:    providers.ErrImage,
		Message: fmt.Sprintf("image %s, which was built or loaded on the node, is not there any more", ref),
		Next:    "build or load it again and create a new workspace from it: its id differs, unless docker load brings the same one back",
	}
	if ref != id {
		e.Message = fmt.Sprintf("image %s of id %s, which was built or loaded on the node, is not there any more", ref, id)
	}
	return e
}

// digestOf returns the digest of an image that ref led to; see image.
func digestOf(ref string, found engineimage.InspectResponse) string {
	repository := ""
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		repository = reference.FamiliarName(named)
	}
	// The engine names the same image for each repository that it came from.
	digests := slices.Sorted(slices.Values(found.RepoDigests))
	for _, digest := range digests {
		if name, _, _ := strings.Cut(digest, "@"); name == repository {
			return digest
		}
	}
	if len(digests) > 0 {
		return digests[0]
	}
	return found.ID
}

// kin are the architectures whose programs another one's machines run as well.
var kin = map[string]string{"amd64": "386", "arm64": "arm"}

// runs refuses an image that is for another system.
func (m *machine) runs(ref string, found engineimage.InspectResponse) error {
	if found.Os != "" && found.Os != "linux" {
		return &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("image %s is for %s, workspaces need linux", ref, found.Os),
			Next:    "name an image for linux",
		}
	}
	if a := found.Architecture; a != "" && m.architecture != "" && a != m.architecture && a != kin[m.architecture] {
		return &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("image %s is for %s, the node is %s", ref, a, m.architecture),
			Next:    fmt.Sprintf("name an image for linux/%s; if the name has one, docker rmi %s on the node first", m.architecture, ref),
		}
	}
	return nil
}
