//go:build linux

package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// The serial numbers of the disks and the names of the ports.
const (
	serialRoot   = "vendetta-root"
	serialVolume = "vendetta-volume"
	serialSeed   = "vendetta-seed"

	// LinkPort is the port on which the guest serves.
	LinkPort = "vendetta.guest"
	// ControlPort carries the provider's words to this machine.
	ControlPort = "vendetta.control"
)

// Config is what the provider writes on the seed, as JSON.
type Config struct {
	Hostname string
	// Env is the image's environment, NAME=VALUE.
	Env []string
	// User is who commands run as.
	User string
	// PIDs bounds the processes and threads; 0 is no bound.
	PIDs int64
	// Address with its prefix, and Gateway and Nameserver, of the one network
	// interface; empty where there is none.
	Address, Gateway, Nameserver string
}

// configMost bounds the seed, in bytes.
const configMost = 1 << 20

// readConfig reads a seed: one JSON value and padding.
func readConfig(path string) (Config, error) {
	var c Config
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, configMost))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(bytes.TrimRight(raw, "\x00"), &c); err != nil {
		return c, fmt.Errorf("read the seed: %w", err)
	}
	return c, nil
}
