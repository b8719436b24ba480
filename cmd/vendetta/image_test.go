package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1/vendettav1connect"
)

// fakeImages answers for the agent of a node.
type fakeImages struct {
	vendettav1connect.UnimplementedImageServiceHandler

	images []*vendettav1.Image
	node   string
	pull   *vendettav1.PullImageRequest
	first  *vendettav1.ImportImageRequest
	data   []byte
	refuse *api.Error
	// mute pulls end without an image.
	mute bool
}

func (f *fakeImages) ListImages(_ context.Context, r *vendettav1.ListImagesRequest) (*vendettav1.ListImagesResponse, error) {
	f.node = r.GetNode()
	return &vendettav1.ListImagesResponse{Images: f.images}, nil
}

func (f *fakeImages) PullImage(_ context.Context, r *vendettav1.PullImageRequest, s *connect.ServerStream[vendettav1.PullImageResponse]) error {
	f.pull = r
	if err := s.Send(&vendettav1.PullImageResponse{Progress: "layer 1 of 2\x1b[2J"}); err != nil || f.mute {
		return err
	}
	if f.refuse != nil {
		return api.ToConnect(f.refuse)
	}
	return s.Send(&vendettav1.PullImageResponse{Image: &vendettav1.Image{Store: "node", Ref: r.GetRef(), Digest: "sha256:0123456789abcdef"}})
}

func (f *fakeImages) ImportImage(_ context.Context, s *connect.ClientStream[vendettav1.ImportImageRequest]) (*vendettav1.Image, error) {
	for s.Receive() {
		if f.refuse != nil {
			return nil, api.ToConnect(f.refuse)
		}
		if f.first == nil {
			f.first = s.Msg()
		}
		f.data = append(f.data, s.Msg().GetData()...)
	}
	return &vendettav1.Image{Store: "docker", Ref: "team/tools:3", Digest: "sha256:1"}, s.Err()
}

func (f *fakeImages) PruneImages(_ context.Context, r *vendettav1.PruneImagesRequest) (*vendettav1.PruneImagesResponse, error) {
	f.node = r.GetNode()
	gone := f.images
	f.images = nil
	return &vendettav1.PruneImagesResponse{Images: gone}, nil
}

func TestImageList(t *testing.T) {
	s := newStage(t)
	if r := s.ok("image list"); !strings.Contains(r.err, "vendetta image pull") {
		t.Errorf("an empty list says %q", r.err)
	}
	s.images.images = []*vendettav1.Image{
		{Store: "docker", Ref: "busybox:1", Digest: "sha256:0123456789abcdef", Bytes: -1, Used: -1},
		{Store: "node", Ref: "debian:12", Digest: "short", Bytes: 3 << 20, Used: 2},
	}
	r := s.ok("image list --node build1", "STORE", "REF", "DIGEST", "SIZE", "USED", "sha256:0123456789ab ", "3.0 MiB")
	if s.images.node != "build1" || strings.Contains(r.out, "0123456789abc") {
		t.Errorf("node %q: %s", s.images.node, r.out)
	}
	if r := s.ok("image ls -q"); r.out != "busybox:1\ndebian:12\n" {
		t.Errorf("quiet: %q", r.out)
	}
	if r := s.ok("image list -q --store node"); r.out != "debian:12\n" {
		t.Errorf("one store: %q", r.out)
	}
	s.ok("image list --json", `"digest": "sha256:0123456789abcdef"`)
	s.ok("image list -o yaml", "ref: debian:12")
}

func TestImagePull(t *testing.T) {
	s := newStage(t)
	r := s.ok("image pull debian:12 --node build1 --store docker", "debian:12")
	if r.out != "debian:12\n" || !strings.Contains(r.err, "layer 1 of 2 [2J") || !strings.Contains(r.err, "image debian:12 is sha256:0123456789ab in store node") {
		t.Errorf("got %q, %q", r.out, r.err)
	}
	if p := s.images.pull; p.GetNode() != "build1" || p.GetStore() != "docker" || p.GetRef() != "debian:12" {
		t.Errorf("request %v", p)
	}
	if r := s.ok("image pull debian:12 -q"); r.err != "" {
		t.Errorf("quiet: %q", r.err)
	}
	s.ok("image pull debian:12 --json", `"store": "node"`)
	s.images.refuse = api.Errorf(api.FailedPrecondition, "pull image debian:12: no such tag").WithNext("check the name")
	s.fails(5, "image pull debian:12", "no such tag", "next: check the name")
	s.images.mute = true
	s.fails(6, "image pull debian:12", "without an image")
	s.fails(2, "image pull", "takes 1 argument")
}

func TestImageImport(t *testing.T) {
	s := newStage(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "tools.tar")
	archive := bytes.Repeat([]byte("0123456789abcdef"), 3*importPiece/16)
	archive = append(archive, "the end"...)
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	r := s.ok("image import "+file+" --node build1 --store docker --name team/tools:3", "team/tools:3")
	if !strings.Contains(r.err, "importing "+file+" (384.0 KiB)") || !strings.Contains(r.err, "in store docker") {
		t.Errorf("said %q", r.err)
	}
	if f := s.images.first; f.GetNode() != "build1" || f.GetStore() != "docker" || f.GetRef() != "team/tools:3" || !bytes.Equal(s.images.data, archive) {
		t.Errorf("request %.100v, %d bytes", f, len(s.images.data))
	}
	s.images.first, s.images.data, s.input = nil, nil, strings.Repeat("x", importSaid+1)
	if r := s.ok("image import -"); !strings.Contains(r.err, "sent 64.0 MiB\n") || len(s.images.data) != importSaid+1 {
		t.Errorf("%d bytes, said %q", len(s.images.data), r.err)
	}
	s.images.first, s.images.data, s.input = nil, nil, "from stdin"
	s.ok("image import -")
	if string(s.images.data) != "from stdin" {
		t.Errorf("got %q", s.images.data)
	}
	s.images.first, s.images.data, s.input = nil, nil, ""
	s.ok("image import -") // whether an empty file is one is the node's to say
	if s.images.first == nil {
		t.Error("an empty archive was not sent")
	}
	s.fails(2, "image import "+filepath.Join(dir, "nothere"), "no such file", "docker save")
	s.fails(2, "image import "+dir, "is not a file", "tar -C")
	s.images.refuse = api.Errorf(api.ResourceExhausted, "import image: the disk is full")
	s.fails(8, "image import "+file, "the disk is full")
}

func TestImagePrune(t *testing.T) {
	s := newStage(t)
	s.images.images = []*vendettav1.Image{{Store: "node", Ref: "debian:12", Bytes: 1 << 20}}
	s.ok("image prune --node build1", "debian:12", "1.0 MiB")
	if s.images.node != "build1" {
		t.Errorf("node %q", s.images.node)
	}
	if r := s.ok("image prune"); !strings.Contains(r.err, "no image was left") {
		t.Errorf("said %q", r.err)
	}
}
