package docker_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
)

// store is that of the test engine.
func store(t *testing.T, host string) *docker.Store {
	t.Helper()
	s, err := docker.NewStore(docker.StoreOptions{Host: host, PullTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// find is what a store lists under a name.
func find(t *testing.T, images providers.Images, ref string) providers.Image {
	t.Helper()
	all, err := images.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if strings.HasPrefix(i.Ref, "vendetta-snapshot/") || strings.HasPrefix(i.Ref, "vendetta-root/") {
			t.Errorf("lists %+v", i)
		}
	}
	i := slices.IndexFunc(all, func(i providers.Image) bool { return i.Ref == ref })
	if i < 0 {
		t.Errorf("%s is not in %+v", ref, all)
		return providers.Image{}
	}
	return all[i]
}

func TestImages(t *testing.T) {
	testbed.Wants(t, "docker")
	s, images, p := open(t), store(t, testbed.Docker(t)), idling(t)
	if images.Name() != "docker" {
		t.Errorf("name %q", images.Name())
	}
	img, _ := fresh(t)
	ref := s.stock(t, "pulled/image:1", img)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	said := []string{}
	got, err := images.Pull(t.Context(), ref, func(line string) { said = append(said, line) })
	if err != nil {
		t.Fatal(err)
	}
	if got.Ref != ref || got.Digest != digest.String() || got.Bytes < 1<<20 || got.Used != 0 {
		t.Errorf("pulled %+v, want digest %s", got, digest)
	}
	if !slices.ContainsFunc(said, func(line string) bool { return strings.Contains(line, "Pulling") }) || len(said) > 40 {
		t.Errorf("said %q", said)
	}
	spec := providers.Spec{Workspace: id(), Image: ref}
	made := up(t, p, spec)
	if !strings.HasSuffix(made.Digest, digest.String()) {
		t.Errorf("made %+v", made)
	}
	snapshot(t, p, spec.Workspace, "a")
	snapshot(t, p, spec.Workspace, "b")
	fork := providers.Spec{Workspace: id()}
	if _, err := p.Fork(t.Context(), spec.Workspace, fork); err != nil {
		t.Fatal(err)
	}
	// Two instances and two snapshots.
	if got := find(t, images, ref); got.Used != 4 || got.Digest != digest.String() || got.Bytes < 1<<20 {
		t.Errorf("listed %+v", got)
	}
	if again, err := images.Pull(t.Context(), ref, nil); err != nil || again.Used != 4 {
		t.Errorf("%+v, %v", again, err)
	}
	if err := p.Restore(t.Context(), spec.Workspace, "a"); err != nil {
		t.Fatal(err)
	}
	if got := find(t, images, ref); got.Used != 4 {
		t.Errorf("listed %+v", got)
	}
	for _, w := range []string{spec.Workspace, fork.Workspace} {
		if err := p.Destroy(t.Context(), w, true); err != nil {
			t.Error(err)
		}
	}
	if got := find(t, images, ref); got.Used != 0 {
		t.Errorf("listed %+v", got)
	}
	forget(t, ref)
	_, err = images.Pull(t.Context(), s.host+"/no/such:1", nil)
	want(t, err, providers.ErrImage, "does not exist")
	_, err = images.Pull(t.Context(), "No Name", nil)
	want(t, err, providers.ErrImage, "No Name", "docker pull")
}

func TestImport(t *testing.T) {
	testbed.Wants(t, "docker")
	images, e := store(t, testbed.Docker(t)), engine(t)
	tag, err := name.NewTag("vendetta-test/archive:1")
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tarball.Write(tag, oci(t), &archive); err != nil {
		t.Fatal(err)
	}
	load := func(ref string) (providers.Image, error) {
		t.Helper()
		return images.Import(t.Context(), ref, bytes.NewReader(archive.Bytes()))
	}
	got, err := load("")
	if err != nil || got.Ref != tag.String() || !strings.HasPrefix(got.Digest, "sha256:") {
		t.Fatalf("%+v, %v", got, err)
	}
	named, err := load("vendetta-test/given")
	if err != nil || named.Ref != "vendetta-test/given:latest" || named.Digest != got.Digest {
		t.Fatalf("%+v, %v", named, err)
	}
	find(t, images, "vendetta-test/given:latest")
	for _, ref := range []string{"No Name", "vendetta-test/given@" + got.Digest} {
		_, err = load(ref)
		want(t, err, providers.ErrImage, ref)
	}
	// Several, and one without a name.
	several, err := e.ImageSave(t.Context(), []string{tag.String(), testbed.Image(t)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = images.Import(t.Context(), "vendetta-test/both:1", several)
	want(t, err, providers.ErrInvalid, "2 images", "own names")
	_ = several.Close()
	nameless, err := e.ImageSave(t.Context(), []string{got.Digest})
	if err != nil {
		t.Fatal(err)
	}
	only, err := images.Import(t.Context(), "", nameless)
	if err != nil || only.Ref != got.Digest {
		t.Errorf("%+v, %v", only, err)
	}
	_ = nameless.Close()
	for _, junk := range []io.Reader{strings.NewReader("no archive"), bytes.NewReader(make([]byte, 1024)), bytes.NewReader(layerWith(t, "a", "b"))} {
		_, err := images.Import(t.Context(), "", junk)
		want(t, err, providers.ErrImage, "import docker image", "docker save")
	}
	forget(t, "vendetta-test/given:latest", tag.String())
}

func TestPruneTakesItsOwnOnly(t *testing.T) {
	testbed.Wants(t, "docker")
	images, e, p := store(t, testbed.Docker(t)), engine(t), idling(t)
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	up(t, p, spec)
	snapshot(t, p, spec.Workspace, "a")
	snapshot(t, p, spec.Workspace, "b")
	tag := "vendetta-snapshot/" + spec.Workspace + ":"
	ids := map[string]string{}
	for _, name := range []string{"a", "b"} {
		found, err := e.ImageInspect(t.Context(), tag+name)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = found.ID
	}
	// What a user builds from a snapshot has its labels, and is the user's.
	c, err := e.ContainerCreate(t.Context(), &container.Config{Image: tag + "b", Cmd: []string{"true"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := e.ContainerCommit(t.Context(), c.ID, container.CommitOptions{Changes: []string{"ENV by=hand"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.ContainerRemove(t.Context(), c.ID, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	// Both lose their names; b is what the user's image stands on.
	for _, name := range []string{"a", "b"} {
		if err := e.ImageTag(t.Context(), ids[name], "vendetta-test/moved:1"); err != nil {
			t.Fatal(err)
		}
		unname(t, tag+name)
	}
	if err := e.ImageTag(t.Context(), testbed.Image(t), "vendetta-test/moved:1"); err != nil {
		t.Fatal(err)
	}
	pruned, err := images.Prune(t.Context())
	if err != nil || !holds(pruned, ids["a"]) || holds(pruned, ids["b"]) {
		t.Errorf("%+v, %v, want %s", pruned, err, ids["a"])
	}
	for _, left := range []string{theirs.ID, ids["b"], testbed.BaseImage} {
		if _, err := e.ImageInspect(t.Context(), left); err != nil {
			t.Error(err)
		}
	}
	if _, err := e.ImageRemove(t.Context(), theirs.ID, image.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if pruned, err = images.Prune(t.Context()); err != nil || !holds(pruned, ids["b"]) {
		t.Errorf("%+v, %v, want %s", pruned, err, ids["b"])
	}
	unname(t, "vendetta-test/moved:1")
}

func holds(images []providers.Image, digest string) bool {
	return slices.ContainsFunc(images, func(i providers.Image) bool { return i.Digest == digest })
}

// unname takes a name from an image that has others.
func unname(t *testing.T, ref string) {
	t.Helper()
	if _, err := engine(t).ImageRemove(t.Context(), ref, image.RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestStoreFailures(t *testing.T) {
	if _, err := docker.NewStore(docker.StoreOptions{Host: "nonsense"}); err == nil {
		t.Error("took a bad host")
	}
	trouble := says(500, failure("trouble"))
	dangling := says(200, []any{map[string]any{"Id": "sha256:d"}})
	ours := says(200, map[string]any{"Id": "sha256:d", "Comment": "made by vendetta"})
	for name, c := range map[string]struct {
		answers map[string]http.HandlerFunc
		do      func(context.Context, *docker.Store) error
		fails   bool
	}{
		"list":            {map[string]http.HandlerFunc{"GET /images/json": trouble}, listImages, true},
		"list containers": {map[string]http.HandlerFunc{"GET /containers/json": trouble}, listImages, true},
		"list snapshots":  {map[string]http.HandlerFunc{"GET /images/json": inTurn(says(200, []any{}), trouble)}, listImages, true},
		"list nothing":    {nil, listImages, false},
		"pull":            {map[string]http.HandlerFunc{"POST /images/create": trouble}, pullImage, true},
		"look":            {map[string]http.HandlerFunc{"GET /images/base:latest/json": trouble}, pullImage, true},
		"look for users":  {map[string]http.HandlerFunc{"GET /images/base:latest/json": ours, "GET /containers/json": trouble}, pullImage, true},
		"load":            {map[string]http.HandlerFunc{"POST /images/load": trouble}, importImage, true},
		"load junk":       {map[string]http.HandlerFunc{"POST /images/load": says(200, "junk")}, importImage, true},
		"load nothing":    {map[string]http.HandlerFunc{"POST /images/load": says(200, map[string]any{"stream": "hm"})}, importImage, true},
		"load and tag": {map[string]http.HandlerFunc{
			"POST /images/load":         says(200, map[string]any{"stream": "Loaded image ID: sha256:d\n"}),
			"POST /images/sha256:d/tag": trouble,
		}, importImage, true},
		"prune":      {map[string]http.HandlerFunc{"GET /images/json": trouble}, pruneImages, true},
		"prune look": {map[string]http.HandlerFunc{"GET /images/json": dangling, "GET /images/sha256:d/json": trouble}, pruneImages, true},
		"prune gone": {map[string]http.HandlerFunc{"GET /images/json": dangling, "GET /images/sha256:d/json": says(404, failure("gone"))}, pruneImages, false},
		"prune fails": {map[string]http.HandlerFunc{
			"GET /images/json": dangling, "GET /images/sha256:d/json": ours, "DELETE /images/sha256:d": trouble,
		}, pruneImages, true},
		"prune used": {map[string]http.HandlerFunc{
			"GET /images/json": dangling, "GET /images/sha256:d/json": ours, "DELETE /images/sha256:d": says(409, failure("in use")),
		}, pruneImages, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.do(t.Context(), store(t, "tcp://"+strings.TrimPrefix(script(t, c.answers).URL, "http://")))
			if c.fails {
				if err == nil {
					t.Error("no error")
				}
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func listImages(ctx context.Context, s *docker.Store) error {
	_, err := s.List(ctx)
	return err
}

func pullImage(ctx context.Context, s *docker.Store) error {
	_, err := s.Pull(ctx, "base", nil)
	return err
}

func importImage(ctx context.Context, s *docker.Store) error {
	_, err := s.Import(ctx, "base", strings.NewReader(""))
	return err
}

func pruneImages(ctx context.Context, s *docker.Store) error {
	_, err := s.Prune(ctx)
	return err
}
