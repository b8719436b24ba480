package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	engineimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/vendetta-dev/vendetta/providers"
)

// pull fetches an image, with the login that docker login left for this user, if
// any. said, which may be nil, is told of each step once.
func (e *engine) pull(ctx context.Context, ref string, said func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, e.pullTimeout)
	defer cancel()
	e.log.Info("pull image", "image", ref)
	stream, err := e.ImagePull(ctx, ref, engineimage.PullOptions{RegistryAuth: e.login(ctx, ref)})
	if err == nil {
		err = e.follow(ref, stream, said)
		err = errors.Join(err, stream.Close())
	}
	if err != nil {
		return e.explainPull(ref, err)
	}
	return nil
}

// login is what the user's own configuration of docker holds for the registry of
// an image, as the engine's API takes it; the engine itself knows no logins.
func (e *engine) login(ctx context.Context, ref string) string {
	encoded, err := func() (string, error) {
		named, err := name.ParseReference(ref)
		if err != nil {
			return "", err
		}
		found, err := authn.Resolve(ctx, authn.DefaultKeychain, named.Context())
		if err != nil {
			return "", err
		}
		login, err := authn.Authorization(ctx, found)
		if err != nil || *login == (authn.AuthConfig{}) {
			return "", err
		}
		return registry.EncodeAuthConfig(registry.AuthConfig{
			Username: login.Username, Password: login.Password, Auth: login.Auth,
			IdentityToken: login.IdentityToken, RegistryToken: login.RegistryToken,
			ServerAddress: named.Context().RegistryStr(),
		})
	}()
	if err != nil {
		// Most images are anybody's: the registry decides. The error may quote a secret.
		e.log.Warn("no login for the registry could be read from docker's configuration", "image", ref)
	}
	return encoded
}

// follow reads a pull to its end and tells each step once: the engine repeats
// some of them many times a second.
func (e *engine) follow(ref string, stream io.Reader, said func(string)) error {
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
		e.log.Debug("pull image", "image", ref, "layer", message.ID, "status", message.Status)
		if said != nil {
			said(strings.TrimPrefix(message.ID+": "+message.Status, ": "))
		}
	}
}

// explainPull tells apart what a registry's answer only hints at.
func (e *engine) explainPull(ref string, err error) error {
	doing := "pull image " + ref
	byHand := "docker login on the node, as the node agent's user, then try again"
	carry := fmt.Sprintf("docker save %s | ssh NODE docker load", ref)
	answer := &providers.Error{Kind: providers.ErrImage, Cause: err}
	text := strings.ToLower(err.Error())
	has := func(hints ...string) bool {
		for _, hint := range hints {
			if strings.Contains(text, hint) {
				return true
			}
		}
		return false
	}
	switch reason, _ := e.unreachable(err); {
	case errors.Is(err, context.DeadlineExceeded):
		answer.Message = fmt.Sprintf("%s: it took longer than %v", doing, e.pullTimeout)
		answer.Next = fmt.Sprintf("docker pull %s on the node, then try again", ref)
	case errors.Is(err, context.Canceled), reason != "", has("no space left on device"):
		return e.explain(doing, err)
	case cerrdefs.IsNotFound(err), has("manifest unknown", "not found", "does not exist", "name unknown"):
		answer.Message = fmt.Sprintf("image %s does not exist, or it is private", ref)
		answer.Next = "check the name and tag; for a private image " + byHand
	case has("no matching manifest", "does not match the specified platform"):
		answer.Message = fmt.Sprintf("image %s is not made for machines like the node: %v", ref, err)
		answer.Next = "name an image that is"
	case has("toomanyrequests", "too many requests"):
		answer.Message = fmt.Sprintf("%s: the registry has had too many requests from the node: %v", doing, err)
		answer.Next = "wait a while; many registries allow more after a login: " + byHand
	case has("unauthorized", "denied", "authentication required", "no basic auth credentials"):
		answer.Message = fmt.Sprintf("%s: the registry refuses it without a login that may read it", doing)
		answer.Next = byHand
	case has("verification failed", "unexpected content", "size validation failed"):
		answer.Message = fmt.Sprintf("%s: what the registry sent is damaged: %v", doing, err)
		answer.Next = "try again; when that does not help the image has to be pushed to the registry anew"
	case has("unexpected http status: 5", "internal server error", "bad gateway", "service unavailable"):
		answer.Message = fmt.Sprintf("%s: the registry is in trouble: %v", doing, err)
		answer.Next = "try again later, or load the image by hand: " + carry
	case has("eof", "connection reset", "broken pipe"):
		answer.Message = fmt.Sprintf("%s: the connection to the registry broke off: %v", doing, err)
		answer.Next = "try again, or load the image by hand: " + carry
	case has("dial tcp", "no such host", "connection refused", "timeout", "i/o timeout", "tls:", "network is unreachable"):
		answer.Message = fmt.Sprintf("%s: the registry cannot be reached from the node: %v", doing, err)
		answer.Next = "check the node's network and proxy settings for docker, or load the image by hand: " + carry
	default:
		answer.Message = fmt.Sprintf("%s: %v", doing, err)
		answer.Next = fmt.Sprintf("docker pull %s on the node, then try again", ref)
	}
	return answer
}
