//go:build linux

package native

import (
	"io/fs"
	"path/filepath"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// record is instance.json: what Create decided. The folder that holds it belongs
// to the agent alone; only folders below are the workspace's.
type record struct {
	Labels map[string]string
	Name   string
	// Image and Digest are empty where the root is made of the machine's own.
	Image, Digest string
	Resources     providers.Resources
	Network       providers.Network
	// Ready is false until all parts are made.
	Ready bool
	// Forked: the volume that is not Ready yet was made with the instance.
	Forked bool
	// Restoring is the snapshot that is about to take the instance's place.
	Restoring string
}

// run is run.json: what Start made, for whoever must find or clear it.
type run struct {
	host.Process
	Started time.Time
	// Veth is the host's end of the private network.
	Veth string
	// Cgroups are the folders that limit it.
	Cgroups []string
	// Paused by a user, and Held for as long as a call of an agent lasts.
	Paused, Held bool
	// Stopped were halted by signals before it was.
	Stopped []host.Process
}

const (
	recordFile = "instance.json"
	runFile    = "run.json"
)

// load returns the record of an instance of this server; ErrNotExist for none
// and for another server's.
func (p *Provider) load(ws string) (record, error) {
	var r record
	if err := host.Read(filepath.Join(p.instanceDir(ws), recordFile), &r); err != nil {
		return r, err
	}
	if r.Labels[providers.LabelServer] != p.server {
		return r, fs.ErrNotExist
	}
	return r, nil
}
