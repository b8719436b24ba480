package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// files is how a layout's files are reached, in a folder or in an archive.
type files interface {
	// open a regular file; fs.ErrNotExist when there is none.
	open(name string) (f io.ReadCloser, size int64, err error)
	io.Closer
}

// layout is a source on this machine: an OCI layout or what docker save wrote.
type layout struct {
	files  files
	tag    string // "" when the reference has none
	limits limits
}

const (
	layoutIndex    = "index.json"
	dockerManifest = "manifest.json"
	refName        = "org.opencontainers.image.ref.name"
	imageName      = "io.containerd.image.name"
)

// openPath opens the layout or archive of a path, which may end in :TAG.
func (s *Store) openPath(r reference) (*layout, error) {
	l := &layout{limits: s.limits}
	f, err := s.openLocal(r)
	if errors.Is(err, fs.ErrNotExist) {
		dir, base := filepath.Split(r.path)
		if before, tag, found := strings.Cut(base, ":"); found && before != "" && tag != "" {
			short := r
			short.path = dir + before
			if again, shortErr := s.openLocal(short); !errors.Is(shortErr, fs.ErrNotExist) {
				f, err, l.tag = again, shortErr, tag
			}
		}
	}
	if err != nil {
		return nil, err
	}
	l.files, err = filesOf(f, s.limits)
	return l, err
}

// filesOf takes an open folder or archive.
func filesOf(f *os.File, l limits) (files, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		var root *os.Root
		root, err = openFolder(f)
		if err = errors.Join(err, f.Close()); err == nil {
			return folderFiles{root}, nil
		}
		return nil, err
	case info.Mode().IsRegular():
		return openArchive(f, l)
	default:
		err = refuse("it is neither a folder nor a file")
	}
	return nil, errors.Join(err, f.Close())
}

// folderFiles are those below a folder; links do not lead out of it.
type folderFiles struct{ root *os.Root }

func (f folderFiles) open(name string) (io.ReadCloser, int64, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|nonBlocking, 0) // a pipe must not hold us up
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse("%s is not a regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

func (f folderFiles) Close() error { return f.root.Close() }

// small reads a whole file of bounded size.
func (l *layout) small(name string, most int64) ([]byte, error) {
	f, size, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if size > most {
		return nil, refuse("%s is %d bytes, more than %d", name, size, most)
	}
	raw, err := io.ReadAll(io.LimitReader(f, most))
	if err == nil && int64(len(raw)) != size {
		err = &truncated{what: name, got: int64(len(raw)), want: size}
	}
	return raw, err
}

// first makes an index of the one that a layout has: the images that fit the tag.
func (l *layout) first(ctx context.Context, digest string) ([]byte, v1.Hash, error) {
	if digest != "" {
		h, err := v1.NewHash(digest)
		if err != nil {
			return nil, v1.Hash{}, err
		}
		f, size, err := l.files.open(blobPath(h))
		if err != nil {
			return nil, h, l.lacks(digest, err)
		}
		_ = f.Close() // readPart opens it again
		raw, err := readPart(ctx, l, v1.Descriptor{Digest: h, Size: size}, "manifest", l.limits.manifest)
		return raw, h, err
	}
	raw, err := l.small(layoutIndex, l.limits.manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, v1.Hash{}, refuse("it is neither an OCI layout nor what docker save writes: there is no %s and no %s in it", layoutIndex, dockerManifest)
	}
	if err != nil {
		return nil, v1.Hash{}, err
	}
	var index parcel
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, v1.Hash{}, refuse("its %s is not JSON", layoutIndex)
	}
	if index.Manifests == nil {
		index.Manifests = []v1.Descriptor{}
	}
	if l.tag != "" {
		var fits []v1.Descriptor
		for _, d := range index.Manifests {
			if isTag(d.Annotations[refName], l.tag) || isTag(d.Annotations[imageName], l.tag) {
				fits = append(fits, d)
			}
		}
		if len(fits) == 0 {
			return nil, v1.Hash{}, refuse("there is no image %q in it; there are %.500q", l.tag, refNames(index.Manifests))
		}
		index.Manifests = fits
	}
	if names := refNames(index.Manifests); l.tag == "" && len(names) > 1 {
		return nil, v1.Hash{}, refuse("there are %d images in it: name one by its tag (PATH:TAG), of %.500q", len(names), names)
	}
	raw, err = json.Marshal(index)
	return raw, v1.Hash{}, err
}

