package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// tarOf packs a folder as an archive.
func tarOf(t testing.TB, dir string) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// savedOf is an image as docker save wrote it before it wrote layouts.
func (m *made) savedOf(t testing.TB, tags ...string) []byte {
	t.Helper()
	entry := saved{Config: m.manifest.Config.Digest.Hex + ".json", RepoTags: tags}
	entries := []tar.Header{file(entry.Config, string(m.blobs[m.manifest.Config.Digest.String()]))}
	for i, layer := range m.manifest.Layers {
		name := string(rune('a'+i)) + "/layer.tar"
		entry.Layers = append(entry.Layers, name)
		if i > 0 && layer.Digest == m.manifest.Layers[0].Digest {
			entries = append(entries, symlink(name, "../a/layer.tar"))
			continue
		}
		entries = append(entries, file(name, string(m.blobs[layer.Digest.String()])))
	}
	raw, err := json.Marshal([]saved{entry})
	if err != nil {
		t.Fatal(err)
	}
	return layerOf(t, append(entries, file("manifest.json", string(raw)))...)
}

func archiveOf(t testing.TB, raw []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	write(t, path, raw)
	return path
}

func TestLocalImages(t *testing.T) {
	raw := layerOf(t, file("f", "content"))
	image := imageOf(t, func(raw []byte) []byte { return gzipped(t, raw) }, raw, layerOf(t, file("g", "x")))
	plain := imageOf(t, nil, raw, raw)
	for name, ref := range map[string]string{
		"layout":                image.layout(t),
		"layout, with a scheme": "oci:" + image.layout(t),
		"archive of a layout":   archiveOf(t, tarOf(t, image.layout(t))),
		"docker save":           archiveOf(t, plain.savedOf(t, "some/image:1")),
	} {
		t.Run(name, func(t *testing.T) {
			s := quick(t)
			got, err := s.Get(t.Context(), ref, "", "me")
			if err != nil {
				t.Fatal(err)
			}
			if text, err := os.ReadFile(filepath.Join(got.Root, "f")); string(text) != "content" {
				t.Errorf("%q, %v", text, err)
			}
			want := image.digest
			if name == "docker save" {
				want = plain.manifest.Config.Digest.String() // what docker calls its id
			}
			if got.Digest != want || got.Ref != ref {
				t.Errorf("%s %s, want %s %s", got.Ref, got.Digest, ref, want)
			}
			// By its digest, in another store.
			if again, err := quick(t).Get(t.Context(), ref, want, "me"); err != nil || again.Digest != want {
				t.Errorf("pinned: %s, %v", again.Digest, err)
			}
			_, err = quick(t).Get(t.Context(), ref, sum(nil), "me")
			wantError(t, err, providers.ErrImage, sum(nil))
			// When what it was read from is gone, what is here serves on.
			if err := os.RemoveAll(strings.TrimPrefix(ref, "oci:")); err != nil {
				t.Fatal(err)
			}
			if again, err := s.Get(t.Context(), ref, "", "me"); err != nil || again.Digest != want {
				t.Errorf("after removal: %s, %v", again.Digest, err)
			}
			_, err = quick(t).Get(t.Context(), ref, "", "me")
			wantError(t, err, providers.ErrImage, "no such file", ref)
		})
	}
}

func TestSeveralInOne(t *testing.T) {
	one, two := imageOf(t, nil, layerOf(t, file("f", "1"))), imageOf(t, nil, layerOf(t, file("f", "2")))
	index := one.index()
	index.Manifests = append(index.Manifests, two.index().Manifests...)
	for digest, raw := range two.blobs {
		one.blobs[digest] = raw
	}
	unnamed := one.layoutWith(t, index)
	index.Manifests[0].Annotations = map[string]string{refName: "some/image:1"}
	index.Manifests[1].Annotations = map[string]string{refName: "2", imageName: "docker.io/some/image:2"}
	named := one.layoutWith(t, index)
	archive := archiveOf(t, tarOf(t, named))
	s := quick(t)
	for _, ref := range []string{named, archive} {
		_, err := s.Get(t.Context(), ref, "", "me")
		wantError(t, err, providers.ErrImage, "2 images", "some/image:1", "PATH:TAG")
		for tag, want := range map[string]string{"1": one.digest, "2": two.digest} {
			if got, err := s.Get(t.Context(), ref+":"+tag, "", "me"); err != nil || got.Digest != want {
				t.Errorf("%s: %s, %v; want %s", tag, got.Digest, err, want)
			}
		}
		_, err = s.Get(t.Context(), ref+":3", "", "me")
		wantError(t, err, providers.ErrImage, `no image "3"`, "some/image:1")
	}
	_, err := s.Get(t.Context(), unnamed, "", "me")
	wantError(t, err, providers.ErrImage, "2 images")
	_, err = s.Import(t.Context(), "", bytes.NewReader(tarOf(t, named)))
	wantError(t, err, providers.ErrInvalid, "some/image:1", "docker.io/some/image:2")
	got, err := s.Import(t.Context(), "some/image:2", bytes.NewReader(tarOf(t, named)))
	if err != nil || got.Digest != two.digest || got.Ref != "some/image:2" {
		t.Errorf("import of one: %+v, %v", got, err)
	}
	entries := []saved{{Config: "a", RepoTags: []string{"x:1"}}, {Config: "b", RepoTags: []string{"x:2"}}}
	raw, err := json.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	both := archiveOf(t, layerOf(t, file("manifest.json", string(raw))))
	_, err = s.Get(t.Context(), both, "", "me")
	wantError(t, err, providers.ErrImage, "2 images", "x:2")
	_, err = s.Get(t.Context(), both+":3", "", "me")
	wantError(t, err, providers.ErrImage, `no image "3"`)
	_, err = s.Get(t.Context(), both+":1", "", "me")
	wantError(t, err, providers.ErrImage)
}

