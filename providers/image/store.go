package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// Options of a Store.
type Options struct {
	// Dir holds the store; it is made 0700 when missing.
	Dir string
	// Platform, os/arch, is the one that images are taken for; empty means this
	// machine's.
	Platform string
	// Private are folders that no reference may lead into: those of workspaces, of
	// the agent and of the server, which a user of this store may not read.
	Private []string
	// Transport reaches registries; nil means http.DefaultTransport.
	Transport http.RoundTripper
	Logger    *slog.Logger
}

// Store is the images of one machine. Several processes may use one folder.
//
// What lies there: images/ and disks/ hold a folder for each digest, which come
// there whole, by a rename, and leave it so; refs/ says what references meant;
// holders/ has a folder for each digest with a file for each holder; tmp/ holds
// what is in the making, each folder locked by the process that makes it, so that
// what a dead one left is known; trash/ what is being removed; locks/ a file for
// each name that is being worked on.
type Store struct {
	options Options
	log     *slog.Logger
	limits  limits
	// flat: this process is an ordinary user's.
	flat bool
	// patience is how long a server may send nothing, wait how long it is left
	// alone before it is asked again.
	patience, wait time.Duration
	// turns bound the images that are fetched and unpacked at the same time.
	turns chan struct{}
}

var _ providers.Images = (*Store)(nil)

// Image is an image that lies unpacked on this machine.
type Image struct {
	Ref, Digest string
	// Root is the unpacked file system. Nobody writes to it. Its files belong to
	// the ids that the image says, or all to the agent's user where Flat is set.
	Root string
	// Flat: an ordinary user unpacked it, so that owners and devices were not kept.
	Flat bool
	// Env, User and WorkingDir are the image's own.
	Env        []string
	User       string
	WorkingDir string
	// Bytes on disk.
	Bytes int64
}

// Disk is a disk image.
type Disk struct {
	Ref, Digest string
	// Path of the file. Nobody writes to it.
	Path string
	// Format is qcow2 or raw.
	Format string
	// Bytes on disk.
	Bytes int64
}

const (
	// together is how many images are fetched at the same time.
	together = 2
	// patience with a server that sends nothing.
	patience = time.Minute
	// firstWait before a server that is busy is asked again.
	firstWait = 500 * time.Millisecond
)

