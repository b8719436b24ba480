//go:build linux

package lxc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/host"
)

// record is instance.json: what Create decided. The folder that holds it belongs
// to the agent alone; only folders below are the workspace's.
type record struct {
	Labels     map[string]string
	Name       string
	Image      string
	Digest     string
	User       string
	Env        []string
	Privileged bool
	Resources  providers.Resources
	Network    providers.Network
	// Ready is false until all parts are made.
	Ready bool
	// Broken says what a restore left undone.
	Broken string
}

// run is run.json: what Start made, for whoever must find or clear it. It is
// written twice: with the helper alone before liblxc is asked, and whole.
type run struct {
	// Process is the container's first; zero while it starts.
	host.Process
	Started time.Time
	// Monitor is liblxc's process above it, or the helper until that has answered.
	Monitor host.Process
	// Namespace is the mount namespace of helper and monitor, by its inode.
	Namespace uint64
	// Veth is the host's end of the private network; Address, with the size of the
	// network, the other's.
	Veth, Address, Gateway string
}

const (
	recordFile  = "instance.json"
	runFile     = "run.json"
	configFile  = "config"
	filterFile  = "seccomp"
	logFile     = "lxc.log"
	consoleFile = "console.log"
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
			Message: fmt.Sprintf("%s lxc workspace %s: the instance is half-made", op, ws),
			Next:    "bring it down, then up again",
		}
	}
	return r, nil
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

// volume is what the files of a workspace say of themselves.
type volume struct {
	// IDBase is the first id of the workspace's range; 0 where it is privileged.
	IDBase uint32
}

// volume tells which ids a workspace has by who owns its folders: that cannot get
// lost, and a workspace can give them to ids of its own range alone.
func (p *Provider) volume(ws string) (volume, error) {
	path := filepath.Join(p.volumeDir(ws), "state")
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return volume{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Uid < host.IDsPerInstance && !inPool(p.machine.ids, st.Uid) {
		return volume{}, nil // privileged
	}
	base, ok := p.machine.ids.Of(st.Uid)
	if !ok {
		return volume{}, &providers.Error{
			Message: fmt.Sprintf("the volume of lxc workspace %s belongs to user %d, which is outside of root's range of ids", ws, st.Uid),
			Next:    "restore root's entry in /etc/subuid",
		}
	}
	return volume{IDBase: base}, nil
}

func inPool(ids host.IDs, id uint32) bool {
	_, ok := ids.Of(id)
	return ok
}

func (p *Provider) configPath(ws string) string { return filepath.Join(p.instanceDir(ws), configFile) }
