//go:build linux

package qemu

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// record is instance.json: what Create decided.
type record struct {
	Labels    map[string]string
	Name      string
	Image     string
	Digest    string
	Resources providers.Resources
	Network   providers.Network
	// Disk: the image is a disk that boots by itself.
	Disk bool
	// BaseFormat of the image's disk, qcow2 or raw.
	BaseFormat string
	// Env and User are the image's.
	Env  []string
	User string
	// Ready is false until all parts are made.
	Ready bool
	// Restoring is the snapshot whose disks are being put in place.
	Restoring string
}

// volume is volume.json: what belongs to the workspace and not to the instance.
type volume struct {
	Server string
	// UID that the workspace's QEMU runs as under a root agent.
	UID uint32
	// Ready is false until the disk is made.
	Ready bool
}

// run is run.json: what Start made, for whoever must find or clear it.
type run struct {
	host.Process
	Started time.Time
	// Cgroups are the folders that limit it.
	Cgroups []string
	// Fence is the user that is kept from the node's loopback, 0 for none.
	Fence uint32
	// Accel is how it runs, kvm or tcg.
	Accel string
	// Resources that this run began with.
	Resources providers.Resources
}

const (
	recordFile  = "instance.json"
	runFile     = "run.json"
	volumeFile  = "volume.json"
	rootDisk    = "root.qcow2"
	volumeDisk  = "volume.qcow2"
	seedFile    = "seed.img"
	consoleFile = "console.txt"
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

func (p *Provider) save(ws string, r record) error {
	return host.Write(filepath.Join(p.instanceDir(ws), recordFile), r)
}

// run loads what the last Start made; a zero run when it made nothing.
func (p *Provider) run(ws string) (run, error) {
	var last run
	err := host.Read(filepath.Join(p.instanceDir(ws), runFile), &last)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return last, err
}

// volume loads what the workspace's volume says of itself.
func (p *Provider) volume(ws string) (volume, error) {
	var v volume
	if err := host.Read(filepath.Join(p.volumeDir(ws), volumeFile), &v); err != nil {
		return v, err
	}
	if v.Server != p.server {
		return v, fs.ErrNotExist
	}
	return v, nil
}

// ready loads an instance that is whole.
func (p *Provider) ready(op, ws string) (record, error) {
	if err := checkID(op, ws); err != nil {
		return record{}, err
	}
	r, err := p.load(ws)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, notFound(op, ws)
	case err != nil:
		return r, failed(op, ws, err)
	case !r.Ready:
		return r, &providers.Error{
			Message: op + " qemu workspace " + ws + ": the instance is half-made",
			Next:    "bring it down, then up again",
		}
	}
	if r.Restoring != "" {
		return r, &providers.Error{
			Message: op + " qemu workspace " + ws + ": a restore of it did not end",
			Next:    "restore the snapshot " + r.Restoring + " again",
		}
	}
	return r, nil
}

// running loads the run of an instance whose QEMU lives.
func (p *Provider) running(op, ws string) (run, error) {
	if _, err := p.ready(op, ws); err != nil {
		return run{}, err
	}
	last, err := p.run(ws)
	if err != nil {
		return last, failed(op, ws, err)
	}
	if !last.Alive() {
		return last, notRunning(op, ws)
	}
	return last, nil
}