// TestDamagedLocal: what a disk or a copy may have spoilt.
func TestDamagedLocal(t *testing.T) {
	image := imageOf(t, func(raw []byte) []byte { return gzipped(t, raw) }, layerOf(t, file("f", strings.Repeat("content", 1000))))
	layer := image.manifest.Layers[0].Digest
	change := func(what func(path string)) string {
		dir := image.layout(t)
		what(filepath.Join(dir, blobPath(layer)))
		return dir
	}
	plain := imageOf(t, nil, layerOf(t, file("f", "content")))
	long := plain.savedOf(t)
	for name, c := range map[string]struct {
		ref  string
		word string
	}{
		"layer changed": {change(func(path string) {
			raw := image.blobs[layer.String()]
			raw = append([]byte{}, raw...)
			raw[len(raw)/2] ^= 1
			write(t, path, raw)
		}), "digest"},
		"layer cut off":     {change(func(path string) { write(t, path, image.blobs[layer.String()][:40]) }), "ended after 40 of"},
		"layer empty":       {change(func(path string) { write(t, path, nil) }), "ended after 0 of"},
		"layer missing":     {change(func(path string) { _ = os.Remove(path) }), "is missing"},
		"layer is a folder": {change(func(path string) { _ = os.Remove(path); _ = os.Mkdir(path, 0o700) }), "not a regular file"},
		"layer leads out":   {change(func(path string) { _ = os.Remove(path); _ = os.Symlink("/etc/passwd", path) }), "escapes"},
		"empty folder":      {t.TempDir(), "neither an OCI layout"},
		"index of no sense": {func() string {
			dir := image.layout(t)
			write(t, filepath.Join(dir, layoutIndex), []byte("<"))
			return dir
		}(), "not JSON"},
		"index of nothing": {func() string {
			dir := image.layout(t)
			write(t, filepath.Join(dir, layoutIndex), []byte("{}"))
			return dir
		}(), "no image"},
		"empty file":                {archiveOf(t, nil), "neither an OCI layout"},
		"text":                      {archiveOf(t, bytes.Repeat([]byte("text"), 1000)), "not an archive"},
		"packed":                    {archiveOf(t, gzipped(t, long)), "not an archive"},
		"archive cut off":           {archiveOf(t, long[:len(long)-1500]), "ended after"},
		"archive cut off in a file": {archiveOf(t, long[:700]), "ended after"},
		"archive without a layer": {archiveOf(t, layerOf(t, file("manifest.json", `[{"Config":"c","Layers":["l"]}]`),
			file("c", `{"rootfs":{"diff_ids":["`+sum(nil)+`"]}}`))), "l is missing"},
		"archive without a config": {archiveOf(t, layerOf(t, file("manifest.json", `[{"Config":"c"}]`))), "does not have c"},
		"archive with another config": {archiveOf(t, layerOf(t, file("manifest.json", `[{"Config":"c"}]`),
			file("c", `{"rootfs":{"diff_ids":["`+sum(nil)+`"]}}`))), "does not go with"},
		"archive of no sense": {archiveOf(t, layerOf(t, file("manifest.json", `<`))), "not JSON"},
		"archive of a tree":   {archiveOf(t, layerOf(t, file("bin/sh", "x"))), "neither an OCI layout"},
		"a device":            {"/dev/null", "neither a folder nor a file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := quick(t)
			_, err := s.Get(t.Context(), c.ref, "", "me")
			wantError(t, err, providers.ErrImage, c.word, c.ref)
			wantNothing(t, s)
		})
	}
	s := quick(t)
	s.limits.archive = 100
	_, err := s.Get(t.Context(), archiveOf(t, long), "", "me")
	wantError(t, err, providers.ErrImage, "more than 100")
	s = quick(t)
	s.limits.manifest = 10
	_, err = s.Get(t.Context(), image.layout(t), "", "me")
	wantError(t, err, providers.ErrImage, "more than 10")
	s = quick(t)
	s.limits.layers = 0
	_, err = s.Get(t.Context(), archiveOf(t, long), "", "me")
	wantError(t, err, providers.ErrImage, "1 layers")
	var many []tar.Header
	for range maxMembers + 2 {
		many = append(many, file("f", ""))
	}
	_, err = s.Get(t.Context(), archiveOf(t, layerOf(t, many...)), "", "me")
	wantError(t, err, providers.ErrImage, "root file system")
}

