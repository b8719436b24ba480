package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/providers"
)

const (
	// defaultStore is meant where a call names none.
	defaultStore = "node"
	// pullLimit is how many images are fetched by hand at the same time. Those
	// that a create needs are not counted.
	pullLimit = 4
	// referenceLimit bounds the name of an image, in bytes.
	referenceLimit = 1024
	// progressLimit bounds a line of progress, in bytes.
	progressLimit = 200

	listCeiling  = time.Minute
	pullCeiling  = time.Hour
	pruneCeiling = 15 * time.Minute
)

// imageWork bounds what is done to the image stores at the same time. The
// stores are the machine's: all servers share them.
type imageWork struct {
	pulls chan struct{}
	// imports has one place: an archive is written to disk before it is unpacked,
	// and two at once would need twice the room.
	imports chan struct{}
}

func newImageWork() imageWork {
	return imageWork{pulls: make(chan struct{}, pullLimit), imports: make(chan struct{}, 1)}
}

// enter waits for a place; the returned function gives it back.
func enter(ctx context.Context, places chan struct{}) (func(), error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// images returns the machine's image stores.
func (a *Agent) images() []providers.Images {
	if a.options.Images == nil {
		return nil
	}
	return a.options.Images()
}

// imageStore finds a store by its name.
func (a *Agent) imageStore(name string) (providers.Images, error) {
	if name == "" {
		name = defaultStore
	}
	var have []string
	for _, store := range a.images() {
		if store.Name() == name {
			return store, nil
		}
		have = append(have, store.Name())
	}
	e := api.Errorf(api.FailedPrecondition, "image store %q: this node has none of that name", clipText(name, progressLimit))
	if len(have) > 0 {
		return nil, e.WithNext("use one of %s", strings.Join(have, ", "))
	}
	return nil, e
}

// ListImages answers with what all stores hold. One whose engine is not there
// holds nothing.
func (s *service) ListImages(ctx context.Context, _ *vendettav1.ListImagesRequest) (*vendettav1.ListImagesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, listCeiling)
	defer cancel()
	images, err := s.overStores(ctx, "list images", providers.Images.List)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return &vendettav1.ListImagesResponse{Images: images}, nil
}

// PruneImages removes what nothing uses from all stores.
func (s *service) PruneImages(ctx context.Context, _ *vendettav1.PruneImagesRequest) (*vendettav1.PruneImagesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pruneCeiling)
	defer cancel()
	images, err := s.overStores(ctx, "prune images", providers.Images.Prune)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return &vendettav1.PruneImagesResponse{Images: images}, nil
}

// overStores gathers what each store answers, in the order of store and name.
func (s *service) overStores(ctx context.Context, what string, ask func(providers.Images, context.Context) ([]providers.Image, error)) ([]*vendettav1.Image, error) {
	var all []*vendettav1.Image
	for _, store := range s.agent.images() {
		list, err := ask(store, ctx)
		if errors.Is(err, providers.ErrUnusable) {
			s.agent.log.Debug("image store left out", "doing", what, "store", store.Name(), "error", err)
			continue
		}
		if err != nil {
			return nil, imageFailure(fmt.Sprintf("%s of store %s", what, store.Name()), err)
		}
		for _, image := range list {
			all = append(all, imageView(store.Name(), image))
		}
	}
	slices.SortStableFunc(all, func(a, b *vendettav1.Image) int {
		return cmp.Or(cmp.Compare(a.GetStore(), b.GetStore()), cmp.Compare(a.GetRef(), b.GetRef()))
	})
	return all, nil
}

func imageView(store string, image providers.Image) *vendettav1.Image {
	v := &vendettav1.Image{Store: store, Ref: image.Ref, Digest: image.Digest, Bytes: image.Bytes, Used: int32(image.Used)}
	if !image.CreatedAt.IsZero() {
		v.CreatedAt = timestamppb.New(image.CreatedAt)
	}
	return v
}

// checkReference refuses what cannot be the name of an image. The store judges
// the rest.
func checkReference(ref string) error {
	if len(ref) > referenceLimit || strings.HasPrefix(ref, "-") || !utf8.ValidString(ref) ||
		strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return api.Errorf(api.InvalidArgument, "image %q: it is not a reference", clipText(ref, progressLimit)).
			WithNext("name it as docker does, e.g. debian:12 or registry.example.com/team/image:tag")
	}
	return nil
}

