package providertest

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/sourcegraph/conc/pool"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// ImagesHarness is what a store of images brings.
type ImagesHarness struct {
	// New returns the store as a process that was just started would make it.
	New func(t *testing.T) providers.Images
	// Use has an instance, or what stands for one, use an image until release.
	Use func(t *testing.T, image providers.Image) (release func())
	// Publish makes a reference mean an image that it did not mean before. Nil is
	// the test bed's registry, whose digests a pull must then tell.
	Publish func(t *testing.T, ref string)
	// Remove takes an image, if it is there, out of a store that outlives the test;
	// nil otherwise.
	Remove func(t *testing.T, ref string)
	// Shared: the store is the machine's, so that Prune cannot tell that nobody
	// wants an image and must leave it.
	Shared bool
}

// RunImages runs the suite of stores of images.
func RunImages(t *testing.T, h ImagesHarness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *shelf)
	}{
		{"Pull", testPull},
		{"PullMissing", testPullMissing},
		{"PullCancelled", testPullCancelled},
		{"PullAtOnce", testPullAtOnce},
		{"TagMoves", testTagMoves},
		{"Import", testImport},
		{"ImportRefusals", testImportRefusals},
		{"Prune", testPrune},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testPatience)
			t.Cleanup(cancel)
			c.run(t, &shelf{ImagesHarness: h, ctx: ctx, store: h.New(t)})
		})
	}
}

// shelf is one test's store.
type shelf struct {
	ImagesHarness
	ctx   context.Context //nolint:containedctx // bounds one test
	store providers.Images
}

// publish makes a new reference that a pull finds, and returns its digest where
// that is known.
func (s *shelf) publish(t *testing.T) (ref, digest string) {
	t.Helper()
	ref = testbed.Registry(t) + "/vendetta-suite/" + random(t) + ":1"
	s.forget(t, ref)
	return ref, s.publishAs(t, ref)
}

func (s *shelf) publishAs(t *testing.T, ref string) (digest string) {
	t.Helper()
	if s.Publish != nil {
		s.Publish(t, ref)
		return ""
	}
	to, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	made := oneImage(t)
	if err := remote.Write(to, made, remote.WithContext(s.ctx)); err != nil {
		t.Fatal(err)
	}
	hash, err := made.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hash.String()
}

// forget removes an image at the test's end, where the store outlives it.
func (s *shelf) forget(t *testing.T, ref string) {
	t.Helper()
	if s.Remove != nil {
		t.Cleanup(func() { s.Remove(t, ref) })
	}
}

