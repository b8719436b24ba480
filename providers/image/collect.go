package image

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vendetta-dev/vendetta/providers"
)

// entry is one image of the store as a whole.
type entry struct {
	record
	dir  string
	refs []string
	used int
}

// all reads the store. What is removed meanwhile is left out.
func (s *Store) all() ([]entry, error) {
	refs := map[string][]string{}
	known, err := os.ReadDir(s.path(refsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, f := range known {
		var m meaning
		if err := readJSON(s.path(refsDir, f.Name()), &m); err == nil && m.Digest != "" {
			refs[m.Digest] = append(refs[m.Digest], m.Ref)
		}
	}
	var entries []entry
	for _, kind := range []string{imagesDir, disksDir} {
		names, err := os.ReadDir(s.path(kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, name := range names {
			e := entry{dir: s.path(kind, name.Name())}
			if err := readJSON(filepath.Join(e.dir, recordFile), &e.record); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return nil, err
			}
			if derived, err := onDisk(filepath.Join(e.dir, derivedDir)); err == nil {
				e.Bytes += derived
			}
			holders, err := os.ReadDir(s.path(holdersDir, name.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			e.used = len(holders)
			e.refs = refs[e.Digest]
			slices.Sort(e.refs)
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func (e entry) image(ref string) providers.Image {
	return providers.Image{Ref: ref, Digest: e.Digest, Bytes: e.Bytes, Used: e.used, CreatedAt: e.Created}
}

// List implements providers.Images. An image with several references is there
// once for each; one whose tag has moved on is named by its digest.
func (s *Store) List(ctx context.Context) ([]providers.Image, error) {
	entries, err := s.all()
	if err != nil {
		return nil, explain(ctx, "list images", reference{}, err)
	}
	var images []providers.Image
	for _, e := range entries {
		for _, ref := range e.refs {
			images = append(images, e.image(ref))
		}
		if len(e.refs) == 0 {
			images = append(images, e.image(e.untagged()))
		}
	}
	slices.SortFunc(images, func(a, b providers.Image) int {
		return strings.Compare(a.Ref+a.Digest, b.Ref+b.Digest)
	})
	return images, ctx.Err()
}

// untagged is the name of an image that no reference means any more.
func (e entry) untagged() string {
	r, err := parse(e.Ref)
	if err != nil || r.kind != kindRegistry {
		return e.Ref
	}
	return strings.TrimPrefix(r.named.Context().Name(), "index.docker.io/library/") + "@" + e.Digest
}

// Pull implements providers.Images, for disk images too.
func (s *Store) Pull(ctx context.Context, ref string, said func(string)) (providers.Image, error) {
	r, err := parse(ref)
	if err != nil {
		return providers.Image{}, err
	}
	var digest string
	if r.kind == kindDisk {
		var disk Disk
		disk, err = s.getDisk(ctx, r, "", "", "", true, said)
		digest = disk.Digest
	} else {
		var image Image
		image, err = s.get(ctx, r, "", "", true, said)
		digest = image.Digest
	}
	if err != nil {
		return providers.Image{}, explain(ctx, s.doing(r), r, err)
	}
	return s.one(digest, r.text)
}

// one describes an image by one of its references.
func (s *Store) one(digest, ref string) (providers.Image, error) {
	entries, err := s.all()
	if err != nil {
		return providers.Image{}, err
	}
	for _, e := range entries {
		if e.Digest == digest {
			return e.image(ref), nil
		}
	}
	return providers.Image{}, absent(digest)
}

// Import implements providers.Images. The archive may be packed with gzip or zstd.
func (s *Store) Import(ctx context.Context, ref string, archive io.Reader) (providers.Image, error) {
	r := reference{text: "archive"}
	if ref != "" {
		var err error
		if r, err = parse(ref); err != nil {
			return providers.Image{}, err
		}
		if r.kind != kindRegistry {
			return providers.Image{}, invalid("import image: "+r.text+" is a place and not a name", "give it a name, e.g. debian:12")
		}
	}
	digest, err := s.load(ctx, &r, archive)
	if err != nil {
		// It came from the caller: no registry is to blame.
		return providers.Image{}, explain(ctx, "import image "+r.text, reference{kind: kindPath, text: r.text, path: "the archive"}, err)
	}
	return s.one(digest, r.text)
}

// load spools an archive and unpacks it. A reference that is empty becomes the
// archive's own.
func (s *Store) load(ctx context.Context, r *reference, archive io.Reader) (string, error) {
	if err := s.prepare(); err != nil {
		return "", err
	}
	work, end, err := s.scratch(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	path := filepath.Join(work, "archive.tar")
	if err := s.spool(ctx, path, archive); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	src := &layout{limits: s.limits}
	if src.files, err = filesOf(f, s.limits); err != nil {
		return "", err
	}
	defer func() { _ = src.close() }()
	names := src.names()
	switch {
	case r.named == nil && len(names) == 0:
		return "", invalid("import image: the archive does not name its image", "name it: vendetta image import FILE --name NAME")
	case r.named == nil && len(names) > 1:
		return "", invalid("import image: the archive has several: "+strings.Join(names, ", "), "name the one to import, or save one alone")
	case r.named == nil:
		named, err := parse(names[0])
		if err != nil {
			return "", err
		}
		if named.kind != kindRegistry {
			return "", refuse("it is named %.100q, which is no name", names[0])
		}
		*r = named
	case len(names) > 1:
		for _, name := range names {
			if named, err := parse(name); err == nil && named.canonical == r.canonical {
				src.tag = name
			}
		}
	}
	digest, err := s.install(ctx, *r, src, "", nil)
	if err != nil {
		return "", err
	}
	return digest, s.setMeaning(ctx, *r, meaning{Digest: digest})
}

func (s *Store) spool(ctx context.Context, path string, archive io.Reader) error {
	plain, done, err := decompress(&cancelled{ctx: ctx, r: archive})
	if err != nil {
		return err
	}
	defer done()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(plain, s.limits.archive+1))
	if err == nil && n > s.limits.archive {
		err = refuse("the archive is more than %d bytes", s.limits.archive)
	}
	return errors.Join(err, f.Close())
}

// Prune implements providers.Images. What is being fetched right now stays, as do
// images that somebody holds.
func (s *Store) Prune(ctx context.Context) ([]providers.Image, error) {
	removed, err := s.prune(ctx)
	// Even if nothing was pruned: what earlier ones left is removed too.
	err = errors.Join(err, s.emptyTrash())
	return removed, explain(ctx, "prune images", reference{}, err)
}

func (s *Store) prune(ctx context.Context) ([]providers.Image, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.sweep(ctx); err != nil {
		return nil, err
	}
	unlock, err := lockStore(ctx, s.path(storeLock), true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	entries, err := s.all()
	if err != nil {
		return nil, err
	}
	var removed []providers.Image
	for _, e := range entries {
		if e.used > 0 {
			continue
		}
		if err := s.discard(e.dir); err != nil {
			return removed, err
		}
		ref := e.untagged()
		if len(e.refs) > 0 {
			ref = e.refs[0]
		}
		removed = append(removed, e.image(ref))
	}
	return removed, s.forget()
}

// discard takes an image out of the store at once; its files are removed later. On
// a full disk, where a rename may not be possible, they are removed now, and the
// record first, without which there is no image.
func (s *Store) discard(dir string) error {
	err := os.Rename(dir, s.path(trashDir, rand.Text()))
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// forget removes what is said of images that are not there.
func (s *Store) forget() error {
	refs, err := os.ReadDir(s.path(refsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range refs {
		var m meaning
		err := readJSON(s.path(refsDir, f.Name()), &m)
		if err == nil {
			_, _, err = s.find(m.Digest, imagesDir, disksDir)
		}
		if err != nil {
			errs = append(errs, os.Remove(s.path(refsDir, f.Name())))
		}
	}
	holders, err := os.ReadDir(s.path(holdersDir))
	if err != nil {
		return err
	}
	for _, dir := range holders {
		if digest := strings.Replace(dir.Name(), "-", ":", 1); !s.has(digest) {
			_ = os.Remove(s.path(holdersDir, dir.Name())) // not when it holds somebody
		}
	}
	return errors.Join(errs...)
}

func (s *Store) has(digest string) bool {
	_, _, err := s.find(digest, imagesDir, disksDir)
	return err == nil
}

// emptyTrash removes what was renamed away, by this process or another.
func (s *Store) emptyTrash() error {
	names, err := os.ReadDir(s.path(trashDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names { // others may do the same meanwhile
		errs = append(errs, os.RemoveAll(s.path(trashDir, name.Name())))
	}
	return errors.Join(errs...)
}
