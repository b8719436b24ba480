package image_test

import (
	"testing"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

func TestImagesContract(t *testing.T) {
	dir := t.TempDir()
	store := image.New(image.Options{Dir: dir})
	holders := 0
	providertest.RunImages(t, providertest.ImagesHarness{
		New: func(*testing.T) providers.Images { return image.New(image.Options{Dir: dir}) },
		Use: func(t *testing.T, used providers.Image) (release func()) {
			holders++
			holder := "instance-" + string(rune('a'+holders))
			if _, err := store.Get(t.Context(), used.Ref, used.Digest, holder); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := store.Release(holder); err != nil {
					t.Error(err)
				}
			}
		},
	})
}