func (s *service) PullImage(ctx context.Context, r *vendettav1.PullImageRequest, stream *connect.ServerStream[vendettav1.PullImageResponse]) error {
	if r.GetRef() == "" {
		return api.ToConnect(api.Errorf(api.InvalidArgument, "pull image: no reference is given").WithNext("name an image, e.g. debian:12"))
	}
	if err := checkReference(r.GetRef()); err != nil {
		return api.ToConnect(err)
	}
	store, err := s.agent.imageStore(r.GetStore())
	if err != nil {
		return api.ToConnect(err)
	}
	leave, err := enter(ctx, s.agent.imageWork.pulls)
	if err != nil {
		return api.ToConnect(err)
	}
	defer leave()
	image, err := pullImage(ctx, store, r.GetRef(), func(line string) error {
		return stream.Send(&vendettav1.PullImageResponse{Progress: line})
	})
	if err != nil {
		return api.ToConnect(imageFailure("pull image "+r.GetRef(), err))
	}
	s.agent.log.Info("image pulled", "store", store.Name(), "image", r.GetRef(), "digest", image.Digest)
	return stream.Send(&vendettav1.PullImageResponse{Image: imageView(store.Name(), image)})
}

// pullImage fetches an image and hands its lines of progress on. A caller that
// is slow misses lines and does not hold up the pull; one that is gone ends it.
func pullImage(ctx context.Context, store providers.Images, ref string, send func(string) error) (providers.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, pullCeiling)
	type result struct {
		image providers.Image
		err   error
	}
	lines, done := make(chan string, 1), make(chan result, 1)
	said := func(line string) {
		for {
			select {
			case lines <- clipText(line, progressLimit):
				return
			default:
			}
			select { // the newest line takes the place of the one that waits
			case <-lines:
			default:
			}
		}
	}
	var pulling conc.WaitGroup
	defer pulling.Wait()
	defer cancel()
	pulling.Go(func() {
		image, err := store.Pull(ctx, ref, said)
		done <- result{image, err}
	})
	for {
		select {
		case line := <-lines:
			if err := send(line); err != nil {
				return providers.Image{}, err
			}
		case r := <-done:
			return r.image, r.err
		}
	}
}

// ImportImage hands the archive to the store as it comes. A store that refuses
// it ends the call at once, whatever of it is still on its way.
func (s *service) ImportImage(ctx context.Context, stream *connect.ClientStream[vendettav1.ImportImageRequest]) (*vendettav1.Image, error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, api.ToConnect(api.Errorf(api.InvalidArgument, "import image: the request is empty"))
	}
	first := stream.Msg()
	if err := checkReference(first.GetRef()); err != nil {
		return nil, api.ToConnect(err)
	}
	store, err := s.agent.imageStore(first.GetStore())
	if err != nil {
		return nil, api.ToConnect(err)
	}
	leave, err := enter(ctx, s.agent.imageWork.imports)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	defer leave()
	archive, writer := io.Pipe()
	// It waits for the caller, who may never send more; it is let go of when this
	// call has been answered, and the agent waits for it before it ends.
	s.agent.tasks.Go(func() { receiveArchive(stream, first.GetData(), writer, s.agent.timing.importIdle) })
	image, err := store.Import(ctx, first.GetRef(), archive)
	_ = archive.CloseWithError(errImported)
	if err != nil {
		return nil, api.ToConnect(imageFailure(importing(first.GetRef()), err))
	}
	s.agent.log.Info("image imported", "store", store.Name(), "image", image.Ref, "digest", image.Digest)
	return imageView(store.Name(), image), nil
}

// imageFailure is explain, without saying twice what a store has said.
func imageFailure(what string, err error) *api.Error {
	e := *explain(what, err) // another's error is not ours to change
	if rest := strings.TrimPrefix(e.Message, what+": "); strings.HasPrefix(rest, what) {
		e.Message = rest
	}
	return &e
}

// errImported ends the reading of an archive whose import has ended.
var errImported = errors.New("the import has ended")

func importing(ref string) string {
	if ref == "" {
		return "import image"
	}
	return "import image " + ref
}

// receiveArchive writes what the caller sends into the pipe. A caller that sends
// nothing for idle is given up: it keeps others from importing.
func receiveArchive(stream *connect.ClientStream[vendettav1.ImportImageRequest], data []byte, archive *io.PipeWriter, idle time.Duration) {
	timer := time.AfterFunc(idle, func() {
		_ = archive.CloseWithError(api.Errorf(api.DeadlineExceeded, "the archive stopped coming: nothing for %v", idle).WithNext("repeat the command"))
	})
	defer timer.Stop()
	for {
		timer.Stop()       // the store may take its time
		if len(data) > 0 { // an empty write would wait for a reader, too
			if _, err := archive.Write(data); err != nil {
				return
			}
		}
		timer.Reset(idle)
		if !stream.Receive() {
			_ = archive.CloseWithError(stream.Err()) // nil is the end of the archive
			return
		}
		data = stream.Msg().GetData()
	}
}

// clipText cuts a text at most bytes.
func clipText(s string, most int) string {
	if len(s) <= most {
		return strings.ToValidUTF8(s, "?")
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