// refNames are the different names in an index.
func refNames(manifests []v1.Descriptor) []string {
	var names []string
	for _, d := range manifests {
		if name := d.Annotations[refName]; name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// lacks words that a layout has not got what a workspace was made from.
func (l *layout) lacks(digest string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return refuse("it does not have %s any more", digest)
	}
	return err
}

// isTag: tag is all of a name or its end.
func isTag(whole, tag string) bool { return whole == tag || strings.HasSuffix(whole, ":"+tag) }

func blobPath(of v1.Hash) string { return path.Join("blobs", of.Algorithm, of.Hex) }

func (l *layout) part(_ context.Context, of v1.Hash) (io.ReadCloser, error) {
	f, _, err := l.files.open(blobPath(of))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse("it is not whole: %s is missing", blobPath(of))
	}
	return f, err
}

// saved is an entry of docker save's manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// whole reads what docker save wrote: a config and layers that are checked by what
// they unpack to. Such an image has no manifest; its digest is its config's,
// which docker calls the image's id.
func (l *layout) whole(_ context.Context, digest string) (picture, bool, error) {
	if f, _, err := l.files.open(layoutIndex); err == nil {
		return picture{}, false, f.Close() // newer ones are OCI layouts besides
	}
	raw, err := l.small(dockerManifest, l.limits.manifest)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // first says what it is not
		}
		return picture{}, false, err
	}
	var images []saved
	if err := json.Unmarshal(raw, &images); err != nil {
		return picture{}, false, refuse("its %s is not JSON", dockerManifest)
	}
	image, err := l.pick(images)
	if err != nil {
		return picture{}, false, err
	}
	config, err := l.small(path.Clean(image.Config), l.limits.config)
	if err != nil {
		return picture{}, false, l.lacks(image.Config, err)
	}
	p := picture{digest: sum(config), config: config}
	if digest != "" && digest != p.digest {
		return picture{}, false, refuse("it has %s now and not %s", p.digest, digest)
	}
	if len(image.Layers) > l.limits.layers {
		return picture{}, false, refuse("it has %d layers, more than %d", len(image.Layers), l.limits.layers)
	}
	file, err := v1.ParseConfigFile(strings.NewReader(string(config)))
	if err != nil || len(file.RootFS.DiffIDs) != len(image.Layers) {
		return picture{}, false, refuse("its config does not go with its layers")
	}
	for i, layer := range image.Layers {
		p.layers = append(p.layers, part{
			size: -1,
			diff: file.RootFS.DiffIDs[i].String(),
			open: func(context.Context) (io.ReadCloser, error) {
				f, _, err := l.files.open(path.Clean(layer))
				if errors.Is(err, fs.ErrNotExist) {
					err = refuse("it is not whole: %.200s is missing", layer)
				}
				return f, err
			},
		})
	}
	return p, true, nil
}

func (l *layout) pick(images []saved) (saved, error) {
	var fits []saved
	var names []string
	for _, image := range images {
		names = append(names, image.RepoTags...)
		if l.tag == "" {
			fits = append(fits, image)
			continue
		}
		for _, name := range image.RepoTags {
			if isTag(name, l.tag) {
				fits = append(fits, image)
				break
			}
		}
	}
	switch len(fits) {
	case 0:
		return saved{}, refuse("there is no image %q in it; there are %.500q", l.tag, names)
	case 1:
		return fits[0], nil
	}
	return saved{}, refuse("there are %d images in it: name one by its tag (PATH:TAG), of %.500q", len(fits), names)
}

// names are what a layout calls its images.
func (l *layout) names() []string {
	var names []string
	if raw, err := l.small(dockerManifest, l.limits.manifest); err == nil {
		var images []saved
		if json.Unmarshal(raw, &images) == nil {
			for _, image := range images {
				names = append(names, image.RepoTags...)
			}
		}
	}
	if raw, err := l.small(layoutIndex, l.limits.manifest); err == nil && len(names) == 0 {
		var index parcel
		if json.Unmarshal(raw, &index) == nil {
			for _, d := range index.Manifests {
				name := cmp.Or(d.Annotations[imageName], d.Annotations[refName])
				if strings.ContainsAny(name, "/:") { // else it is a tag alone
					names = append(names, name)
				}
			}
		}
	}
	return names
}

func (l *layout) far() bool    { return false }
func (l *layout) close() error { return l.files.Close() }
