package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	engineimage "github.com/docker/docker/api/types/image"

	"github.com/vendetta-dev/vendetta/providers"
)

// image is what an instance needs to know of one.
type image struct {
	id string
	// user is the image's USER as it stands there, NAME or ID with or without
	// :GROUP; empty means root.
	user string
}

// DefaultImage is the image of a workspace that names none.
const DefaultImage = "debian:12"

// image returns the image of a reference, pulled when the machine does not have it.
func (p *Provider) image(ctx context.Context, ref string) (image, error) {
	if ref == "" {
		ref = DefaultImage
	}
	// The reference becomes part of a path of the engine's API.
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return image{}, &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("image %q: %v", ref, err),
			Next:    "name it as docker pull does, e.g. debian:12 or ghcr.io/owner/name:tag",
			Cause:   err,
		}
	}
	found, err := p.engine.ImageInspect(ctx, ref)
	if cerrdefs.IsNotFound(err) {
		if err := p.pull(ctx, ref); err != nil {
			return image{}, err
		}
		found, err = p.engine.ImageInspect(ctx, ref)
	}
	if err != nil {
		return image{}, p.explain("look up image "+ref, err)
	}
	if found.Os != "" && found.Os != "linux" {
		return image{}, &providers.Error{
			Kind:    providers.ErrImage,
			Message: fmt.Sprintf("image %s is for %s, workspaces need linux", ref, found.Os),
			Next:    "name an image for linux",
		}
	}
	i := image{id: found.ID}
	if found.Config != nil {
		i.user = found.Config.User
	}
	return i, nil
}

// pull fetches an image, without credentials: a private one is pulled by hand on
// the node.
func (p *Provider) pull(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, p.options.PullTimeout)
	defer cancel()
	p.options.Logger.Info("pull image", "image", ref)
	stream, err := p.engine.ImagePull(ctx, ref, engineimage.PullOptions{})
	if err == nil {
		err = p.follow(ref, stream)
		err = errors.Join(err, stream.Close())
	}
	if err != nil {
		return p.explainPull(ref, err)
	}
	return nil
}

// follow reads a pull to its end and logs each step once.
func (p *Provider) follow(ref string, stream io.Reader) error {
	var message struct {
		ID          string `json:"id"`
		Status      string `json:"status"`
		ErrorDetail *struct {
			Message string `json:"message"`
		} `json:"errorDetail"`
	}
	for messages := json.NewDecoder(stream); ; {
		message.ID, message.Status, message.ErrorDetail = "", "", nil
		err := messages.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case message.ErrorDetail != nil:
			return errors.New(message.ErrorDetail.Message)
		case message.Status != "Downloading" && message.Status != "Extracting":
			// Those two repeat many times a second.
			p.options.Logger.Debug("pull image", "image", ref, "layer", message.ID, "status", message.Status)
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
