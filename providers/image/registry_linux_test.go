package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// moody is a real registry that answers as a test wants where that says so.
type moody struct {
	host string
	real http.Handler
	mood atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	mu    sync.Mutex
	asked map[string]int // by method and path
}

func newMoody(t *testing.T) *moody {
	t.Helper()
	m := &moody{real: registry.New(registry.Logger(log.New(io.Discard, "", 0))), asked: map[string]int{}}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.host = strings.TrimPrefix(server.URL, "http://")
	return m
}

func (m *moody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.asked[r.Method+" "+r.URL.Path]++
	m.mu.Unlock()
	if mood := m.mood.Load(); mood != nil && (*mood)(w, r) {
		return
	}
	m.real.ServeHTTP(w, r)
}

func (m *moody) count(method, in string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for what, times := range m.asked {
		if strings.HasPrefix(what, method+" ") && strings.Contains(what, in) {
			n += times
		}
	}
	return n
}

func (m *moody) behave(mood func(http.ResponseWriter, *http.Request) bool) { m.mood.Store(&mood) }

// push puts an image's parts into the registry and tags its manifest.
func (m *moody) push(t *testing.T, image *made, repo, tag string) string {
	t.Helper()
	for digest, raw := range image.blobs {
		if digest == image.digest {
			continue
		}
		m.send(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", raw)
	}
	m.send(t, http.MethodPut, "/v2/"+repo+"/manifests/"+image.digest, string(types.OCIManifestSchema1), image.blobs[image.digest])
	m.send(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(types.OCIManifestSchema1), image.blobs[image.digest])
	return m.host + "/" + repo + ":" + tag
}

func (m *moody) pushIndex(t *testing.T, index v1.IndexManifest, repo, tag string) string {
	t.Helper()
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	m.send(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(types.OCIImageIndex), raw)
	return m.host + "/" + repo + ":" + tag
}

func (m *moody) send(t *testing.T, method, path, kind string, body []byte) {
	t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	m.real.ServeHTTP(w, r)
	if w.Code >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

// quick is a store that does not wait long.
func quick(t *testing.T) *Store {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := newStore(t)
	s.wait = time.Millisecond
	return s
}

// wantError holds an error to its kind and words, and a next step where there is one.
func wantError(t *testing.T, err error, kind error, words ...string) {
	t.Helper()
	var e *providers.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error of the contract", err)
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("%v: kind %v, want %v", err, e.Kind, kind)
	}
	for _, word := range words {
		if !strings.Contains(e.Message+" | "+e.Next, word) {
			t.Errorf("message %q, next %q: no %q", e.Message, e.Next, word)
		}
	}
	if kind != nil && e.Next == "" {
		t.Errorf("%q says no next step", e.Message)
	}
}

// wantNothing holds a store to be empty, whatever was tried.
func wantNothing(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{imagesDir, disksDir, refsDir, tmpDir, trashDir, locksDir} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left behind: %s/%s", dir, e.Name())
		}
	}
}

