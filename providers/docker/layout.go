package docker

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// Bounds of what is kept of an archive's index, manifests and configurations.
const (
	blobLimit  = 1 << 20
	blobsLimit = 16 << 20
)

var blobName = regexp.MustCompile(`^blobs/sha256/[0-9a-f]{64}$`)

// loadable makes of an archive one that every engine loads: an OCI layout gets the
// manifest.json that docker save would have written, as its last entry, so that
// nothing of it has to be kept here. What is not a tar, compressed by gzip or
// not, is passed on as it is; the engine knows further compressions.
func loadable(archive io.Reader, architecture string) (io.Reader, func(io.Writer) error) {
	stream := bufio.NewReaderSize(archive, 64<<10)
	begin, _ := stream.Peek(512) // a short archive is the engine's to refuse
	switch {
	case bytes.HasPrefix(begin, []byte{0x1f, 0x8b}):
		return nil, func(w io.Writer) error {
			plain, err := gzip.NewReader(stream)
			if err != nil {
				return err
			}
			return complete(w, plain, architecture)
		}
	case len(begin) > 262 && bytes.Equal(begin[257:262], []byte("ustar")):
		return nil, func(w io.Writer) error { return complete(w, stream, architecture) }
	}
	return stream, nil
}

// complete copies a tar and adds what is missing for docker load.
func complete(w io.Writer, archive io.Reader, architecture string) error {
	from, to := tar.NewReader(archive), tar.NewWriter(w)
	parts := layoutParts{}
	saved, kept := false, 0
	for {
		header, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := to.WriteHeader(header); err != nil {
			return err
		}
		var entry io.Reader = from
		name := path.Clean(strings.TrimPrefix(header.Name, "./"))
		saved = saved || name == "manifest.json"
		if header.Typeflag == tar.TypeReg && (name == "index.json" || blobName.MatchString(name)) && header.Size <= blobLimit {
			content, err := io.ReadAll(from)
			if err != nil {
				return fmt.Errorf("read the archive: %w", err)
			}
			if kept += len(content); kept > blobsLimit {
				return errors.New("read the archive: it has too many manifests")
			}
			parts[name] = content
			entry = bytes.NewReader(content)
		}
		if _, err := io.Copy(to, entry); err != nil {
			return err
		}
	}
	if _, layout := parts["index.json"]; layout && !saved {
		manifest, err := parts.saved(architecture)
		if err != nil {
			return err
		}
		if err := to.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Mode: 0o644, Size: int64(len(manifest))}); err != nil {
			return err
		}
		if _, err := to.Write(manifest); err != nil {
			return err
		}
	}
	return to.Close()
}

// layoutParts are the small files of an OCI layout by their names.
type layoutParts map[string][]byte

// descriptor and document are of the OCI image specification, as far as they matter.
type descriptor struct {
	Digest   string `json:"digest"`
	Platform *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
	Annotations map[string]string `json:"annotations"`
}

type document struct {
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// savedImage is an entry of the manifest.json of docker save.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// saved is the manifest.json for the images of a layout that are for a machine.
func (p layoutParts) saved(architecture string) ([]byte, error) {
	var index document
	if err := json.Unmarshal(p["index.json"], &index); err != nil {
		return nil, fmt.Errorf("read the archive's index: %w", err)
	}
	images := []savedImage{}
	for _, one := range index.Manifests {
		image, err := p.image(one, architecture, 0)
		if err != nil {
			return nil, err
		}
		if image != nil {
			image.RepoTags = tagsOf(one.Annotations)
			images = append(images, *image)
		}
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("the archive holds no image for linux/%s", architecture)
	}
	return json.Marshal(images)
}

// indexDepth is how deep an index may lie in indexes.
const indexDepth = 4

// image is what a descriptor leads to, nil when that is for another machine.
func (p layoutParts) image(of descriptor, architecture string, depth int) (*savedImage, error) {
	if of.Platform != nil && (of.Platform.OS != "linux" || of.Platform.Architecture != architecture) {
		return nil, nil //nolint:nilnil // none is an answer here
	}
	content, err := p.blob(of.Digest)
	if err != nil {
		return nil, err
	}
	var found document
	if err := json.Unmarshal(content, &found); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", of.Digest, err)
	}
	for _, one := range found.Manifests {
		if depth == indexDepth {
			return nil, errors.New("the archive's index is too deep")
		}
		if image, err := p.image(one, architecture, depth+1); err != nil || image != nil {
			return image, err
		}
	}
	if found.Config.Digest == "" {
		return nil, nil //nolint:nilnil // an index without one for this machine
	}
	image := &savedImage{}
	if image.Config, err = blobAt(found.Config.Digest); err != nil {
		return nil, err
	}
	for _, layer := range found.Layers {
		at, err := blobAt(layer.Digest)
		if err != nil {
			return nil, err
		}
		image.Layers = append(image.Layers, at)
	}
	return image, nil
}

// blob is one that was kept, checked.
func (p layoutParts) blob(digest string) ([]byte, error) {
	at, err := blobAt(digest)
	if err != nil {
		return nil, err
	}
	content, there := p[at]
	if !there {
		return nil, fmt.Errorf("the archive lacks %s", digest)
	}
	if sum := sha256.Sum256(content); at != "blobs/sha256/"+hex.EncodeToString(sum[:]) {
		return nil, fmt.Errorf("the archive's %s is damaged", digest)
	}
	return content, nil
}

func blobAt(digest string) (string, error) {
	at := "blobs/" + strings.Replace(digest, ":", "/", 1)
	if !blobName.MatchString(at) {
		return "", fmt.Errorf("the archive names a part %.80q, which is no sha256 digest", digest)
	}
	return at, nil
}

// tagsOf is the name that a layout gives an image, where that is a whole one.
func tagsOf(annotations map[string]string) []string {
	for _, annotation := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} {
		name := annotations[annotation]
		if !strings.ContainsAny(name, "/:") {
			continue // empty, or a bare tag
		}
		if named, err := reference.ParseNormalizedNamed(name); err == nil && !strings.Contains(name, "@") {
			return []string{reference.FamiliarString(reference.TagNameOnly(named))}
		}
	}
	return nil
}
