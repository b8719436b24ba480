package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	engineimage "github.com/docker/docker/api/types/image"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/providers"
)

// StoreOptions of a Store. The zero value is right where the environment names
// the engine.
type StoreOptions struct {
	// Host, Logger and PullTimeout are as in Options.
	Host        string
	Logger      *slog.Logger
	PullTimeout time.Duration
}

// Store is the engine's images. They are the machine's and not vendetta's alone:
// all of them are listed, but for those that snapshots and forks are made of, and
// none is removed that was not made for these.
type Store struct {
	engine *engine
}

var _ providers.Images = (*Store)(nil)

// NewStore makes the store; it does not talk to the engine.
func NewStore(options StoreOptions) (*Store, error) {
	defaults := Options{Logger: options.Logger, PullTimeout: options.PullTimeout}.withDefaults()
	e, err := dial(options.Host, defaults.Logger, defaults.PullTimeout)
	if err != nil {
		return nil, fmt.Errorf("docker images: %w", err)
	}
	return &Store{engine: e}, nil
}

// Close lets go of the engine's connections.
func (s *Store) Close() error { return s.engine.Close() }

// Name is "docker".
func (s *Store) Name() string { return "docker" }

// List implements providers.Images. Bytes counts layers that images share for
// each of them; Used counts the instances and snapshots of
// all servers.
func (s *Store) List(ctx context.Context) ([]providers.Image, error) {
	const doing = "list docker images"
	all, err := s.engine.ImageList(ctx, engineimage.ListOptions{})
	if err != nil {
		return nil, s.engine.explain(doing, err)
	}
	used, err := s.used(ctx)
	if err != nil {
		return nil, s.engine.explain(doing, err)
	}
	images := []providers.Image{}
	for _, one := range all {
		for _, ref := range names(one) {
			images = append(images, providers.Image{
				Ref:       ref,
				Digest:    manifest(digestOf(ref, engineimage.InspectResponse{ID: one.ID, RepoDigests: one.RepoDigests})),
				Bytes:     one.Size,
				Used:      used(one),
				CreatedAt: time.Unix(one.Created, 0),
			})
		}
	}
	slices.SortFunc(images, func(a, b providers.Image) int { return strings.Compare(a.Ref, b.Ref) })
	return images, nil
}

// names are those by which a user may ask for an image, none for what snapshots
// and forks are made of.
func names(one engineimage.Summary) []string {
	refs := []string{}
	for _, ref := range one.RepoTags {
		if ref != "<none>:<none>" && !made(ref) {
			refs = append(refs, ref)
		}
	}
	if len(one.RepoTags) == 0 || slices.Equal(one.RepoTags, []string{"<none>:<none>"}) {
		// One whose tag has moved on since it was pulled.
		for _, ref := range one.RepoDigests {
			if ref != "<none>@<none>" {
				refs = append(refs, ref)
			}
		}
	}
	return refs
}

// made says whether a name is one that snapshots and forks have.
func made(ref string) bool {
	return strings.HasPrefix(ref, snapshotRepository) || strings.HasPrefix(ref, rootRepository)
}

// manifest is a digest without its repository.
func manifest(digest string) string {
	if _, bare, named := strings.Cut(digest, "@"); named {
		return bare
	}
	return digest
}

// used returns what counts the instances and snapshots made from an image.
func (s *Store) used(ctx context.Context) (func(engineimage.Summary) int, error) {
	ours := filters.NewArgs(filters.Arg("label", providers.LabelServer))
	containers, err := s.engine.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	if err != nil {
		return nil, err
	}
	snapshots, err := s.engine.ImageList(ctx, engineimage.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labelSnapshot))})
	if err != nil {
		return nil, err
	}
	// By the digest that they were made from, or the id where that is not told.
	count := map[string]int{}
	for _, c := range containers {
		if !slices.Contains(c.Names, "/"+instanceName(c.Labels[providers.LabelWorkspace])) {
			continue
		}
		if digest := c.Labels[labelImage]; digest != "" {
			count[digest]++
		} else {
			count[c.ImageID]++
		}
	}
	for _, one := range snapshots {
		if isSnapshot(one) {
			count[one.Labels[labelImage]]++
		}
	}
	return func(one engineimage.Summary) int {
		n := count[one.ID]
		for _, digest := range one.RepoDigests {
			n += count[digest]
		}
		return n
	}, nil
}

// isSnapshot says whether an image is a snapshot.
func isSnapshot(one engineimage.Summary) bool {
	workspace, name := one.Labels[providers.LabelWorkspace], one.Labels[labelSnapshot]
	return name != "" && slices.Contains(one.RepoTags, snapshotImageName(workspace, name))
}

// Pull implements providers.Images.
func (s *Store) Pull(ctx context.Context, ref string, said func(string)) (providers.Image, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return providers.Image{}, badReference(ref, err)
	}
	if err := s.engine.pull(ctx, ref, said); err != nil {
		return providers.Image{}, err
	}
	return s.look(ctx, reference.FamiliarString(reference.TagNameOnly(named)))
}

// look returns the image of a name.
func (s *Store) look(ctx context.Context, ref string) (providers.Image, error) {
	found, err := s.engine.ImageInspect(ctx, ref)
	if err != nil {
		return providers.Image{}, s.engine.explain("look up image "+ref, err)
	}
	i := providers.Image{Ref: ref, Digest: manifest(digestOf(ref, found)), Bytes: found.Size}
	i.CreatedAt, _ = time.Parse(time.RFC3339Nano, found.Created) // none is no harm
	used, err := s.used(ctx)
	if err != nil {
		return providers.Image{}, s.engine.explain("look up image "+ref, err)
	}
	i.Used = used(engineimage.Summary{ID: found.ID, RepoDigests: found.RepoDigests})
	return i, nil
}

