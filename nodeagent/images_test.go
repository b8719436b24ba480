package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

// shelf is a store of images in memory.
type shelf struct {
	name string

	mu     sync.Mutex
	images []providers.Image
	// err is what every call fails with.
	err error
	// begun tells of each import; pulling and importing wait for their channels.
	begun              chan string
	pulling, importing chan struct{}
	lines              []string
	imported           map[string][]byte
}

func (s *shelf) Name() string { return s.name }

func (s *shelf) List(context.Context) ([]providers.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.images, s.err
}

func (s *shelf) Prune(context.Context) ([]providers.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.images
	s.images = nil
	return gone, s.err
}

func (s *shelf) Pull(ctx context.Context, ref string, said func(string)) (providers.Image, error) {
	for _, line := range s.lines {
		said(line)
	}
	if s.pulling != nil {
		select {
		case <-s.pulling:
		case <-ctx.Done():
			return providers.Image{}, ctx.Err()
		}
	}
	return providers.Image{Ref: ref, Digest: "sha256:1", Bytes: 7, CreatedAt: time.Unix(1, 0)}, s.err
}

func (s *shelf) Import(ctx context.Context, ref string, archive io.Reader) (providers.Image, error) {
	if s.begun != nil {
		s.begun <- ref
	}
	if s.importing != nil {
		select {
		case <-s.importing:
		case <-ctx.Done():
			return providers.Image{}, ctx.Err()
		}
	}
	if s.err != nil {
		return providers.Image{}, s.err
	}
	b, err := io.ReadAll(archive)
	if err != nil {
		return providers.Image{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.imported == nil {
		s.imported = map[string][]byte{}
	}
	s.imported[ref] = b
	return providers.Image{Ref: ref, Digest: "sha256:2", Bytes: int64(len(b))}, nil
}

// withShelves starts an agent on these stores.
func withShelves(t *testing.T, change func(*Options), shelves ...*shelf) *node {
	t.Helper()
	return start(t, "", []providers.Provider{newBox(t)}, func(o *Options) {
		o.Images = func() []providers.Images {
			var all []providers.Images
			for _, s := range shelves {
				all = append(all, s)
			}
			return all
		}
		if change != nil {
			change(o)
		}
	})
}

func TestListAndPruneImages(t *testing.T) {
	t.Parallel()
	own := &shelf{name: "node", images: []providers.Image{{Ref: "debian:12", Digest: "sha256:a", Bytes: 3, Used: 2}, {Ref: "alpine:3", Bytes: -1, Used: -1}}}
	engine := &shelf{name: "docker", images: []providers.Image{{Ref: "busybox:1"}}}
	n := withShelves(t, nil, own, engine)
	list, err := n.as("s1").ListImages(t.Context(), &vendettav1.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := list.GetImages()
	if len(got) != 3 || got[0].GetStore() != "docker" || got[1].GetRef() != "alpine:3" || got[1].GetUsed() != -1 || got[2].GetBytes() != 3 || got[2].GetUsed() != 2 {
		t.Errorf("got %v", got)
	}
	engine.err = &providers.Error{Kind: providers.ErrUnusable, Message: "docker: it does not run"}
	pruned, err := n.as("s1").PruneImages(t.Context(), &vendettav1.PruneImagesRequest{})
	if err != nil || len(pruned.GetImages()) != 2 {
		t.Errorf("pruned %v, %v", pruned.GetImages(), err)
	}
	own.err = &providers.Error{Kind: providers.ErrExhausted, Message: "the disk is full"}
	for _, call := range []func() error{
		func() error {
			_, err := n.as("s1").ListImages(t.Context(), &vendettav1.ListImagesRequest{})
			return err
		},
		func() error {
			_, err := n.as("s1").PruneImages(t.Context(), &vendettav1.PruneImagesRequest{})
			return err
		},
	} {
		if e := api.From(call()); e == nil || e.Code != api.ResourceExhausted || !strings.Contains(e.Message, "images of store node: the disk is full") {
			t.Errorf("got %v", e)
		}
	}
}

func TestNodeWithoutImageStores(t *testing.T) {
	t.Parallel()
	n := start(t, "", []providers.Provider{newBox(t)})
	if list, err := n.as("s1").ListImages(t.Context(), &vendettav1.ListImagesRequest{}); err != nil || len(list.GetImages()) != 0 {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := n.pull(t.Context(), "", "debian:12"); api.CodeOf(err) != api.FailedPrecondition {
		t.Errorf("got %v", err)
	}
}

// pull pulls and returns the lines of progress, the image's digest last.
func (n *node) pull(ctx context.Context, store, ref string) ([]string, error) {
	stream, err := n.as("s1").PullImage(ctx, &vendettav1.PullImageRequest{Store: store, Ref: ref})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var said []string
	for stream.Receive() {
		if i := stream.Msg().GetImage(); i != nil {
			said = append(said, i.GetStore()+" "+i.GetRef()+" "+i.GetDigest())
			continue
		}
		said = append(said, stream.Msg().GetProgress())
	}
	return said, stream.Err()
}

func TestPullImage(t *testing.T) {
	t.Parallel()
	own, engine := &shelf{name: "node", lines: []string{strings.Repeat("x", 1000)}}, &shelf{name: "docker"}
	n := withShelves(t, nil, own, engine)
	said, err := n.pull(t.Context(), "", "debian:12")
	if err != nil || said[len(said)-1] != "node debian:12 sha256:1" {
		t.Errorf("got %v, %v", said, err)
	}
	for _, line := range said {
		if len(line) > 300 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	if said, err = n.pull(t.Context(), "docker", "debian:12"); err != nil || said[len(said)-1] != "docker debian:12 sha256:1" {
		t.Errorf("got %v, %v", said, err)
	}
	own.err = &providers.Error{Kind: providers.ErrImage, Message: "the registry does not know it"}
	engine.err = &providers.Error{Kind: providers.ErrImage, Message: "pull image debian:12: it is not there"}
	for _, c := range []struct {
		store, ref string
		code       api.Code
		says       string
	}{
		{"", "debian:12", api.FailedPrecondition, "pull image debian:12: the registry does not know it"},
		{"docker", "debian:12", api.FailedPrecondition, "pull image debian:12: it is not there"},
		{"attic", "debian:12", api.FailedPrecondition, `image store "attic"`},
		{"", "", api.InvalidArgument, "no reference"},
		{"", "-x", api.InvalidArgument, "not a reference"},
		{"", "a b", api.InvalidArgument, "not a reference"},
		{"", strings.Repeat("a", 2000), api.InvalidArgument, "not a reference"},
	} {
		_, err := n.pull(t.Context(), c.store, c.ref)
		if e := api.From(err); e == nil || e.Code != c.code || !strings.Contains(e.Message, c.says) || strings.Count(e.Message, "pull image") > 1 {
			t.Errorf("%s %.20s: %v", c.store, c.ref, err)
		}
	}
}

// A caller that goes away ends the pull, and so does the end of the agent.
func TestPullIsCancelled(t *testing.T) {
	t.Parallel()
	own := &shelf{name: "node", lines: []string{"one"}, pulling: make(chan struct{})}
	n := withShelves(t, nil, own)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := n.as("s1").PullImage(ctx, &vendettav1.PullImageRequest{Ref: "debian:12"})
	if err != nil || !stream.Receive() || stream.Msg().GetProgress() != "one" {
		t.Fatal(err, stream.Err())
	}
	cancel()
	eventually(t, "the pull ends", func() bool { return len(n.agent.imageWork.pulls) == 0 })
	_ = stream.Close()

	stream, err = n.as("s1").PullImage(t.Context(), &vendettav1.PullImageRequest{Ref: "debian:12"})
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	n.end()
	_ = stream.Close()
}

// upload is an import under way.
type upload struct {
	send  func(*vendettav1.ImportImageRequest) error
	close func() (*vendettav1.Image, error)
}

func (n *node) upload(ctx context.Context) upload {
	n.Helper()
	s, err := n.as("s1").ImportImage(ctx)
	if err != nil {
		n.Fatal(err)
	}
	return upload{send: s.Send, close: s.CloseAndReceive}
}

func TestImportImage(t *testing.T) {
	t.Parallel()
	own := &shelf{name: "node"}
	n := withShelves(t, nil, own)
	archive := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	u := n.upload(t.Context())
	for i, rest := 0, archive; len(rest) > 0; i++ {
		r := &vendettav1.ImportImageRequest{Data: rest[:min(len(rest), 100_000)]}
		if rest = rest[len(r.GetData()):]; i == 0 {
			r.Ref = "mine:1"
		}
		if err := u.send(r); err != nil {
			t.Fatal(err)
		}
		if err := u.send(&vendettav1.ImportImageRequest{}); err != nil { // an empty piece is none
			t.Fatal(err)
		}
	}
	image, err := u.close()
	if err != nil || image.GetRef() != "mine:1" || image.GetBytes() != int64(len(archive)) || !bytes.Equal(own.imported["mine:1"], archive) {
		t.Errorf("got %v, %v", image, err)
	}
}

func TestImportsRefused(t *testing.T) {
	t.Parallel()
	own := &shelf{name: "node", err: &providers.Error{Kind: providers.ErrImage, Message: "it is no archive"}}
	n := withShelves(t, nil, own)
	if _, err := n.upload(t.Context()).close(); api.CodeOf(err) != api.InvalidArgument {
		t.Errorf("an empty request: %v", err)
	}
	for _, c := range []struct {
		first *vendettav1.ImportImageRequest
		code  api.Code
		says  string
	}{
		{&vendettav1.ImportImageRequest{Ref: "-x"}, api.InvalidArgument, "not a reference"},
		{&vendettav1.ImportImageRequest{Store: "attic"}, api.FailedPrecondition, "attic"},
		{&vendettav1.ImportImageRequest{}, api.FailedPrecondition, "import image: it is no archive"},
		{&vendettav1.ImportImageRequest{Ref: "mine:1", Data: []byte("x")}, api.FailedPrecondition, "import image mine:1: it is no archive"},
	} {
		// The request stays open: the refusal does not wait for its end.
		u := n.upload(t.Context())
		if err := u.send(c.first); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		eventually(t, "the refusal", func() bool { return u.send(&vendettav1.ImportImageRequest{Data: []byte("more")}) != nil })
		_, err := u.close()
		if e := api.From(err); e == nil || e.Code != c.code || !strings.Contains(e.Message, c.says) {
			t.Errorf("%v: %v", c.first, err)
		}
	}
}

// Only one archive is taken at a time; who waits may give up.
func TestImportsTakeTurns(t *testing.T) {
	t.Parallel()
	own := &shelf{name: "node", begun: make(chan string, 3), importing: make(chan struct{})}
	n := withShelves(t, nil, own)
	first := n.upload(t.Context())
	if err := first.send(&vendettav1.ImportImageRequest{Ref: "one:1", Data: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	<-own.begun
	ctx, cancel := context.WithCancel(t.Context())
	second := n.upload(ctx)
	if err := second.send(&vendettav1.ImportImageRequest{Ref: "two:1", Data: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := second.close(); err == nil {
		t.Error("an import that was given up succeeded")
	}
	close(own.importing)
	if _, err := first.close(); err != nil {
		t.Error(err)
	}
	third := n.upload(t.Context())
	if err := third.send(&vendettav1.ImportImageRequest{Ref: "three:1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := third.close(); err != nil {
		t.Error(err)
	}
	if got := <-own.begun; got != "three:1" {
		t.Errorf("%s was imported", got)
	}
}

func TestSilentImportIsGivenUp(t *testing.T) {
	t.Parallel()
	own := &shelf{name: "node"}
	fast := quick
	fast.importIdle = 20 * time.Millisecond
	n := withShelves(t, func(o *Options) { o.timing = &fast }, own)
	u := n.upload(t.Context())
	if err := u.send(&vendettav1.ImportImageRequest{Ref: "one:1", Data: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the import", func() bool {
		return len(n.agent.imageWork.imports) == 0 && u.send(&vendettav1.ImportImageRequest{}) != nil
	})
	if _, err := u.close(); api.CodeOf(err) != api.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	// The agent ends although the caller never ended its request.
	v := n.upload(t.Context())
	if err := v.send(&vendettav1.ImportImageRequest{Ref: "one:1", Data: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	n.end()
	if _, err := v.close(); err == nil {
		t.Error("an import that was cut off succeeded")
	}
}
