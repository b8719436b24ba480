package docker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sourcegraph/conc/pool"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
)

// shop is a real registry on loopback that can be told to have trouble.
type shop struct {
	host string

	mu     sync.Mutex
	faults map[string]http.HandlerFunc // by what a path ends with or contains
	served map[string]int
}

// open starts a registry of this test's own.
func open(t *testing.T) *shop {
	t.Helper()
	s := &shop{faults: map[string]http.HandlerFunc{}, served: map[string]int{}}
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		var fault http.HandlerFunc
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			s.served[r.Method+" "+r.URL.Path]++
			for part, f := range s.faults {
				if strings.Contains(r.URL.Path, part) {
					fault = f
				}
			}
		}
		s.mu.Unlock()
		if fault != nil {
			fault(w, r)
			return
		}
		real.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	return s
}

// stock puts an image there and returns its reference.
func (s *shop) stock(t *testing.T, as string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + as)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func (s *shop) breaks(part string, f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[part] = f
}

// times is how often a path that ends like that was asked for.
func (s *shop) times(method, end string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for path, times := range s.served {
		if strings.HasPrefix(path, method+" ") && strings.HasSuffix(path, end) {
			n += times
		}
	}
	return n
}

// refuses answers as a registry does that has that trouble.
func refuses(status int, code string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"says the registry"}]}`, code)
	}
}

func oci(t *testing.T) v1.Image {
	t.Helper()
	img, err := testbed.OCI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// forMachine is the test image with another architecture in its config.
func forMachine(t *testing.T, architecture string) v1.Image {
	t.Helper()
	img := oci(t)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture = architecture
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestRegistryInTrouble(t *testing.T) {
	testbed.Wants(t, "docker")
	s, p := open(t), real(t)
	for _, c := range []struct {
		name  string
		part  string
		fault http.HandlerFunc
		words []string
	}{
		{"login", "manifests", refuses(401, "UNAUTHORIZED", "WWW-Authenticate", `Basic realm="r"`), []string{"refuses it without a login", "docker login"}},
		{"absent", "manifests", refuses(404, "MANIFEST_UNKNOWN"), []string{"does not exist"}},
		{"limited", "manifests", refuses(429, "TOOMANYREQUESTS"), []string{"too many requests", "wait"}},
		{"broken", "manifests", refuses(500, "UNKNOWN"), []string{"the registry is in trouble", "later"}},
		{"cut", "blobs", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		}, []string{"broke off", "docker load"}},
		{"truncated", "blobs", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(layerWith(t, "own", "something else"))
		}, []string{"damaged", "try again"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, layer := fresh(t)
			ref := s.stock(t, c.name+"/image:1", img)
			part := c.name + "/image/" + c.part
			if c.part == "blobs" {
				part += "/" + layer
			}
			s.breaks(part, c.fault)
			spec := providers.Spec{Workspace: id(), Image: ref}
			_, err := p.Create(t.Context(), spec)
			want(t, err, providers.ErrImage, append(c.words, ref)...)
			if all, err := p.List(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("left %+v, %v", all, err)
			}
			// The trouble over, the same call does.
			s.breaks(part, nil)
			if _, err := p.Create(t.Context(), spec); err != nil {
				t.Error(err)
			}
			if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
				t.Error(err)
			}
			forget(t, ref)
		})
	}
}

// forget removes an image that a test has pulled.
func forget(t *testing.T, refs ...string) {
	t.Helper()
	for _, ref := range refs {
		if _, err := engine(t).ImageRemove(context.Background(), ref, image.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
}

// A login that the node's user has is used, as docker pull uses it.
func TestPrivateRegistry(t *testing.T) {
	testbed.Wants(t, "docker")
	s, p := open(t), real(t)
	img, _ := fresh(t)
	s.stock(t, "private/image:1", img)
	target, err := url.Parse("http://" + s.host)
	if err != nil {
		t.Fatal(err)
	}
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			refuses(401, "UNAUTHORIZED", "WWW-Authenticate", `Basic realm="r"`)(w, r)
			return
		}
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
	}))
	t.Cleanup(door.Close)
	host := strings.TrimPrefix(door.URL, "http://")
	spec := providers.Spec{Workspace: id(), Image: host + "/private/image:1"}
	for _, c := range []struct {
		config string
		works  bool
	}{
		{`{}`, false},
		{`junk`, false},
		{fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:wrong"))), false},
		{fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:secret"))), true},
	} {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := p.Create(t.Context(), spec)
		if c.works && err != nil {
			t.Error(err)
		} else if !c.works {
			want(t, err, providers.ErrImage, "without a login", "docker login")
		}
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Error(err)
	}
	forget(t, spec.Image)
}

func TestRegistryThatHangs(t *testing.T) {
	testbed.Wants(t, "docker")
	s, p := open(t), real(t, func(o *docker.Options) { o.PullTimeout = 500 * time.Millisecond })
	img, _ := fresh(t)
	ref := s.stock(t, "slow/image:1", img)
	// The engine may keep on waiting after its asker has gone.
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	s.breaks("slow/image/blobs", func(http.ResponseWriter, *http.Request) { <-over })
	_, err := p.Create(t.Context(), providers.Spec{Workspace: id(), Image: ref})
	want(t, err, providers.ErrImage, "longer than 500ms")
}

func TestImageForAnotherMachine(t *testing.T) {
	testbed.Wants(t, "docker")
	s, p := open(t), real(t)
	ref := s.stock(t, "other/image:1", forMachine(t, "s390x"))
	_, err := p.Create(t.Context(), providers.Spec{Workspace: id(), Image: ref})
	want(t, err, providers.ErrImage, ref, "is for s390x", "linux/"+runtime.GOARCH)
	forget(t, ref)

	list := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: forMachine(t, "s390x"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
	})
	named, err := name.ParseReference(s.host + "/list/image:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(named, list); err != nil {
		t.Fatal(err)
	}
	_, err = p.Create(t.Context(), providers.Spec{Workspace: id(), Image: named.String()})
	want(t, err, providers.ErrImage, named.String(), "is not made for machines like the node")
}

func TestManyCreatesFetchOnce(t *testing.T) {
	testbed.Wants(t, "docker")
	s, p := open(t), real(t)
	img, layer := fresh(t)
	ref := s.stock(t, "many/image:1", img)
	work := pool.New().WithErrors()
	for range 4 {
		spec := providers.Spec{Workspace: id(), Image: ref}
		work.Go(func() error {
			_, err := p.Create(t.Context(), spec)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := s.times(http.MethodGet, layer); n != 1 {
		t.Errorf("a layer was fetched %d times", n)
	}
	all, err := p.List(t.Context())
	if err != nil || len(all) != 4 {
		t.Errorf("%+v, %v", all, err)
	}
	for _, i := range all {
		if i.Digest != all[0].Digest || !strings.HasPrefix(i.Digest, s.host+"/many/image@sha256:") {
			t.Errorf("digest %q", i.Digest)
		}
		if err := p.Destroy(t.Context(), i.Workspace, true); err != nil {
			t.Error(err)
		}
	}
	forget(t, ref)
}

// fresh is an image with a layer that no engine has yet, and that one's digest.
func fresh(t *testing.T) (v1.Image, string) {
	t.Helper()
	layer := static.NewLayer(layerWith(t, "own", id()), types.DockerUncompressedLayer)
	img, err := mutate.AppendLayers(oci(t), layer)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return img, digest.String()
}

// layerWith is a layer with one file in /etc.
func layerWith(t *testing.T, name, content string) []byte {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/" + name, Mode: 0o644, Size: int64(len(content))}),
	)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return layer.Bytes()
}

// A workspace that comes back has the image that it had, although its tag has
// moved on and the machine has lost it.
func TestDigestHolds(t *testing.T) {
	testbed.Wants(t, "docker")
	s, e, p := open(t), engine(t), real(t)
	with := func(content string) v1.Image {
		img, err := mutate.AppendLayers(oci(t), static.NewLayer(layerWith(t, "which", content), types.DockerUncompressedLayer))
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	ref := s.stock(t, "moving/image:1", with("old"))
	spec := providers.Spec{Workspace: id(), Image: ref}
	made, err := p.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := p.Inspect(t.Context(), spec.Workspace); err != nil || seen.Digest != made.Digest {
		t.Errorf("inspected %+v, made %+v, %v", seen, made, err)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, false); err != nil {
		t.Fatal(err)
	}
	s.stock(t, "moving/image:1", with("new"))
	images, err := docker.NewStore(docker.StoreOptions{Host: testbed.Docker(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close() })
	if _, err := images.Pull(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	spec.Digest = made.Digest
	for _, lost := range []bool{false, true} {
		if lost {
			forget(t, made.Digest)
		}
		again, err := p.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if again.Digest != made.Digest || content(t, e, again.Name, "/etc/which") != "old" {
			t.Errorf("lost %v: %+v holds %q", lost, again, content(t, e, again.Name, "/etc/which"))
		}
		if err := p.Destroy(t.Context(), spec.Workspace, false); err != nil {
			t.Fatal(err)
		}
	}
	// Without the digest it is what the tag says now.
	spec.Digest = ""
	again, err := p.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest == made.Digest || content(t, e, again.Name, "/etc/which") != "new" {
		t.Errorf("%+v", again)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Fatal(err)
	}
	forget(t, ref, made.Digest)
}

func TestDigestOfABuiltImage(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), real(t)
	c, err := e.ContainerCreate(t.Context(), &container.Config{Image: testbed.Image(t), Cmd: []string{"true"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	built, err := e.ContainerCommit(t.Context(), c.ID, container.CommitOptions{Reference: "vendetta-test/built:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.ContainerRemove(t.Context(), c.ID, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	spec := providers.Spec{Workspace: id(), Image: "vendetta-test/built:1"}
	made, err := p.Create(t.Context(), spec)
	if err != nil || made.Digest != built.ID {
		t.Fatalf("%+v, %v", made, err)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Fatal(err)
	}
	spec.Digest = made.Digest
	forget(t, spec.Image)
	_, err = p.Create(t.Context(), spec)
	want(t, err, providers.ErrImage, "image vendetta-test/built:1 of id "+built.ID, "built or loaded on the node", "is not there any more")
}

// content is that of a file in a container.
func content(t *testing.T, e *client.Client, c, path string) string {
	t.Helper()
	stream, _, err := e.CopyFromContainer(t.Context(), c, path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer func() { _ = stream.Close() }()
	r := tar.NewReader(stream)
	if _, err := r.Next(); err != nil {
		t.Error(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
