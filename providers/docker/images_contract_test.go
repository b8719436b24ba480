package docker_test

import (
	"context"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

func TestImagesContract(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), real(t)
	providertest.RunImages(t, providertest.ImagesHarness{
		New: func(t *testing.T) providers.Images {
			store, err := docker.NewStore(docker.StoreOptions{Host: testbed.Docker(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			})
			return store
		},
		Use: func(t *testing.T, image providers.Image) (release func()) {
			spec := providers.Spec{Workspace: id(), Image: image.Ref}
			if _, err := p.Create(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := p.Destroy(context.WithoutCancel(t.Context()), spec.Workspace, true); err != nil {
					t.Error(err)
				}
			}
		},
		Remove: func(t *testing.T, ref string) {
			// Force takes only its name where a tag has moved on.
			_, err := e.ImageRemove(context.Background(), ref, image.RemoveOptions{Force: true, PruneChildren: true})
			if err != nil && !cerrdefs.IsNotFound(err) {
				t.Error(err)
			}
		},
		Shared: true,
	})
}
