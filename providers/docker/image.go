package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
		if err := p.pull(ctx, wanted, nil); err != nil {
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

// pull fetches an image, without credentials: a private one is pulled by hand on
// the node. said, which may be nil, is told of each step once.
func (p *Provider) pull(ctx context.Context, ref string, said func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, p.options.PullTimeout)
	defer cancel()
	p.options.Logger.Info("pull image", "image", ref)
	stream, err := p.engine.ImagePull(ctx, ref, engineimage.PullOptions{})
	if err == nil {
		err = p.follow(ref, stream, said)
		err = errors.Join(err, stream.Close())
	}
	if err != nil {
		return p.explainPull(ref, err)
	}
	return nil
}

// follow reads a pull to its end and tells each step once: the engine repeats
// some of them many times a second.
func (p *Provider) follow(ref string, stream io.Reader, said func(string)) error {
	type step struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	}
	var message struct {
		step
		ErrorDetail *struct {
			Message string `json:"message"`
		} `json:"errorDetail"`
	}
	told := map[step]bool{}
	for messages := json.NewDecoder(stream); ; {
		message.step, message.ErrorDetail = step{}, nil
		err := messages.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case message.ErrorDetail != nil:
			return errors.New(message.ErrorDetail.Message)
		case message.Status == "" || told[message.step]:
			continue
		}
		told[message.step] = true
		p.options.Logger.Debug("pull image", "image", ref, "layer", message.ID, "status", message.Status)
		if said != nil {
			said(strings.TrimPrefix(message.ID+": "+message.Status, ": "))
		}
	}
}

// explainPull tells apart what a registry's answer only hints at.
func (p *Provider) explainPull(ref string, err error) error {
	doing := "pull image " + ref
	byHand := fmt.Sprintf("docker login and docker pull %s on the node, then create the workspace again", ref)
	e := &providers.Error{Kind: providers.ErrImage, Cause: err}
	text := strings.ToLower(err.Error())
	has := func(hints ...string) bool {
		for _, hint := range hints {
			if strings.Contains(text, hint) {
				return true
			}
		}
		return false
	}
	switch reason, _ := p.unreachable(err); {
	case errors.Is(err, context.DeadlineExceeded):
		e.Message = fmt.Sprintf("%s: it took longer than %v", doing, p.options.PullTimeout)
		e.Next = byHand
	case errors.Is(err, context.Canceled), reason != "", has("no space left on device"):
		return p.explain(doing, err)
	case cerrdefs.IsNotFound(err), has("manifest unknown", "not found", "does not exist", "name unknown"):
		e.Message = fmt.Sprintf("image %s does not exist, or it is private", ref)
		e.Next = "check the name and tag; for a private image " + byHand
	case has("unauthorized", "denied", "authentication required"):
		e.Message = fmt.Sprintf("%s: the registry refuses it without a login", doing)
		e.Next = byHand
	case has("dial tcp", "no such host", "connection refused", "timeout", "i/o timeout", "tls:", "network is unreachable", "eof"):
		e.Message = fmt.Sprintf("%s: the registry cannot be reached from the node: %v", doing, err)
		e.Next = fmt.Sprintf("check the node's network and proxy settings for docker, or load the image by hand: docker save %s | ssh NODE docker load", ref)
	default:
		e.Message = fmt.Sprintf("%s: %v", doing, err)
		e.Next = byHand
	}
	return e
}
