package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The folders of a store.
const (
	imagesDir  = "images"
	disksDir   = "disks"
	refsDir    = "refs"
	holdersDir = "holders"
	tmpDir     = "tmp"
	trashDir   = "trash"
	locksDir   = "locks"
	storeLock  = "lock"

	// Inside the folder of an image.
	recordFile = "record.json"
	rootDir    = "root"
	diskFile   = "disk"
	derivedDir = "derived"
)

// record is what is known of an image or a disk image; it lies beside.
type record struct {
	// Ref is the reference that it was fetched by first.
	Ref        string
	Digest     string
	Flat       bool     `json:",omitempty"`
	Env        []string `json:",omitempty"`
	User       string   `json:",omitempty"`
	WorkingDir string   `json:",omitempty"`
	Bytes      int64
	// Created says when it was built, or fetched where it does not say.
	Created time.Time
	// Format and SHA512 are a disk image's.
	Format string `json:",omitempty"`
	SHA512 string `json:",omitempty"`
}

// meaning is what a reference led to.
type meaning struct {
	Ref    string
	Digest string
	// Stamp tells whether a file or an address still has what it had.
	Stamp string `json:",omitempty"`
}

func (r record) image(dir string) Image {
	return Image{
		Ref: r.Ref, Digest: r.Digest, Root: filepath.Join(dir, rootDir), Flat: r.Flat,
		Env: r.Env, User: r.User, WorkingDir: r.WorkingDir, Bytes: r.Bytes,
	}
}

func (r record) disk(dir string) Disk {
	return Disk{Ref: r.Ref, Digest: r.Digest, Path: filepath.Join(dir, diskFile), Format: r.Format, Bytes: r.Bytes}
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.options.Dir}, parts...)...)
}

// prepare makes the store's folders.
func (s *Store) prepare() error {
	if err := os.MkdirAll(s.options.Dir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{imagesDir, disksDir, refsDir, holdersDir, tmpDir, trashDir, locksDir} {
		if err := os.Mkdir(s.path(dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// find reads the record of a digest; where names the folders to look in.
func (s *Store) find(digest string, where ...string) (record, string, error) {
	name, err := digestName(digest)
	if err != nil {
		return record{}, "", err
	}
	for _, kind := range where {
		dir := s.path(kind, name)
		var rec record
		err := readJSON(filepath.Join(dir, recordFile), &rec)
		if err == nil {
			return rec, dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return record{}, "", err
		}
	}
	return record{}, "", absent(digest)
}

// means returns what a reference led to last; an empty digest when that is not known.
func (s *Store) means(r reference) meaning {
	var m meaning
	if err := readJSON(s.path(refsDir, r.key(s.options.Platform)), &m); err != nil {
		return meaning{} // a spoilt one is as good as none
	}
	return m
}

func (s *Store) setMeaning(ctx context.Context, r reference, m meaning) error {
	// Not while somebody sweeps, who would take the new file for a dead process's.
	unlock, err := lockStore(ctx, s.path(storeLock), false)
	if err != nil {
		return err
	}
	defer unlock()
	m.Ref = r.text
	return writeJSON(s.path(refsDir, r.key(s.options.Platform)), s.path(tmpDir), m)
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// writeJSON replaces a file, all or nothing, also when the machine stops.
func writeJSON(path, tmp string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fresh := filepath.Join(tmp, "json."+rand.Text())
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