func TestImport(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	index := image.index()
	index.Manifests[0].Annotations = map[string]string{refName: "some/image:7"}
	layout := tarOf(t, image.layoutWith(t, index))
	for name, c := range map[string]struct {
		as      string
		archive []byte
		want    string
	}{
		"layout, its own name":  {"", layout, "some/image:7"},
		"layout, another name":  {"mine:1", layout, "mine:1"},
		"packed with gzip":      {"", gzipped(t, layout), "some/image:7"},
		"packed with zstd":      {"", zstded(t, layout), "some/image:7"},
		"docker save":           {"", image.savedOf(t, "some/image:8"), "some/image:8"},
		"docker save, no name":  {"mine:2", image.savedOf(t), "mine:2"},
		"what the testbed made": {"", readFile(t, testbed.Archive(t)), testbed.BaseImage},
	} {
		t.Run(name, func(t *testing.T) {
			s := quick(t)
			got, err := s.Import(t.Context(), c.as, bytes.NewReader(c.archive))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(got.Ref, c.want) || got.Bytes <= 0 {
				t.Errorf("got %+v, want %s", got, c.want)
			}
			// It is used by that name, without a registry.
			s.options.Transport = roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("asked") })
			if used, err := s.Get(t.Context(), got.Ref, "", "me"); err != nil || used.Digest != got.Digest {
				t.Errorf("use: %s, %v", used.Digest, err)
			}
			if left := append(names(t, s.path(tmpDir)), names(t, s.path(trashDir))...); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
	noName := tarOf(t, image.layout(t))
	odd := image.savedOf(t, "/etc/passwd")
	for name, c := range map[string]struct {
		as      string
		archive io.Reader
		kind    error
		word    string
	}{
		"no name":            {"", bytes.NewReader(noName), providers.ErrInvalid, "--name"},
		"a name of no sense": {"A B", bytes.NewReader(noName), providers.ErrInvalid, "A B"},
		"a path":             {"/a/b", bytes.NewReader(noName), providers.ErrInvalid, "place"},
		"named a path":       {"", bytes.NewReader(odd), providers.ErrImage, "no name"},
		"cut off":            {"x:1", bytes.NewReader(layout[:700]), providers.ErrImage, "ended after"},
		"packed, cut off":    {"x:1", bytes.NewReader(gzipped(t, layout)[:60]), providers.ErrImage, "middle"},
		"no archive":         {"x:1", strings.NewReader(strings.Repeat("text", 1000)), providers.ErrImage, "not an archive"},
		"nothing":            {"x:1", strings.NewReader(""), providers.ErrImage, "neither"},
		"the caller's error": {"x:1", io.MultiReader(bytes.NewReader(layout[:700]), broken{}), nil, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			s := quick(t)
			_, err := s.Import(t.Context(), c.as, c.archive)
			wantError(t, err, c.kind, c.word)
			wantNothing(t, s)
		})
	}
	s := quick(t)
	s.limits.archive = 1000
	_, err := s.Import(t.Context(), "x:1", bytes.NewReader(layout))
	wantError(t, err, providers.ErrImage, "more than 1000")
	wantNothing(t, s)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestImageKeepsItsConfig(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	image.config.Config = v1.Config{Env: []string{"A=1", "B=2"}, User: "dev", WorkingDir: "/srv"}
	image.seal(t)
	s := quick(t)
	got, err := s.Get(t.Context(), image.layout(t), "", "me")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got.Env, " ") != "A=1 B=2" || got.User != "dev" || got.WorkingDir != "/srv" || got.Flat != (os.Geteuid() != 0) || got.Bytes <= 0 {
		t.Errorf("got %+v", got)
	}
	for _, ref := range []string{"https://example.com/disk.img", "/a/disk.qcow2"} {
		_, err = s.Get(t.Context(), ref, "", "me")
		wantError(t, err, providers.ErrInvalid, "disk image", "--provider qemu")
	}
}
