package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/vendetta-dev/vendetta/providers"
)

// explain turns what the engine's client said into an error of the contract.
// doing is the operation and what it was done to.
func (e *engine) explain(doing string, err error) error {
	var own *providers.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &providers.Error{Message: fmt.Sprintf("%s: %v", doing, contextWord(err)), Cause: err}
	}
	if reason, fix := e.unreachable(err); reason != "" {
		return &providers.Error{Kind: providers.ErrUnusable, Message: fmt.Sprintf("%s: %s", doing, reason), Next: fix, Cause: err}
	}
	return explained(doing, err)
}

// explained is explain for what did not go through the engine's client.
func explained(doing string, err error) error {
	answer := &providers.Error{Message: fmt.Sprintf("%s: %v", doing, err), Cause: err}
	text := err.Error()
	switch {
	case strings.Contains(text, "no space left on device"), strings.Contains(text, "disk quota exceeded"):
		answer.Kind = providers.ErrExhausted
		answer.Message = doing + ": the disk of the docker engine is full"
		answer.Next = "free space on the node: docker system df shows what uses it, docker image prune -a removes unused images"
	case strings.Contains(text, "cannot allocate memory"):
		answer.Kind = providers.ErrExhausted
		answer.Next = "stop workspaces on this node or use another one"
	case cerrdefs.IsInvalidArgument(err):
		answer.Kind = providers.ErrInvalid
	}
	return answer
}

func (p *Provider) explain(doing string, err error) error { return p.engine.explain(doing, err) }

func contextWord(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "took too long"
	}
	return "cancelled"
}

// unreachable says why the engine could not be talked to and what helps, "" when
// err is of another kind.
func (e *engine) unreachable(err error) (reason, fix string) {
	host := e.DaemonHost()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("permission denied on the docker engine's socket %s", host),
			"sudo usermod -aG docker $USER, then log in again and restart the node agent"
	case errors.Is(err, fs.ErrNotExist), client.IsErrConnectionFailed(err):
		return fmt.Sprintf("docker is not running at %s", host),
			"sudo systemctl start docker || sudo apt-get install docker.io"
	}
	return "", ""
}

func notFound(workspace string) error {
	return &providers.Error{Kind: providers.ErrNotFound, Message: fmt.Sprintf("workspace %s has no docker instance here", workspace)}
}
