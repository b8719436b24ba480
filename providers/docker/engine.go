package docker

import (
	"log/slog"
	"time"

	"github.com/docker/docker/client"
)

// engine is a client of the engine that can say what its errors mean.
type engine struct {
	*client.Client
	log         *slog.Logger
	pullTimeout time.Duration
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
