package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// source is where an image's parts come from.
type source interface {
	// first is the manifest or index that the reference names, or the one of a
	// digest where that is not empty; that one is checked.
	first(ctx context.Context, digest string) (raw []byte, got v1.Hash, err error)
	// part opens a config or a layer, which is not checked.
	part(ctx context.Context, of v1.Hash) (io.ReadCloser, error)
	// whole is an image that has no manifest of its own, as in what docker save
	// wrote before it wrote OCI layouts; ok is false when first says more.
	whole(ctx context.Context, digest string) (p picture, ok bool, err error)
	// far says whether parts come over a network.
	far() bool
	close() error
}

// picture is an image that was found and not yet fetched.
type picture struct {
	digest string
	config []byte
	layers []part
}

// part is a layer. Its digest is empty where the source names none; then what it
// unpacks to is checked alone.
type part struct {
	digest string
	size   int64
	diff   string
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// parcel is what both manifests and indexes are.
type parcel struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
}

// maxNested bounds indexes in indexes.
const maxNested = 4

// look finds the image for a platform.
func look(ctx context.Context, src source, digest, platform string, l limits) (picture, error) {
	if p, ok, err := src.whole(ctx, digest); ok || err != nil {
		return p, err
	}
	raw, got, err := src.first(ctx, digest)
	if err != nil {
		return picture{}, err
	}
	for range maxNested {
		var p parcel
		if err := json.Unmarshal(raw, &p); err != nil {
			return picture{}, refuse("it is not an image: its manifest is not JSON")
		}
		switch {
		case p.Config != nil && p.Manifests == nil:
			return open(ctx, src, got.String(), p, platform, l)
		case p.Manifests == nil:
			return picture{}, refuse("it is not an image: its manifest has no config (%s)", kindOf(p))
		}
		next, err := choose(p.Manifests, platform)
		if err != nil {
			return picture{}, err
		}
		if raw, got, err = src.first(ctx, next.Digest.String()); err != nil {
			return picture{}, err
		}
	}
	return picture{}, refuse("it is not an image: its index leads to indexes %d deep", maxNested)
}

func kindOf(p parcel) string {
	if p.MediaType != "" {
		return string(p.MediaType)
	}
	return fmt.Sprintf("schema version %d", p.SchemaVersion)
}

// choose takes the manifest for the platform out of an index.
func choose(manifests []v1.Descriptor, platform string) (v1.Descriptor, error) {
	var offered []string
	var fits []v1.Descriptor
	for _, d := range manifests {
		switch {
		case d.Platform == nil:
			fits = append(fits, d) // the image's config decides
		case d.Platform.OS == "unknown":
			// What builders attach: how it was made.
		case d.Platform.OS+"/"+d.Platform.Architecture == platform:
			// A plain one goes before one that wants a newer processor.
			if d.Platform.Variant == "" || d.Platform.Variant == "v8" {
				return d, nil
			}
			fits = append(fits, d)
		default:
			offered = append(offered, strings.TrimSuffix(strings.Join([]string{d.Platform.OS, d.Platform.Architecture, d.Platform.Variant}, "/"), "/"))
		}
	}
	switch {
	case len(fits) == 1, len(fits) > 0 && fits[0].Platform != nil:
		return fits[0], nil
	case len(fits) > 1:
		return v1.Descriptor{}, refuse("there are %d images in it: name one by its tag (PATH:TAG)", len(fits))
	case len(offered) > 0:
		return v1.Descriptor{}, otherPlatform(platform, offered)
	}
	return v1.Descriptor{}, refuse("there is no image in it")
}

func otherPlatform(platform string, offered []string) error {
	slices.Sort(offered)
	offered = slices.Compact(offered)
	if len(offered) > 20 {
		offered = append(offered[:20], "...")
	}
	return &refused{
		why:  fmt.Sprintf("the image is not for %s; it is for %s", platform, strings.Join(offered, ", ")),
		next: "name an image for " + platform + ", or a node that is of its kind",
	}
}

// readPart reads a small part and checks it.
func readPart(ctx context.Context, src source, d v1.Descriptor, what string, most int64) ([]byte, error) {
	if d.Size < 0 || d.Size > most {
		return nil, refuse("its %s is %d bytes, more than %d", what, d.Size, most)
	}
	if _, err := digestName(d.Digest.String()); err != nil {
		return nil, refuse("its %s has a digest of another kind than sha256: %.100s", what, d.Digest)
	}
	r, err := src.part(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	c := check(r, what+" "+d.Digest.String(), d.Digest.String(), d.Size)
	raw, err := io.ReadAll(io.LimitReader(c, d.Size))
	if err != nil {
		return nil, err
	}
	return raw, c.finish()
}

// open reads the config of an image and lists its layers.
func open(ctx context.Context, src source, digest string, m parcel, platform string, l limits) (picture, error) {
	switch m.Config.MediaType {
	case types.OCIConfigJSON, types.DockerConfigJSON, "":
	default:
		return picture{}, refuse("it is not an image but something else that the registry keeps (%.100s)", m.Config.MediaType)
	}
	if len(m.Layers) > l.layers {
		return picture{}, refuse("it has %d layers, more than %d", len(m.Layers), l.layers)
	}
	config, err := readPart(ctx, src, *m.Config, "config", l.config)
	if err != nil {
		return picture{}, err
	}
	p := picture{digest: digest, config: config}
	file, err := readConfig(config, platform, len(m.Layers))
	if err != nil {
		return picture{}, err
	}
	for i, d := range m.Layers {
		switch {
		case strings.HasSuffix(string(d.MediaType), "+encrypted"):
			return picture{}, refuse("its layers are encrypted")
		case !strings.Contains(string(d.MediaType), "tar"):
			return picture{}, refuse("it is not an image: a layer is %.100q", d.MediaType)
		case d.Size < 0 || d.Size > l.archive:
			return picture{}, refuse("a layer is %d bytes, more than %d", d.Size, l.archive)
		}
		if _, err := digestName(d.Digest.String()); err != nil {
			return picture{}, refuse("a layer has a digest of another kind than sha256: %.100s", d.Digest)
		}
		p.layers = append(p.layers, part{
			digest: d.Digest.String(),
			size:   d.Size,
			diff:   file.RootFS.DiffIDs[i].String(),
			open:   func(ctx context.Context) (io.ReadCloser, error) { return src.part(ctx, d.Digest) },
		})
	}
	return p, nil
}

// readConfig checks an image's config.
func readConfig(raw []byte, platform string, layers int) (*v1.ConfigFile, error) {
	file, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, refuse("it is not an image: its config is not JSON")
	}
	// Images made by hand often say nothing.
	if mine := file.OS + "/" + file.Architecture; file.OS != "" && file.Architecture != "" && mine != platform {
		return nil, otherPlatform(platform, []string{mine})
	}
	if len(file.RootFS.DiffIDs) != layers {
		return nil, refuse("its config speaks of %d layers, its manifest of %d", len(file.RootFS.DiffIDs), layers)
	}
	for _, diff := range file.RootFS.DiffIDs {
		if _, err := digestName(diff.String()); err != nil {
			return nil, refuse("its config has a digest of another kind than sha256: %.100s", diff)
		}
	}
	return file, nil
}
