//go:build linux

package native

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/providers"
)

// record is instance.json: what Create decided. The folder that holds it belongs
// to the agent alone; only folders below are the workspace's.
type record struct {
	Labels    map[string]string
	Name      string
	Image     string
	Resources providers.Resources
	Network   providers.Network
	// Ready is false until all parts are made.
	Ready bool
}

// run is run.json: what Start made, for whoever must find or clear it.
type run struct {
	process
	Started time.Time
	// Veth is the host's end of the private network.
	Veth string
	// Cgroups are the folders that limit it.
	Cgroups []string
}

const (
	recordFile = "instance.json"
	runFile    = "run.json"
)

// write replaces a file of the agent's own, all or nothing.
func write(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

func read(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// spoilt says whether a record was there and made no sense.
func spoilt(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return errors.As(err, &syntax) || errors.As(err, &kind)
}

// load returns the record of an instance of this server; ErrNotExist for none
// and for another server's.
func (p *Provider) load(ws string) (record, error) {
	var r record
	if err := read(filepath.Join(p.instanceDir(ws), recordFile), &r); err != nil {
		return r, err
	}
	if r.Labels[providers.LabelServer] != p.server {
		return r, fs.ErrNotExist
	}
	return r, nil
}

// lockFile takes an exclusive lock, waiting for it.
func lockFile(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Closing lets the lock go; nothing was written.
	return func() { _ = f.Close() }, nil
}
