package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layerOf packs entries; the content of a file is what Size says of it, or what
// the map has.
func layerOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, h := range entries {
		content := []byte(h.Xattrs["content"]) //nolint:staticcheck // a place for it
		h.Xattrs = nil                         //nolint:staticcheck // as above
		h.Size = int64(len(content))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

func file(name, content string) tar.Header {
	return tar.Header{Name: name, Mode: 0o644, Xattrs: map[string]string{"content": content}} //nolint:staticcheck // see layerOf
}

func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

func gzipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// made is an image of layers as parts, for a layout or for a registry.
type made struct {
	blobs    map[string][]byte // by digest
	config   v1.ConfigFile
	manifest v1.Manifest
	digest   string // of the manifest
}

// imageOf makes an image of plain layers, each packed by pack.
func imageOf(t testing.TB, pack func([]byte) []byte, layers ...[]byte) *made {
	t.Helper()
	m := &made{blobs: map[string][]byte{}}
	m.config = v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
	m.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, raw := range layers {
		packed := raw
		if pack != nil {
			packed = pack(raw)
		}
		m.config.RootFS.DiffIDs = append(m.config.RootFS.DiffIDs, hashOf(t, raw))
		m.manifest.Layers = append(m.manifest.Layers, m.blob(t, types.OCILayer, packed))
	}
	m.seal(t)
	return m
}

// seal computes config and manifest anew.
func (m *made) seal(t testing.TB) {
	t.Helper()
	raw, err := json.Marshal(m.config)
	if err != nil {
		t.Fatal(err)
	}
	m.manifest.Config = m.blob(t, types.OCIConfigJSON, raw)
	m.sealManifest(t)
}

func (m *made) sealManifest(t testing.TB) {
	t.Helper()
	raw, err := json.Marshal(m.manifest)
	if err != nil {
		t.Fatal(err)
	}
	m.digest = m.blob(t, types.OCIManifestSchema1, raw).Digest.String()
}

func (m *made) blob(t testing.TB, kind types.MediaType, raw []byte) v1.Descriptor {
	t.Helper()
	h := hashOf(t, raw)
	m.blobs[h.String()] = raw
	return v1.Descriptor{MediaType: kind, Digest: h, Size: int64(len(raw))}
}

func hashOf(t testing.TB, raw []byte) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(sum(raw))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// index leads to the manifest.
func (m *made) index() v1.IndexManifest {
	h, _ := v1.NewHash(m.digest)
	return v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{MediaType: types.OCIManifestSchema1, Digest: h, Size: int64(len(m.blobs[m.digest]))}},
	}
}

// layout writes the image as an OCI layout.
func (m *made) layout(t testing.TB) string {
	t.Helper()
	return m.layoutWith(t, m.index())
}

func (m *made) layoutWith(t testing.TB, index v1.IndexManifest) string {
	t.Helper()
	dir := t.TempDir()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		t.Fatal(err)
	}
	for digest, raw := range m.blobs {
		write(t, filepath.Join(blobs, digest[len("sha256:"):]), raw)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "index.json"), raw)
	write(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

func write(t testing.TB, path string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}