// Import implements providers.Images. An archive with several images is taken
// whole where ref is empty, and the first of them returned. Names that the
// archive gives stay beside ref.
func (s *Store) Import(ctx context.Context, ref string, archive io.Reader) (providers.Image, error) {
	const doing = "import docker image"
	var name reference.Named
	if ref != "" {
		var err error
		if name, err = reference.ParseNormalizedNamed(ref); err != nil {
			return providers.Image{}, badReference(ref, err)
		}
		if _, digested := name.(reference.Digested); digested {
			return providers.Image{}, badReference(ref, errors.New("an image cannot be given a digest"))
		}
		name = reference.TagNameOnly(name)
	}
	loaded, err := s.load(ctx, archive)
	if err != nil {
		return providers.Image{}, s.explainLoad(doing, err)
	}
	switch {
	case len(loaded) == 0:
		return providers.Image{}, &providers.Error{
			Kind: providers.ErrImage, Message: doing + ": the archive holds no image",
			Next: "make it with docker save NAME, or give an OCI layout as a tar",
		}
	case name == nil:
		return s.look(ctx, loaded[0])
	case len(loaded) > 1:
		return providers.Image{}, invalid("leave the name out; they are there under their own names",
			"%s: the archive holds %d images, which cannot all be named %s", doing, len(loaded), ref)
	}
	given := reference.FamiliarString(name)
	if err := s.engine.ImageTag(ctx, loaded[0], given); err != nil {
		return providers.Image{}, s.engine.explain(doing, err)
	}
	return s.look(ctx, given)
}

// load gives an archive to the engine and returns the names, or ids, of what came.
func (s *Store) load(ctx context.Context, archive io.Reader) ([]string, error) {
	info, err := s.engine.Info(ctx)
	if err != nil {
		return nil, err
	}
	stream, write := loadable(archive, architecture(info.Architecture))
	if write == nil {
		return s.send(ctx, stream)
	}
	reader, writer := io.Pipe()
	var writing conc.WaitGroup
	var failed error
	writing.Go(func() {
		failed = write(writer)
		_ = writer.CloseWithError(failed) // as its documentation says, always nil
	})
	loaded, err := s.send(ctx, reader)
	_ = reader.Close() // ends the writing of what the engine does not want to read
	writing.Wait()
	if failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		err = failed // the reason why the engine was not sent the rest
	}
	return loaded, err
}

func (s *Store) send(ctx context.Context, archive io.Reader) ([]string, error) {
	answer, err := s.engine.ImageLoad(ctx, archive)
	if err != nil {
		return nil, err
	}
	loaded, err := loaded(answer.Body)
	return loaded, errors.Join(err, answer.Body.Close())
}

func badReference(ref string, err error) error {
	return &providers.Error{
		Kind:    providers.ErrImage,
		Message: fmt.Sprintf("image %q: %v", ref, err),
		Next:    "name it as docker pull does, e.g. debian:12 or ghcr.io/owner/name:tag",
		Cause:   err,
	}
}

// loaded reads what docker load says and returns the names, or ids, of what came.
func loaded(stream io.Reader) ([]string, error) {
	var message struct {
		Stream      string `json:"stream"`
		ErrorDetail *struct {
			Message string `json:"message"`
		} `json:"errorDetail"`
	}
	refs := []string{}
	for messages := json.NewDecoder(stream); ; {
		message.Stream, message.ErrorDetail = "", nil
		err := messages.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return refs, nil
		case err != nil:
			return refs, err
		case message.ErrorDetail != nil:
			return refs, errors.New(message.ErrorDetail.Message)
		}
		for _, before := range []string{"Loaded image: ", "Loaded image ID: "} {
			if ref, ok := strings.CutPrefix(strings.TrimSpace(message.Stream), before); ok {
				refs = append(refs, ref)
			}
		}
	}
}

func (s *Store) explainLoad(doing string, err error) error {
	err = s.engine.explain(doing, err)
	var own *providers.Error
	if errors.As(err, &own) && own.Kind == nil {
		own.Kind = providers.ErrImage
		own.Next = "make the archive with docker save NAME, or give an OCI layout as a tar"
	}
	return err
}

// Prune implements providers.Images. What it removes are images that were made
// for snapshots and forks and have lost their names; images that somebody pulled,
// loaded or built stay, used or not: docker image prune is for those.
func (s *Store) Prune(ctx context.Context) ([]providers.Image, error) {
	const doing = "prune docker images"
	f := filters.NewArgs(filters.Arg("label", providers.LabelServer), filters.Arg("dangling", "true"))
	all, err := s.engine.ImageList(ctx, engineimage.ListOptions{Filters: f})
	if err != nil {
		return nil, s.engine.explain(doing, err)
	}
	pruned := []providers.Image{}
	for _, one := range all {
		found, err := s.engine.ImageInspect(ctx, one.ID)
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return pruned, s.engine.explain(doing, err)
		}
		if found.Comment != comment || len(found.RepoTags) > 0 {
			continue
		}
		_, err = s.engine.ImageRemove(ctx, one.ID, engineimage.RemoveOptions{PruneChildren: true})
		switch {
		case cerrdefs.IsNotFound(err), cerrdefs.IsConflict(err): // gone, or in use after all
		case err != nil:
			return pruned, s.engine.explain(doing, err)
		default:
			pruned = append(pruned, providers.Image{Ref: one.ID, Digest: one.ID, Bytes: one.Size, CreatedAt: time.Unix(one.Created, 0)})
		}
	}
	return pruned, nil
}