// New makes the store; it touches nothing.
func New(options Options) *Store {
	if options.Platform == "" {
		options.Platform = "linux/" + runtime.GOARCH
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return &Store{
		options:  options,
		log:      options.Logger,
		limits:   defaultLimits,
		flat:     os.Geteuid() != 0,
		patience: patience,
		wait:     firstWait,
		turns:    make(chan struct{}, together),
	}
}

// Name is "node".
func (s *Store) Name() string { return "node" }

// Get returns the image of ref, fetched and unpacked when the machine does not
// have it, or of digest alone where that is not empty. holder, a name for an
// instance or a snapshot, keeps Prune from removing it until Release; empty keeps
// nothing. Two calls for one image at the same time fetch it once.
//
// ref is a registry's reference, or the absolute path of an OCI layout or of an
// archive that docker save wrote. What a registry's reference meant when it was
// last fetched is used without asking again.
func (s *Store) Get(ctx context.Context, ref, digest, holder string) (Image, error) {
	r, err := parse(ref)
	if err != nil {
		return Image{}, err
	}
	if r.kind == kindDisk {
		return Image{}, invalid(
			fmt.Sprintf("image %s is a disk image, which only a virtual machine boots", r.text),
			"use --provider qemu, or name an image as docker pull does",
		)
	}
	if digest != "" {
		if _, err := digestName(digest); err != nil {
			return Image{}, err
		}
	}
	image, err := s.get(ctx, r, digest, holder, false, nil)
	return image, explain(ctx, s.doing(r), r, err)
}

// Held returns the image of digest for a holder that has it already.
func (s *Store) Held(digest string) (Image, error) {
	rec, dir, err := s.find(digest, imagesDir)
	if err != nil {
		return Image{}, err
	}
	return rec.image(dir), nil
}

// GetDisk is Get for a disk image: ref is an https address (http for loopback)
// or an absolute path on this machine. A checksum, sha256:HEX or sha512:HEX, must
// be met where it is not empty.
func (s *Store) GetDisk(ctx context.Context, ref, checksum, digest, holder string) (Disk, error) {
	r, err := parse(ref)
	if err != nil {
		return Disk{}, err
	}
	if r.kind != kindDisk {
		return Disk{}, invalid(
			fmt.Sprintf("%s is not a disk image", r.text),
			"give the https address of a qcow2 or raw image, or the absolute path of a file that ends in .qcow2, .img or .raw",
		)
	}
	if err := checkChecksum(checksum); err != nil {
		return Disk{}, err
	}
	if digest != "" {
		if _, err := digestName(digest); err != nil {
			return Disk{}, err
		}
	}
	disk, err := s.getDisk(ctx, r, checksum, digest, holder, false, nil)
	return disk, explain(ctx, s.doing(r), r, err)
}

// HeldDisk is Held for a disk image.
func (s *Store) HeldDisk(digest string) (Disk, error) {
	rec, dir, err := s.find(digest, disksDir)
	if err != nil {
		return Disk{}, err
	}
	return rec.disk(dir), nil
}

// doing words the operation for errors.
func (s *Store) doing(r reference) string {
	switch {
	case r.kind == kindDisk && !r.local():
		return "fetch disk image " + r.text
	case r.kind == kindDisk:
		return "take disk image " + r.text
	case r.local():
		return "read image " + r.text
	}
	return "pull image " + r.text
}

var derivedName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

// Derived returns a file that make makes from an image or a disk image once, and
// that ends with it: a disk with the image's files, say. name, of [a-z0-9._-],
// tells several apart. make writes to a path of the store's; when it returns an
// error nothing stays. Others who want the same file wait for it.
func (s *Store) Derived(ctx context.Context, digest, name string, make func(ctx context.Context, path string) error) (string, error) {
	if !derivedName.MatchString(name) {
		return "", invalid(fmt.Sprintf("file %.100q made from an image: the name is not one", name), "use lower case letters, digits, dots and dashes")
	}
	_, dir, err := s.find(digest, imagesDir, disksDir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, derivedDir, name)
	if exists(path) {
		return path, nil
	}
	if err := s.derive(ctx, digest, path, make); err != nil {
		return "", explain(ctx, fmt.Sprintf("make %s of image %s", name, digest), reference{}, err)
	}
	return path, nil
}

// derive makes the file of an image that lies at path in the end.
func (s *Store) derive(ctx context.Context, digest, path string, make func(ctx context.Context, path string) error) error {
	if err := s.prepare(); err != nil {
		return err
	}
	name := filepath.Base(path)
	release, err := lockName(ctx, s.path(locksDir, strings.Replace(digest, ":", "-", 1)+"."+name))
	if err != nil {
		return err
	}
	defer release()
	if exists(path) {
		return nil
	}
	work, end, err := s.scratch(ctx)
	if err != nil {
		return err
	}
	defer end()
	fresh := filepath.Join(work, name)
	if err := make(ctx, fresh); err != nil {
		return err
	}
	if err := syncFile(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return gone(digest, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return gone(digest, err)
	}
	return syncDir(filepath.Dir(path))
}

// gone says that an image was removed while it was in use without a holder.
func gone(digest string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return absent(digest)
	}
	return err
}

// Hold adds a holder to an image that is held already.
func (s *Store) Hold(digest, holder string) error {
	if _, _, err := s.find(digest, imagesDir, disksDir); err != nil {
		return err
	}
	if holder == "" {
		return invalid("hold an image: no holder", "name the instance or the snapshot")
	}
	return s.hold(digest, holder)
}

// Release lets go of all that holder keeps. Repeating it is success.
func (s *Store) Release(holder string) error {
	file, err := holderName(holder)
	if err != nil {
		return err
	}
	held, err := os.ReadDir(s.path(holdersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, digest := range held {
		if err := os.Remove(s.path(holdersDir, digest.Name(), file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// hold writes the file of a holder and makes it durable.
func (s *Store) hold(digest, holder string) error {
	file, err := holderName(holder)
	if err != nil {
		return err
	}
	name, err := digestName(digest)
	if err != nil {
		return err
	}
	dir := s.path(holdersDir, name)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), syncDir(dir))
}

// holderName turns a holder into a file name.
func holderName(holder string) (string, error) {
	name := "h." + url.PathEscape(holder)
	if holder == "" || len(name) > longestBase {
		return "", invalid(fmt.Sprintf("hold an image: %.100q is no name of a holder", holder), "use a shorter name")
	}
	return name, nil
}
