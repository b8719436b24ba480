package docker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	engineimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
)

// engine is a client of the engine that can say what its errors mean.
type engine struct {
	*client.Client
	log         *slog.Logger
	pullTimeout time.Duration

	mu     sync.Mutex
	agreed bool
}

// dial makes a client; an empty host means what the environment says. It does not
// talk to the engine.
func dial(host string, log *slog.Logger, pullTimeout time.Duration) (*engine, error) {
	settings := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if host != "" {
		settings = append(settings, client.WithHost(host))
	}
	c, err := client.NewClientWithOpts(settings...)
	if err != nil {
		return nil, err
	}
	return &engine{Client: c, log: log, pullTimeout: pullTimeout}, nil
}

// agree settles the version of the API. The client does so itself before it sends
// something, but its lists read the version before that, and without a lock.
func (e *engine) agree(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.agreed {
		return nil
	}
	ping, err := e.Ping(ctx)
	if err != nil {
		return err
	}
	e.NegotiateAPIVersionPing(ping)
	e.agreed = true
	return nil
}

// ContainerList is the client's, after agree.
func (e *engine) ContainerList(ctx context.Context, options container.ListOptions) ([]container.Summary, error) {
	if err := e.agree(ctx); err != nil {
		return nil, err
	}
	return e.Client.ContainerList(ctx, options)
}

// ImageList is the client's, after agree.
func (e *engine) ImageList(ctx context.Context, options engineimage.ListOptions) ([]engineimage.Summary, error) {
	if err := e.agree(ctx); err != nil {
		return nil, err
	}
	return e.Client.ImageList(ctx, options)
}

// VolumeList is the client's, after agree.
func (e *engine) VolumeList(ctx context.Context, options volume.ListOptions) (volume.ListResponse, error) {
	if err := e.agree(ctx); err != nil {
		return volume.ListResponse{}, err
	}
	return e.Client.VolumeList(ctx, options)
}
