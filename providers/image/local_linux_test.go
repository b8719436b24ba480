package image

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vendetta-dev/vendetta/providers"
)

// TestPrivateFolders: who may name an image may not read the node with it.
func TestPrivateFolders(t *testing.T) {
	private, open := t.TempDir(), t.TempDir()
	s := quick(t)
	s.options.Private = []string{filepath.Join(open, "none"), private}
	secret := filepath.Join(private, "state.db")
	write(t, secret, rawDisk("secret"))
	write(t, filepath.Join(private, "disk.img"), rawDisk("secret"))
	if err := errors.Join(
		os.Rename(simple(t), filepath.Join(private, "layout")),
		os.Symlink(secret, filepath.Join(open, "evil.img")),
		os.Symlink(filepath.Join(private, "disk.img"), filepath.Join(open, "neighbour.img")),
		os.Symlink(private, filepath.Join(open, "way")),
		os.Symlink("/etc/passwd", filepath.Join(open, "passwd.img")),
	); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{
		filepath.Join(private, "disk.img"), filepath.Join(open, "evil.img"), filepath.Join(open, "neighbour.img"),
		filepath.Join(open, "way", "disk.img"),
	} {
		_, err := s.GetDisk(t.Context(), ref, "", "", "me")
		wantError(t, err, providers.ErrInvalid, "vendetta's own", ref)
	}
	for _, ref := range []string{filepath.Join(private, "layout"), filepath.Join(open, "way/layout"), "oci:" + filepath.Join(open, "way/layout")} {
		_, err := s.Get(t.Context(), ref, "", "me")
		wantError(t, err, providers.ErrInvalid, "vendetta's own", ref)
	}
	_, err := s.GetDisk(t.Context(), filepath.Join(open, "passwd.img"), "", "", "me")
	wantError(t, err, providers.ErrImage, "/etc/passwd", "does not end in")
	wantNothing(t, s)
	// A link of a person's to what is a disk image is fine.
	write(t, filepath.Join(open, "real.img"), rawDisk("mine"))
	if err := os.Symlink("real.img", filepath.Join(open, "link.img")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetDisk(t.Context(), filepath.Join(open, "link.img"), "", "", "me"); err != nil {
		t.Error(err)
	}
	if isBelow("/a/bc", "/a/b") || !isBelow("/a/b/c", "/a/b") || !isBelow("/a/b", "/a/b") || !isBelow("/a", "/") {
		t.Error("isBelow")
	}
}

func TestConfigOfNoSense(t *testing.T) {
	for name, config := range map[string]v1.Config{
		"environment": {Env: []string{"A=1", "B=\x00"}},
		"user":        {User: "dev\nroot"},
		"folder":      {WorkingDir: "/\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			image := imageOf(t, nil, layerOf(t, file("f", "x")))
			image.config.Config = config
			image.seal(t)
			s := quick(t)
			_, err := s.Get(t.Context(), image.layout(t), "", "me")
			wantError(t, err, providers.ErrImage, "its config has")
			wantNothing(t, s)
		})
	}
}

// TestHalfRemoved: an image without its record was being removed; it is no image
// and in nobody's way.
func TestHalfRemoved(t *testing.T) {
	s := quick(t)
	ref := simple(t)
	image, err := s.Get(t.Context(), ref, "", "me")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(image.Root), recordFile)); err != nil {
		t.Fatal(err)
	}
	if images, err := s.List(t.Context()); err != nil || len(images) != 0 {
		t.Errorf("%+v, %v", images, err)
	}
	if again, err := s.Get(t.Context(), ref, "", "me"); err != nil || again.Digest != image.Digest {
		t.Errorf("%+v, %v", again, err)
	}
}

// TestAnnotations: what other tools write beside does not disturb.
func TestAnnotations(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "x")))
	index := image.index()
	index.Annotations = map[string]string{"x": "y"}
	index.Manifests[0].Annotations = map[string]string{"x": "y"}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	dir := image.layout(t)
	write(t, filepath.Join(dir, layoutIndex), raw)
	if _, err := quick(t).Get(t.Context(), dir, "", "me"); err != nil {
		t.Error(err)
	}
}

func TestWordsOfErrors(t *testing.T) {
	private := &os.PathError{Op: "open", Path: "/store", Err: syscall.EACCES}
	registry, err := parse("debian:12")
	if err != nil {
		t.Fatal(err)
	}
	local, err := parse("/a/b")
	if err != nil {
		t.Fatal(err)
	}
	if e := explain(t.Context(), "pull", registry, private); errors.Is(e, providers.ErrImage) || !errors.Is(e, syscall.EACCES) {
		t.Errorf("trouble of the store is the image's: %v", e)
	}
	wantError(t, explain(t.Context(), "read", local, private), providers.ErrImage, "let the user of the node agent read it")
	wantError(t, explain(t.Context(), "read", local, &truncated{what: "it", got: 1, want: -1}), providers.ErrImage, "ended after 1 bytes", "copy the file")
	if explain(t.Context(), "pull", registry, nil) != nil {
		t.Error("an error out of nothing")
	}
}