// oneImage is like no other.
func oneImage(t *testing.T) v1.Image {
	t.Helper()
	base, err := testbed.OCI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file, err := base.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config := *file.Config.DeepCopy()
	config.Env = append(config.Env, "ONE="+random(t))
	made, err := mutate.Config(base, config)
	if err == nil {
		made, err = mutate.CreatedAt(made, v1.Time{Time: time.Now()})
	}
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (s *shelf) pull(t *testing.T, ref string) providers.Image {
	t.Helper()
	image, err := s.store.Pull(s.ctx, ref, nil)
	if err != nil {
		t.Fatalf("pull: %v%s", err, next(err))
	}
	return image
}

func (s *shelf) list(t *testing.T) []providers.Image {
	t.Helper()
	all, err := s.store.List(s.ctx)
	if err != nil {
		t.Fatalf("list images: %v", err)
	}
	if !slices.IsSortedFunc(all, func(a, b providers.Image) int { return strings.Compare(a.Ref, b.Ref) }) {
		t.Errorf("not sorted by reference: %+v", all)
	}
	return all
}

// with returns the images of a digest.
func with(all []providers.Image, digest string) []providers.Image {
	return slices.DeleteFunc(slices.Clone(all), func(i providers.Image) bool { return i.Digest != digest })
}

func testPull(t *testing.T, s *shelf) {
	if !regexp.MustCompile(`^[a-z]+$`).MatchString(s.store.Name()) {
		t.Errorf("name %q", s.store.Name())
	}
	ref, digest := s.publish(t)
	var said []string
	image, err := s.store.Pull(s.ctx, ref, func(line string) { said = append(said, line) })
	if err != nil {
		t.Fatalf("pull: %v%s", err, next(err))
	}
	if image.Ref != ref || image.Digest == "" || image.Bytes < -1 || image.Bytes == 0 || image.Used > 0 || image.CreatedAt.IsZero() {
		t.Errorf("pulled %+v", image)
	}
	if digest != "" && image.Digest != digest {
		t.Errorf("pulled %+v, the registry has %s", image, digest)
	}
	if len(said) == 0 || slices.ContainsFunc(said, func(line string) bool { return line == "" || strings.Contains(line, "\n") }) {
		t.Errorf("said %q", said)
	}
	if again := s.pull(t, ref); again.Digest != image.Digest {
		t.Errorf("pulled again %+v, before %+v", again, image)
	}
	s.store = s.New(t)
	if found := with(s.list(t), image.Digest); len(found) != 1 || found[0].Ref != ref {
		t.Errorf("a new process lists %+v, want %+v", found, image)
	}
}

func testPullMissing(t *testing.T, s *shelf) {
	ref, _ := s.publish(t)
	before := s.list(t)
	for _, missing := range append(malformed, ref+"-not", "127.0.0.1:1/nothing/here:1") {
		_, err := s.store.Pull(s.ctx, missing, nil)
		wantNoImage(t, "pull "+missing, missing, err)
		if err != nil && (next(err) == "" || !strings.Contains(err.Error(), missing)) {
			t.Errorf("error does not name the image or a next step: %v%s", err, next(err))
		}
	}
	for _, image := range s.list(t) {
		if !slices.ContainsFunc(before, func(had providers.Image) bool { return had.Ref == image.Ref }) && strings.Contains(image.Ref, ref) {
			t.Errorf("missing images left %+v", image)
		}
	}
}

func testPullCancelled(t *testing.T, s *shelf) {
	ref, _ := s.publish(t)
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.store.Pull(ended, ref, nil); err == nil {
		t.Error("pulled after the context's end")
	}
	s.pull(t, ref)
}

func testPullAtOnce(t *testing.T, s *shelf) {
	first, _ := s.publish(t)
	second, _ := s.publish(t)
	work := pool.NewWithResults[providers.Image]().WithErrors()
	for i := range 6 {
		ref := first
		if i%3 == 0 {
			ref = second
		}
		work.Go(func() (providers.Image, error) { return s.store.Pull(s.ctx, ref, nil) })
	}
	pulled, err := work.Wait()
	if err != nil {
		t.Fatal(err)
	}
	digests := map[string]string{}
	for _, image := range pulled {
		if had, ok := digests[image.Ref]; ok && had != image.Digest {
			t.Errorf("%s is %s and %s", image.Ref, had, image.Digest)
		}
		digests[image.Ref] = image.Digest
	}
	for ref, digest := range digests {
		if found := with(s.list(t), digest); len(found) != 1 || found[0].Ref != ref {
			t.Errorf("%s: %+v", ref, found)
		}
	}
}

func testTagMoves(t *testing.T, s *shelf) {
	ref, _ := s.publish(t)
	before := s.pull(t, ref)
	release := s.Use(t, before)
	t.Cleanup(release)
	moved := s.publishAs(t, ref)
	after := s.pull(t, ref)
	if after.Digest == before.Digest || moved != "" && after.Digest != moved {
		t.Errorf("pulled %+v, before %+v", after, before)
	}
	for _, image := range s.list(t) {
		if image.Ref == ref && image.Digest != after.Digest {
			t.Errorf("listed %+v, pulled %+v", image, after)
		}
	}
}

// saved is an archive as docker save writes it, and laid an OCI layout as a tar.
func saved(t *testing.T, as string, image v1.Image) []byte {
	t.Helper()
	tag, err := name.NewTag(as)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tarball.Write(tag, image, &archive); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func laid(t *testing.T, as string, image v1.Image) []byte {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": as})); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func testImport(t *testing.T, s *shelf) {
	for _, c := range []struct {
		what  string
		write func(*testing.T, string, v1.Image) []byte
	}{
		{"docker save", saved},
		{"an OCI layout", laid},
	} {
		own, given := "vendetta-suite/"+random(t)+":1", "vendetta-suite/"+random(t)+":2"
		archive := c.write(t, own, oneImage(t))
		s.forget(t, own)
		s.forget(t, given)
		image, err := s.store.Import(s.ctx, "", bytes.NewReader(archive))
		if err != nil {
			t.Fatalf("import %s: %v%s", c.what, err, next(err))
		}
		if !strings.HasSuffix(image.Ref, own) || image.Digest == "" || image.Used > 0 {
			t.Errorf("imported %s as %+v", c.what, image)
		}
		named, err := s.store.Import(s.ctx, given, bytes.NewReader(archive))
		if err != nil {
			t.Fatalf("import %s: %v%s", c.what, err, next(err))
		}
		if !strings.HasSuffix(named.Ref, given) || named.Digest != image.Digest {
			t.Errorf("imported %s as %+v, before as %+v", c.what, named, image)
		}
		s.store = s.New(t)
		if !slices.ContainsFunc(s.list(t), func(i providers.Image) bool { return i.Ref == named.Ref && i.Digest == named.Digest }) {
			t.Errorf("%+v is not listed", named)
		}
		release := s.Use(t, named)
		release()
	}
}

func testImportRefusals(t *testing.T, s *shelf) {
	whole := saved(t, "vendetta-suite/"+random(t)+":1", oneImage(t))
	given := "vendetta-suite/" + random(t) + ":1"
	for what, archive := range map[string]io.Reader{
		"nothing":    bytes.NewReader(nil),
		"no archive": strings.NewReader(strings.Repeat("no archive ", 1000)),
		"a part":     bytes.NewReader(whole[:len(whole)/2]),
	} {
		_, err := s.store.Import(s.ctx, given, archive)
		wantKind(t, "import "+what, err, providers.ErrImage)
	}
	for _, image := range s.list(t) {
		if strings.HasSuffix(image.Ref, filepath.Base(given)) && strings.Contains(image.Ref, given) {
			t.Errorf("refused imports left %+v", image)
		}
	}
}

func testPrune(t *testing.T, s *shelf) {
	ref, _ := s.publish(t)
	another, _ := s.publish(t)
	used, unused := s.pull(t, ref), s.pull(t, another)
	release := s.Use(t, used)
	for _, image := range with(s.list(t), used.Digest) {
		if image.Used == 0 {
			t.Errorf("%+v is used", image)
		}
	}
	prune := func() []providers.Image {
		t.Helper()
		gone, err := s.store.Prune(s.ctx)
		if err != nil {
			t.Fatalf("prune: %v%s", err, next(err))
		}
		return gone
	}
	left := func(image providers.Image, gone []providers.Image, stays bool) {
		t.Helper()
		if removed := len(with(gone, image.Digest)) > 0; removed == stays {
			t.Errorf("pruned %+v, where %+v should stay: %v", gone, image, stays)
		}
		if found := len(with(s.list(t), image.Digest)) > 0; found != stays {
			t.Errorf("%+v is listed: %v", image, found)
		}
	}
	gone := prune()
	left(used, gone, true)
	left(unused, gone, s.Shared)
	release()
	left(used, prune(), s.Shared)
	if again := s.pull(t, another); again.Digest != unused.Digest {
		t.Errorf("pulled after prune %+v, before %+v", again, unused)
	}
	if gone := with(prune(), used.Digest); len(gone) > 0 {
		t.Errorf("pruned twice: %+v", gone)
	}
}
