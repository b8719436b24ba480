package docker_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// layoutTar is an OCI layout as a tar: an image for another machine, and, in an
// index of its own, one for this machine.
func layoutTar(t *testing.T, name string) []byte {
	t.Helper()
	dir := t.TempDir()
	inner := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: forMachine(t, "s390x"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: oci(t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	)
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: inner, Descriptor: v1.Descriptor{
		Annotations: map[string]string{"org.opencontainers.image.ref.name": name},
	}})
	if _, err := layout.Write(dir, outer); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func TestImportOfALayout(t *testing.T) {
	testbed.Wants(t, "docker")
	images, p := store(t, testbed.Docker(t)), idling(t)
	got, err := images.Import(t.Context(), "", bytes.NewReader(layoutTar(t, "vendetta-test/layout:1")))
	if err != nil || got.Ref != "vendetta-test/layout:1" || got.Bytes < 1<<20 {
		t.Fatalf("%+v, %v", got, err)
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(layoutTar(t, "1")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	named, err := images.Import(t.Context(), "vendetta-test/packed:1", &packed)
	if err != nil || named.Ref != "vendetta-test/packed:1" || named.Digest != got.Digest {
		t.Fatalf("%+v, %v", named, err)
	}
	spec := providers.Spec{Workspace: id(), Image: named.Ref}
	made := up(t, p, spec)
	if made.Digest != got.Digest || sh(t, engine(t), spec.Workspace, "echo runs") != "runs" {
		t.Errorf("%+v", made)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Error(err)
	}
	forget(t, got.Ref, named.Ref)
}

// archiveOf is a tar of files by their names.
func archiveOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// blob is a part of a layout: its name there and its digest.
func blob(content string) (name, digest string) {
	sum := sha256.Sum256([]byte(content))
	return "blobs/sha256/" + hex.EncodeToString(sum[:]), "sha256:" + hex.EncodeToString(sum[:])
}

func TestBadLayouts(t *testing.T) {
	index := func(digest string) string { return `{"manifests":[{"digest":"` + digest + `"}]}` }
	manifest, manifestDigest := blob(`{"config":{"digest":"sha256:../../etc"}}`)
	layered, layeredDigest := blob(`{"config":{"digest":"` + manifestDigest + `"},"layers":[{"digest":"md5:x"}]}`)
	junk, junkDigest := blob("junk")
	none, noneDigest := blob(`{"manifests":[]}`)
	big := strings.Repeat("x", 1<<20)
	many := map[string]string{}
	for i := range 17 {
		many["blobs/sha256/"+strings.Repeat(string(rune('a'+i%6)), 63)+string("0123456789abcdef"[i%16])] = big
	}
	deep := map[string]string{}
	name, digest := blob(`{}`)
	deep[name] = `{}`
	for range 6 {
		content := index(digest)
		name, digest = blob(content)
		deep[name] = content
	}
	deep["index.json"] = index(digest)
	for what, c := range map[string]struct {
		files map[string]string
		says  string
	}{
		"junk index":    {map[string]string{"index.json": "junk"}, "read the archive's index"},
		"no manifest":   {map[string]string{"index.json": index(manifestDigest)}, "the archive lacks " + manifestDigest},
		"no digest":     {map[string]string{"index.json": index("../../etc/passwd")}, "is no sha256 digest"},
		"bad config":    {map[string]string{"index.json": index(manifestDigest), manifest: `{"config":{"digest":"sha256:../../etc"}}`}, "is no sha256 digest"},
		"bad layer":     {map[string]string{"index.json": index(layeredDigest), layered: `{"config":{"digest":"` + manifestDigest + `"},"layers":[{"digest":"md5:x"}]}`}, "is no sha256 digest"},
		"damaged":       {map[string]string{"index.json": index(manifestDigest), manifest: "other"}, "is damaged"},
		"junk manifest": {map[string]string{"index.json": index(junkDigest), junk: "junk"}, "read manifest"},
		"nothing":       {map[string]string{"index.json": index(noneDigest), none: `{"manifests":[]}`}, "no image for linux/amd64"},
		"too many":      {many, "too many manifests"},
		"too deep":      {deep, "too deep"},
	} {
		t.Run(what, func(t *testing.T) {
			s := script(t, map[string]http.HandlerFunc{
				"GET /info":         says(200, machine(func(m map[string]any) { m["Architecture"] = "x86_64" })),
				"POST /images/load": func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
			})
			_, err := store(t, "tcp://"+strings.TrimPrefix(s.URL, "http://")).Import(t.Context(), "", bytes.NewReader(archiveOf(t, c.files)))
			want(t, err, providers.ErrImage, "import docker image", c.says)
		})
	}
}

// What docker save wrote goes on as it is, and so does what is no tar.
func TestImportPassesOn(t *testing.T) {
	saved := archiveOf(t, map[string]string{"manifest.json": "[]", "index.json": "junk", "layer.tar": "content"})
	var got []byte
	s := script(t, map[string]http.HandlerFunc{"POST /images/load": func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode(map[string]string{"stream": "Loaded image: base:latest\n"})
	}, "GET /images/base:latest/json": says(200, map[string]any{"Id": "sha256:b"})})
	images := store(t, "tcp://"+strings.TrimPrefix(s.URL, "http://"))
	if i, err := images.Import(t.Context(), "", bytes.NewReader(saved)); err != nil || i.Digest != "sha256:b" || !bytes.Equal(got, saved) {
		t.Errorf("%+v, %v, %d bytes of %d", i, err, len(got), len(saved))
	}
	other := "\x28\xb5\x2f\xfd and so on"
	if _, err := images.Import(t.Context(), "", strings.NewReader(other)); err != nil || string(got) != other {
		t.Errorf("%v, %q", err, got)
	}
	long := archiveOf(t, map[string]string{"a": strings.Repeat("x", 9000)})
	for _, cut := range [][]byte{long[:700], {0x1f, 0x8b, 0}} {
		if _, err := images.Import(t.Context(), "", bytes.NewReader(cut)); err == nil {
			t.Error("took an archive that is cut off")
		}
	}
	// An engine that does not read on.
	s = script(t, map[string]http.HandlerFunc{"POST /images/load": says(500, failure("trouble"))})
	_, err := store(t, "tcp://"+strings.TrimPrefix(s.URL, "http://")).Import(t.Context(), "", bytes.NewReader(archiveOf(t, map[string]string{"a": strings.Repeat("x", 8<<20)})))
	want(t, err, providers.ErrImage, "trouble")
}