// TestRegistryTrouble: what a registry may do wrong, and what is said of it.
func TestRegistryTrouble(t *testing.T) {
	content := strings.Repeat("0123456789", 10_000)
	image := imageOf(t, nil, layerOf(t, file("etc/os-release", content)))
	layer := image.manifest.Layers[0].Digest.String()
	isManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	isLayer := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, layer) }
	status := func(when func(*http.Request) bool, code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !when(r) {
				return false
			}
			http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"go away"}]}`, code)
			return true
		}
	}
	for name, c := range map[string]struct {
		mood  func(http.ResponseWriter, *http.Request) bool
		words []string
		asked int // for the layer, when it is not 0
	}{
		"401":       {status(isManifest, 401), []string{"(401)", "docker login"}, 0},
		"403":       {status(isManifest, 403), []string{"(403)", "docker login"}, 0},
		"404":       {status(isManifest, 404), []string{"(404)", "check the name"}, 0},
		"418":       {status(isManifest, 418), []string{"418", "teapot"}, 0},
		"429":       {status(isManifest, 429), []string{"too often (429)", "wait"}, 0},
		"500":       {status(isManifest, 500), []string{"in trouble (500)", "later"}, 0},
		"503 layer": {status(isLayer, 503), []string{"in trouble (503)"}, attempts},
		"404 layer": {status(isLayer, 404), []string{"not its part " + layer}, 1},
		"401 at the door": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/" || isManifest(r) {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				http.Error(w, "", http.StatusUnauthorized)
				return true
			}
			return false
		}, []string{"(401)", "docker login"}, 0},
		"other bytes": {func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				_, _ = w.Write(bytes.Repeat([]byte("x"), int(image.manifest.Layers[0].Size)))
			}
			return isLayer(r)
		}, []string{"digest", layer, "do not use it"}, 1},
		"other bytes for the manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if isManifest(r) {
				w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
				_, _ = io.WriteString(w, `{"schemaVersion":2}`)
			}
			return isManifest(r)
		}, []string{"not an image"}, 0},
		"too long a layer": {func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				w.Header().Set("Transfer-Encoding", "chunked")
				_, _ = w.Write(bytes.Repeat([]byte("x"), int(image.manifest.Layers[0].Size)+1))
			}
			return isLayer(r)
		}, []string{"digest"}, 0},
		"stops in the middle": {func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				w.Header().Set("Content-Length", fmt.Sprint(image.manifest.Layers[0].Size))
				_, _ = io.WriteString(w, "half of it")
			}
			return isLayer(r)
		}, []string{"ended after 10 of", "try again"}, tries},
		"short layer": {func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				_, _ = io.WriteString(w, "half of it")
				if f, ok := w.(http.Flusher); ok {
					f.Flush() // no length is said
				}
			}
			return isLayer(r)
		}, []string{"ended after 10 of", "try again"}, tries},
		"stops in the manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if isManifest(r) {
				w.Header().Set("Content-Length", "1000")
				_, _ = io.WriteString(w, "{")
			}
			return isManifest(r)
		}, []string{"stops in the middle"}, 0},
		"endless manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if isManifest(r) {
				for range 6 {
					_, _ = w.Write(bytes.Repeat([]byte(" "), 1<<20))
				}
			}
			return isManifest(r)
		}, []string{"manifest is more than"}, 0},
		"a web page": {func(w http.ResponseWriter, r *http.Request) bool {
			if isManifest(r) {
				_, _ = io.WriteString(w, "<html>hello</html>")
			}
			return isManifest(r)
		}, []string{"not an image", "not JSON"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMoody(t)
			ref := m.push(t, image, "some/image", "1")
			m.behave(c.mood)
			s := quick(t)
			_, err := s.Get(t.Context(), ref, "", "me")
			wantError(t, err, providers.ErrImage, append(c.words, ref)...)
			wantNothing(t, s)
			if got := m.count(http.MethodGet, layer); c.asked > 0 && got != c.asked {
				t.Errorf("the layer was asked for %d times, want %d", got, c.asked)
			}
			// It passes, and the same call works.
			m.behave(func(http.ResponseWriter, *http.Request) bool { return false })
			got, err := s.Get(t.Context(), ref, "", "me")
			if err != nil {
				t.Fatal(err)
			}
			if text, err := os.ReadFile(filepath.Join(got.Root, "etc/os-release")); string(text) != content {
				t.Errorf("%d bytes, %v", len(text), err)
			}
		})
	}
}

// TestRegistryPatience: trouble that passes is waited out.
func TestRegistryPatience(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	layer := image.manifest.Layers[0].Digest.String()
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	var left atomic.Int32
	left.Store(3)
	m.behave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" || left.Load() == 0 {
			return false
		}
		switch left.Add(-1) {
		case 2:
			w.Header().Set("Retry-After", "0")
			http.Error(w, "", http.StatusTooManyRequests)
		case 1:
			http.Error(w, "", http.StatusBadGateway)
		case 0:
			panic(http.ErrAbortHandler) // the connection breaks
		}
		return true
	})
	s := quick(t)
	if _, err := s.Get(t.Context(), ref, "", "me"); err != nil {
		t.Fatal(err)
	}
	// And a layer that was cut off once.
	var cut atomic.Bool
	m.behave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layer) || cut.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(image.manifest.Layers[0].Size))
		_, _ = io.WriteString(w, "x")
		return true
	})
	if _, err := quick(t).Get(t.Context(), ref, "", "me"); err != nil {
		t.Fatal(err)
	}
}

// TestRegistryStalls: a registry that sends nothing any more is left.
func TestRegistryStalls(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	layer := image.manifest.Layers[0].Digest.String()
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	for name, where := range map[string]string{"at the layer": layer, "at the manifest": "/manifests/"} {
		t.Run(name, func(t *testing.T) {
			m.behave(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, where) {
					return false
				}
				if where == layer {
					w.Header().Set("Content-Length", fmt.Sprint(image.manifest.Layers[0].Size))
					_, _ = io.WriteString(w, "x")
					w.(http.Flusher).Flush()
				}
				<-r.Context().Done() // until the other end hangs up
				return true
			})
			s := quick(t)
			s.patience = 20 * time.Millisecond
			_, err := s.Get(t.Context(), ref, "", "me")
			wantError(t, err, providers.ErrImage, "sends nothing any more", ref)
			wantNothing(t, s)
		})
	}
}

func TestRegistryUnreachable(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	s := quick(t)
	_, err = s.Get(t.Context(), host+"/some/image:1", "", "me")
	wantError(t, err, providers.ErrImage, "cannot be reached", "connection refused", "docker save "+host+"/some/image:1")
	// An address of a private network is no reason to do without https.
	_, err = s.Get(t.Context(), "10.255.255.1/some/image:1", "", "me")
	wantError(t, err, providers.ErrImage)
	wantNothing(t, s)
}

func TestPlainHTTPIsForLoopback(t *testing.T) {
	asked := false
	s := quick(t)
	s.options.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		asked = asked || r.URL.Scheme == "http"
		return nil, io.ErrNoProgress
	})
	_, err := s.Get(t.Context(), "10.0.0.1:5000/some/image:1", "", "me")
	wantError(t, err, providers.ErrImage)
	if asked {
		t.Error("asked over plain http")
	}
	_, err = s.GetDisk(t.Context(), "http://example.com/disk.img", "", "", "me")
	wantError(t, err, providers.ErrInvalid, "https")
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCancelled(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	reached := make(chan struct{}, 1)
	m.behave(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		select {
		case reached <- struct{}{}:
		default:
		}
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	s := quick(t)
	_, err := s.Get(ctx, ref, "", "me")
	wantError(t, err, nil, "cancelled")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cause of %v is not the context's", err)
	}
	wantNothing(t, s)
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Get(ctx, ref, "", "me")
	wantError(t, err, nil, "took too long")
}

func TestDigestIsPinned(t *testing.T) {
	old := imageOf(t, nil, layerOf(t, file("f", "old")))
	latest := imageOf(t, nil, layerOf(t, file("f", "new")))
	m := newMoody(t)
	ref := m.push(t, old, "some/image", "1")
	s := quick(t)
	first, err := s.Get(t.Context(), ref, "", "a")
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest != old.digest {
		t.Errorf("digest %s, want %s", first.Digest, old.digest)
	}
	m.push(t, latest, "some/image", "1")
	// What is known is used, without asking.
	before := m.count(http.MethodGet, "")
	if again, err := s.Get(t.Context(), ref, "", "b"); err != nil || again.Digest != old.digest {
		t.Errorf("again: %s, %v", again.Digest, err)
	}
	if asked := m.count(http.MethodGet, "") - before; asked != 0 {
		t.Errorf("the registry was asked %d times", asked)
	}
	// Pull asks; what it finds is what the reference means from then on.
	var lines []string
	pulled, err := s.Pull(t.Context(), ref, func(line string) { lines = append(lines, line) })
	if err != nil || pulled.Digest != latest.digest || pulled.Ref != ref || pulled.Used != 0 {
		t.Errorf("pulled %+v, %v", pulled, err)
	}
	if len(lines) == 0 || !strings.Contains(strings.Join(lines, "\n"), "layer 1 of 1") {
		t.Errorf("said %q", lines)
	}
	if now, err := s.Get(t.Context(), ref, "", "c"); err != nil || now.Digest != latest.digest {
		t.Errorf("after the pull: %s, %v", now.Digest, err)
	}
	// The pinned one is still what it was, also in a store that never had it.
	for name, store := range map[string]*Store{"same store": s, "other store": quick(t)} {
		got, err := store.Get(t.Context(), ref, old.digest, "d")
		if err != nil || got.Digest != old.digest {
			t.Errorf("%s: %s, %v", name, got.Digest, err)
		}
		if text, err := os.ReadFile(filepath.Join(got.Root, "f")); string(text) != "old" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	// A digest that nobody has.
	_, err = s.Get(t.Context(), ref, sum([]byte("nothing")), "e")
	wantError(t, err, providers.ErrImage, "(404)")
	_, err = s.Get(t.Context(), ref, "sha256:xyz", "e")
	wantError(t, err, providers.ErrInvalid, "sha256:HEX")
	// A reference with a digest.
	if got, err := quick(t).Get(t.Context(), m.host+"/some/image@"+old.digest, "", "f"); err != nil || got.Digest != old.digest {
		t.Errorf("by digest: %s, %v", got.Digest, err)
	}
	// The tag moved on: the old one is named by its digest.
	images, err := s.List(t.Context())
	if err != nil || len(images) != 2 || images[0].Ref != ref && images[1].Ref != ref {
		t.Errorf("list: %+v, %v", images, err)
	}
	for _, i := range images {
		if i.Digest == old.digest && i.Ref != m.host+"/some/image@"+old.digest {
			t.Errorf("the old one is named %s", i.Ref)
		}
	}
	// A registry that answers a digest with something else.
	m.behave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
		_, _ = w.Write(latest.blobs[latest.digest])
		return true
	})
	_, err = quick(t).Get(t.Context(), ref, old.digest, "g")
	wantError(t, err, providers.ErrImage, old.digest, "exchanged")
}

func TestFetchedOnce(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")), layerOf(t, file("g", "content")))
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	s := quick(t)
	other := New(s.options) // as of another process
	var wait sync.WaitGroup
	for i := range 8 {
		store := s
		if i%2 == 0 {
			store = other
		}
		wait.Go(func() {
			if _, err := store.Get(t.Context(), ref, "", fmt.Sprint("holder", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, layer := range image.manifest.Layers {
		if n := m.count(http.MethodGet, layer.Digest.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", layer.Digest, n)
		}
	}
	images, err := s.List(t.Context())
	if err != nil || len(images) != 1 || images[0].Used != 8 {
		t.Errorf("list: %+v, %v", images, err)
	}
	if left := append(names(t, s.path(tmpDir)), names(t, s.path(locksDir))...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestPlatforms(t *testing.T) {
	s := quick(t)
	s.options.Platform = "linux/amd64"
	m := newMoody(t)
	image := func(os, arch string) *made {
		i := imageOf(t, nil, layerOf(t, file("arch", arch)))
		i.config.OS, i.config.Architecture = os, arch
		i.seal(t)
		return i
	}
	describe := func(i *made, os, arch, variant string) v1.Descriptor {
		m.push(t, i, "some/image", "part")
		d := i.index().Manifests[0]
		d.Platform = &v1.Platform{OS: os, Architecture: arch, Variant: variant}
		return d
	}
	amd, arm := image("linux", "amd64"), image("linux", "arm64")
	attest := describe(amd, "unknown", "unknown", "")
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	index.Manifests = []v1.Descriptor{
		describe(arm, "linux", "arm64", "v8"), attest, describe(image("linux", "amd64"), "linux", "amd64", "v3"), describe(amd, "linux", "amd64", ""),
	}
	ref := m.pushIndex(t, index, "some/image", "many")
	got, err := s.Get(t.Context(), ref, "", "a")
	if err != nil || got.Digest != amd.digest {
		t.Errorf("of many: %s, %v; want %s", got.Digest, err, amd.digest)
	}
	index.Manifests = []v1.Descriptor{attest, describe(arm, "linux", "arm64", "v8"), describe(image("linux", "s390x"), "linux", "s390x", "")}
	ref = m.pushIndex(t, index, "some/image", "others")
	_, err = s.Get(t.Context(), ref, "", "b")
	wantError(t, err, providers.ErrImage, "not for linux/amd64", "linux/arm64/v8, linux/s390x")
	ref = m.push(t, arm, "some/image", "single")
	_, err = s.Get(t.Context(), ref, "", "c")
	wantError(t, err, providers.ErrImage, "not for linux/amd64", "linux/arm64")
	ref = m.push(t, image("windows", "amd64"), "some/image", "windows")
	_, err = s.Get(t.Context(), ref, "", "d")
	wantError(t, err, providers.ErrImage, "windows/amd64")
	index.Manifests = []v1.Descriptor{attest}
	ref = m.pushIndex(t, index, "some/image", "attestations")
	_, err = s.Get(t.Context(), ref, "", "e")
	wantError(t, err, providers.ErrImage, "no image in it")
}

// TestNotAnImage: registries keep other things too.
func TestNotAnImage(t *testing.T) {
	m := newMoody(t)
	for name, c := range map[string]struct {
		change func(*made)
		word   string
	}{
		"chart": {func(i *made) {
			i.manifest.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
			i.sealManifest(t)
		}, "helm"},
		"layers of another kind": {func(i *made) {
			i.manifest.Layers[0].MediaType = "application/wasm"
			i.sealManifest(t)
		}, "wasm"},
		"encrypted": {func(i *made) {
			i.manifest.Layers[0].MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
			i.sealManifest(t)
		}, "encrypted"},
		"config of no sense": {func(i *made) {
			i.manifest.Config = i.blob(t, types.OCIConfigJSON, []byte("<html>"))
			i.sealManifest(t)
		}, "config is not JSON"},
		"too few layers": {func(i *made) {
			i.config.RootFS.DiffIDs = nil
			i.seal(t)
		}, "0 layers"},
		"other layers": {func(i *made) {
			i.config.RootFS.DiffIDs = []v1.Hash{hashOf(t, []byte("x"))}
			i.seal(t)
		}, "unpacks to"},
		"a layer of a negative size": {func(i *made) {
			i.manifest.Layers[0].Size = -1
			i.sealManifest(t)
		}, "-1 bytes"},
		"a layer of a wrong size": {func(i *made) {
			i.manifest.Layers[0].Size--
			i.sealManifest(t)
		}, "longer"},
		"a config that is too large": {func(i *made) {
			i.manifest.Config.Size = 1 << 40
			i.sealManifest(t)
		}, "config is"},
		"too many layers": {func(i *made) {
			for range defaultLimits.layers {
				i.manifest.Layers = append(i.manifest.Layers, i.manifest.Layers[0])
			}
			i.sealManifest(t)
		}, "513 layers"},
		"a digest of another kind": {func(i *made) {
			i.manifest.Layers[0].Digest.Algorithm = "sha512"
			i.manifest.Layers[0].Digest.Hex = strings.Repeat("0", 128)
			i.sealManifest(t)
		}, "another kind"},
		"a diff of another kind": {func(i *made) {
			i.config.RootFS.DiffIDs[0].Algorithm = "sha512"
			i.config.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 128)
			i.seal(t)
		}, "another kind"},
	} {
		t.Run(name, func(t *testing.T) {
			image := imageOf(t, nil, layerOf(t, file("f", "content")))
			c.change(image)
			for from, ref := range map[string]string{"layout": image.layout(t), "registry": m.push(t, image, "some/image", "1")} {
				s := quick(t)
				_, err := s.Get(t.Context(), ref, "", "me")
				if !strings.Contains(fmt.Sprint(err), c.word) {
					t.Errorf("%s: no %q in %v", from, c.word, err)
				}
				wantError(t, err, providers.ErrImage, ref)
				wantNothing(t, s)
			}
		})
	}
	innermost := imageOf(t, nil)
	m.push(t, innermost, "some/image", "innermost")
	nested := innermost.index()
	for range maxNested {
		raw, err := json.Marshal(nested)
		if err != nil {
			t.Fatal(err)
		}
		m.pushIndex(t, nested, "some/image", "nested")
		nested.Manifests[0] = v1.Descriptor{MediaType: types.OCIImageIndex, Digest: hashOf(t, raw), Size: int64(len(raw))}
	}
	_, err := quick(t).Get(t.Context(), m.pushIndex(t, nested, "some/image", "nested"), "", "me")
	wantError(t, err, providers.ErrImage, "indexes")
}

// TestCredentials: what docker login left is used, by a helper too.
func TestCredentials(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	m.behave(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		http.Error(w, "", http.StatusUnauthorized)
		return true
	})
	s := quick(t)
	_, err := s.Get(t.Context(), ref, "", "a")
	wantError(t, err, providers.ErrImage, "(401)", "docker login "+m.host)
	dir := t.TempDir()
	helper := "#!/bin/sh\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	write(t, filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), fmt.Appendf(nil, `{"credHelpers":{%q:"test"}}`, m.host))
	if _, err := s.Get(t.Context(), ref, "", "a"); err != nil {
		t.Error(err)
	}
}

func TestReferences(t *testing.T) {
	for ref, want := range map[string]string{
		"debian:12": "docker.io", "debian": "docker.io", "ghcr.io/owner/name:tag": "ghcr.io", "127.0.0.1:5000/x": "127.0.0.1:5000",
		"/srv/images/debian": "/srv/images/debian", "oci:/srv/images/debian": "/srv/images/debian",
		"https://example.com/d.qcow2": "example.com", "/srv/disk.qcow2": "/srv/disk.qcow2",
	} {
		r, err := parse(ref)
		if err != nil || r.from() != want {
			t.Errorf("%s: from %s, %v; want %s", ref, r.from(), err, want)
		}
	}
	for _, ref := range []string{
		"", "UPPER", "a b", "oci:relative", "x@sha256:12", "a\nb", strings.Repeat("x", maxReference+1),
		"http://example.com/x", "https://", "https:///x.img", "https://[::1/x",
	} {
		if _, err := parse(ref); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	for ref, want := range map[string]bool{
		"debian:12": false, "https://h/x": true, "http://127.0.0.1/x": true, "/a/b.img": true, "/a/b.QCOW2": true, "/a/b.raw": true,
		"/a/b.tar": false, "/a/b": false, "a/b.img": false, "oci:/a": false,
	} {
		if got := IsDisk(ref); got != want {
			t.Errorf("IsDisk(%q) = %t", ref, got)
		}
	}
	one, _ := parse("debian")
	two, _ := parse("docker.io/library/debian:latest")
	if one.key("linux/amd64") != two.key("linux/amd64") || one.key("linux/amd64") == one.key("linux/arm64") {
		t.Error("keys do not tell what differs from what is the same")
	}
	if r, _ := parse("https://me:secret@example.com/x.img"); strings.Contains(r.text, "secret") {
		t.Errorf("a password is shown: %s", r.text)
	}
	if testbed.RegistryUserImage(t) == testbed.RegistryImage(t) {
		t.Error("both test images have one name")
	}
}
