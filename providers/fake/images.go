package fake

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
)

// Images is the store of a Machine's images. Its calls are recorded, fail and
// wait as the Provider's do.
type Images struct {
	machine *Machine

	// The rest is guarded by the machine.
	known map[string]bool  // what a pull finds; nil: any
	moved map[string]int   // how often a tag was moved
	kept  map[string]*kept // by reference
}

// kept is an image that was pulled or imported.
type kept struct {
	digest  string
	created time.Time
}

var _ providers.Images = (*Images)(nil)

// reference is a plain form of what registries take.
var reference = regexp.MustCompile(`^[a-z0-9][a-zA-Z0-9._:/@-]*$`)

// imageBytes is what each image is said to take.
const imageBytes = 1 << 20

// Images is the machine's store of images.
func (m *Machine) Images() *Images { return m.store }

// SetImages names the images that a pull finds; before the first call it finds
// any. An instance whose image is not in the store pulls it.
func (m *Machine) SetImages(images ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store.known = map[string]bool{}
	for _, image := range images {
		m.store.known[image] = true
	}
}

// MoveTag makes a reference mean another image at the next pull.
func (m *Machine) MoveTag(ref string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store.moved[ref]++
}

// Name implements providers.Images: the machine's.
func (s *Images) Name() string { return "fake" }

// List implements providers.Images.
func (s *Images) List(ctx context.Context) ([]providers.Image, error) {
	if err := s.machine.enter(ctx, ListImages, ""); err != nil {
		return nil, err
	}
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	all := []providers.Image{}
	for ref := range s.kept {
		all = append(all, s.view(ref))
	}
	slices.SortFunc(all, func(a, b providers.Image) int { return cmp.Compare(a.Ref, b.Ref) })
	return all, nil
}

// Pull implements providers.Images.
func (s *Images) Pull(ctx context.Context, ref string, said func(string)) (providers.Image, error) {
	if err := s.machine.enter(ctx, PullImage, ref); err != nil {
		return providers.Image{}, err
	}
	if said != nil {
		said("pulling " + ref)
	}
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	if err := s.pull(ref); err != nil {
		return providers.Image{}, err
	}
	return s.view(ref), nil
}

// pull fetches what ref means now. The machine is locked.
func (s *Images) pull(ref string) error {
	if !reference.MatchString(ref) || s.known != nil && !s.known[ref] {
		return missing(ref)
	}
	digest := digestOf(ref, s.moved[ref])
	if had := s.kept[ref]; had == nil || had.digest != digest {
		s.kept[ref] = &kept{digest: digest, created: time.Now()}
	}
	return nil
}

// digestOf is what ref means after so many moves.
func digestOf(ref string, moves int) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(fmt.Appendf(nil, "%s %d", ref, moves)))
}

// resolve is what an instance's image means: its digest where that is given and
// there is such an image, here or where images come from. The machine is locked.
func (s *Images) resolve(ref, digest string) (string, error) {
	switch {
	case ref == "" && s.known == nil:
		return "", nil // the machine's own system
	case digest != "" && (s.known == nil || s.has(digest)):
		return digest, nil
	case digest != "":
		return "", missing(ref + "@" + digest)
	case s.kept[ref] == nil:
		if err := s.pull(ref); err != nil {
			return "", err
		}
	}
	return s.kept[ref].digest, nil
}

// has tells whether an image of that digest is kept, or was ever to be pulled.
func (s *Images) has(digest string) bool {
	for _, image := range s.kept {
		if image.digest == digest {
			return true
		}
	}
	for ref := range s.known {
		for moves := range s.moved[ref] + 1 {
			if digestOf(ref, moves) == digest {
				return true
			}
		}
	}
	return false
}

func missing(ref string) error {
	return &providers.Error{
		Kind:    providers.ErrImage,
		Message: fmt.Sprintf("image %s does not exist", ref),
		Next:    "check the name and tag",
	}
}

// Import implements providers.Images. It reads an archive's names and unpacks
// nothing.
func (s *Images) Import(ctx context.Context, ref string, archive io.Reader) (providers.Image, error) {
	if err := s.machine.enter(ctx, ImportImage, ref); err != nil {
		return providers.Image{}, err
	}
	named, digest, err := readArchive(archive)
	if err != nil {
		return providers.Image{}, &providers.Error{
			Kind:    providers.ErrImage,
			Message: "import image: " + err.Error(),
			Next:    "give what docker save writes, or an OCI layout as a tar",
			Cause:   err,
		}
	}
	ref = cmp.Or(ref, named)
	if !reference.MatchString(ref) {
		return providers.Image{}, &providers.Error{
			Kind:    providers.ErrInvalid,
			Message: fmt.Sprintf("import image: invalid name %q", ref),
			Next:    "name it, as in debian:12",
		}
	}
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	s.kept[ref] = &kept{digest: digest, created: time.Now()}
	return s.view(ref), nil
}

// archiveBound is how much of one file in an archive is read.
const archiveBound = 1 << 20

// readArchive returns the name that an archive gives its image and a digest.
func readArchive(archive io.Reader) (ref, digest string, err error) {
	indexes := map[string][]byte{}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", "", err
		}
		if name := path.Clean(header.Name); name == "index.json" || name == "manifest.json" {
			if indexes[name], err = io.ReadAll(io.LimitReader(r, archiveBound)); err != nil {
				return "", "", err
			}
		}
	}
	var index struct {
		Manifests []struct {
			Digest      string            `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(indexes["index.json"], &index); err == nil && len(index.Manifests) > 0 {
		ref, digest = index.Manifests[0].Annotations["org.opencontainers.image.ref.name"], index.Manifests[0].Digest
	}
	var saved []struct {
		Config   string
		RepoTags []string
	}
	if err := json.Unmarshal(indexes["manifest.json"], &saved); err == nil && len(saved) > 0 {
		if len(saved[0].RepoTags) > 0 {
			ref = saved[0].RepoTags[0]
		}
		digest = cmp.Or(digest, fmt.Sprintf("sha256:%x", sha256.Sum256(bytes.TrimSpace(indexes["manifest.json"]))))
	}
	if digest == "" {
		return "", "", errors.New("this is not an archive of an image")
	}
	return ref, digest, nil
}

// Prune implements providers.Images.
func (s *Images) Prune(ctx context.Context) ([]providers.Image, error) {
	if err := s.machine.enter(ctx, PruneImages, ""); err != nil {
		return nil, err
	}
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	gone := []providers.Image{}
	for ref := range s.kept {
		if image := s.view(ref); image.Used == 0 {
			gone = append(gone, image)
			delete(s.kept, ref)
		}
	}
	slices.SortFunc(gone, func(a, b providers.Image) int { return cmp.Compare(a.Ref, b.Ref) })
	return gone, nil
}

// view is an image as it is now. The machine is locked.
func (s *Images) view(ref string) providers.Image {
	image := providers.Image{Ref: ref, Digest: s.kept[ref].digest, Bytes: imageBytes, CreatedAt: s.kept[ref].created}
	for _, i := range s.machine.instances {
		if i.spec.Digest == image.Digest {
			image.Used++
		}
	}
	for _, all := range s.machine.snapshots {
		for _, snapshot := range all {
			if snapshot.digest == image.Digest {
				image.Used++
			}
		}
	}
	return image
}
