package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// newStore is a store in a folder of the test's.
func newStore(t *testing.T) *Store {
	t.Helper()
	return New(Options{Dir: filepath.Join(t.TempDir(), "images")})
}

func TestGet(t *testing.T) {
	for what, ref := range map[string]string{
		"registry": testbed.RegistryImage(t),
		"layout":   testbed.Layout(t),
		"archive":  testbed.Archive(t),
	} {
		t.Run(what, func(t *testing.T) {
			s := newStore(t)
			image, err := s.Get(t.Context(), ref, "", "one")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(image.Root, "bin/busybox")); err != nil {
				t.Error(err)
			}
			if held, err := s.Held(image.Digest); err != nil || held.Root != image.Root {
				t.Errorf("Held: %+v, %v", held, err)
			}
			images, err := s.List(t.Context())
			if err != nil || len(images) != 1 || images[0].Used != 1 || images[0].Ref != ref {
				t.Errorf("List: %+v, %v", images, err)
			}
			if gone, err := s.Prune(t.Context()); err != nil || len(gone) != 0 {
				t.Errorf("Prune of a held image: %+v, %v", gone, err)
			}
			if err := s.Release("one"); err != nil {
				t.Error(err)
			}
			gone, err := s.Prune(t.Context())
			if err != nil || len(gone) != 1 {
				t.Errorf("Prune: %+v, %v", gone, err)
			}
			if _, err := s.Held(image.Digest); err == nil {
				t.Error("Held after Prune finds it")
			}
		})
	}
}
