package image

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"

	"github.com/vendetta-dev/vendetta/providers"
)

// Options of a Store.
type Options struct {
	// Dir holds the store; it is made 0700 when missing.
	Dir string
	// Platform, os/arch, is the one that images are taken for; empty means this
	// machine's.
	Platform string
	// Transport reaches registries; nil means http.DefaultTransport.
	Transport http.RoundTripper
	Logger    *slog.Logger
}

// Store is the images of one machine. Several processes may use one folder.
type Store struct {
	options Options
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
	Bytes  int64
}

// New makes the store; it touches nothing.
func New(options Options) *Store { return &Store{options: options} }

var errNotYet = errors.New("not built yet")

// Get returns the image of ref, fetched and unpacked when the machine does not
// have it, or of digest alone where that is not empty. holder, a name for an
// instance or a snapshot, keeps Prune from removing it until Release. Two calls
// for one image at the same time fetch it once.
func (s *Store) Get(ctx context.Context, ref, digest, holder string) (Image, error) {
	return Image{}, errNotYet
}

// Held returns the image of digest for a holder that has it already.
func (s *Store) Held(digest string) (Image, error) { return Image{}, errNotYet }

// GetDisk is Get for a disk image: ref is an https address (http for loopback)
// or an absolute path on this machine. A checksum, sha256:HEX or sha512:HEX, must
// be met where it is not empty.
func (s *Store) GetDisk(ctx context.Context, ref, checksum, digest, holder string) (Disk, error) {
	return Disk{}, errNotYet
}

// HeldDisk is Held for a disk image.
func (s *Store) HeldDisk(digest string) (Disk, error) { return Disk{}, errNotYet }

// IsDisk tells a disk image's reference from a container image's.
func IsDisk(ref string) bool { return false }

// Derived returns a file that make makes from an image once, and that ends with
// it: a disk with the image's files, say. name tells several apart.
func (s *Store) Derived(ctx context.Context, digest, name string, make func(ctx context.Context, path string) error) (string, error) {
	return "", errNotYet
}

// Hold adds a holder to an image that is held already.
func (s *Store) Hold(digest, holder string) error { return errNotYet }

// Release lets go of all that holder keeps. Repeating it is success.
func (s *Store) Release(holder string) error { return errNotYet }

// Name is "node".
func (s *Store) Name() string { return "node" }

// List implements providers.Images.
func (s *Store) List(ctx context.Context) ([]providers.Image, error) { return nil, errNotYet }

// Pull implements providers.Images.
func (s *Store) Pull(ctx context.Context, ref string, said func(string)) (providers.Image, error) {
	return providers.Image{}, errNotYet
}

// Import implements providers.Images.
func (s *Store) Import(ctx context.Context, ref string, archive io.Reader) (providers.Image, error) {
	return providers.Image{}, errNotYet
}

// Prune implements providers.Images.
func (s *Store) Prune(ctx context.Context) ([]providers.Image, error) { return nil, errNotYet }
