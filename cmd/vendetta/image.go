package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

func newImage(a *app) *cobra.Command {
	return group("image", "Images on your nodes",
		newImageList(a), newImagePull(a), newImageImport(a), newImagePrune(a))
}

// imageStores are the names of the stores that a node may have.
var imageStores = []string{"node", "docker"}

// imageNodeFlag adds --node, which may be left out while there is one node.
func imageNodeFlag(a *app, cmd *cobra.Command, node *string) {
	cmd.Flags().StringVar(node, "node", "", "the node; may be left out while there is only one")
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodeFlag)
}

func imageStoreFlag(cmd *cobra.Command, store *string, usage string) {
	cmd.Flags().StringVar(store, "store", "", usage)
	_ = cmd.RegisterFlagCompletionFunc("store", cobra.FixedCompletions(imageStores, cobra.ShellCompDirectiveNoFileComp))
}

const storeUsage = "the store: node (for native, lxc and qemu) or docker (default node)"

// imageTable lists images; -q prints their references.
func imageTable(images []*vendettav1.Image) table {
	t := table{header: []string{"STORE", "REF", "DIGEST", "SIZE", "USED"}, names: 1}
	for _, i := range images {
		bytes, used := "-", "-"
		if i.GetBytes() >= 0 {
			bytes = size(uint64(i.GetBytes()))
		}
		if i.GetUsed() >= 0 {
			used = strconv.Itoa(int(i.GetUsed()))
		}
		t.rows = append(t.rows, []string{i.GetStore(), dash(i.GetRef()), dash(shortDigest(i.GetDigest())), bytes, used})
	}
	return t
}

// shortDigest is a digest as people compare it, as docker images shows it.
func shortDigest(digest string) string {
	const shown = 12
	algorithm, hex, found := strings.Cut(digest, ":")
	if !found || len(hex) <= shown {
		return digest
	}
	return algorithm + ":" + hex[:shown]
}

func newImageList(a *app) *cobra.Command {
	var node, store string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the images on a node", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.Images.ListImages(cmd.Context(), &vendettav1.ListImagesRequest{Node: node})
			if err != nil {
				return err
			}
			shown := &vendettav1.ListImagesResponse{}
			for _, i := range list.GetImages() {
				if store == "" || store == i.GetStore() {
					shown.Images = append(shown.Images, i)
				}
			}
			t := imageTable(shown.GetImages())
			t.message, t.empty = shown, "no images there; a workspace that needs one fetches it, and so does: vendetta image pull REF"
			return a.print(t)
		},
	}
	imageNodeFlag(a, cmd, &node)
	imageStoreFlag(cmd, &store, "only this store: node or docker")
	return cmd
}

func newImagePull(a *app) *cobra.Command {
	var node, store string
	cmd := &cobra.Command{
		Use: "pull REF", Short: "Fetch an image to a node, or look whether a newer one is there",
		Long: `Fetches an image to a node, so that a workspace that uses it starts at once. An
image that is there already is looked up again, as its tag may have moved.
Workspaces keep the image that they were made from.`,
		Example: `  vendetta image pull debian:12 --node build1
  vendetta image pull registry.example.com/team/tools:3 --store docker`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := c.Images.PullImage(cmd.Context(), &vendettav1.PullImageRequest{Node: node, Store: store, Ref: args[0]})
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			var image *vendettav1.Image
			for stream.Receive() {
				if line := stream.Msg().GetProgress(); line != "" {
					a.note("%s", line)
				}
				if i := stream.Msg().GetImage(); i != nil {
					image = i
				}
			}
			if err := stream.Err(); err != nil {
				return err
			}
			if image == nil {
				return api.Errorf(api.Unavailable, "pull image %s: the node ended the call without an image", args[0]).WithNext("repeat the command")
			}
			return a.imageResult(image)
		},
	}
	imageNodeFlag(a, cmd, &node)
	imageStoreFlag(cmd, &store, storeUsage)
	return cmd
}

// imageResult says what is there now.
func (a *app) imageResult(image *vendettav1.Image) error {
	a.note("image %s is %s in store %s", image.GetRef(), shortDigest(image.GetDigest()), image.GetStore())
	return a.result(image.GetRef(), image)
}

type imageImportOptions struct {
	file  string
	name  string
	node  string
	store string
}

func newImageImport(a *app) *cobra.Command {
	var o imageImportOptions
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Bring an image from this machine to a node",
		Long: `Brings an image from a file on this machine to a node that has no registry to
fetch it from. FILE is what docker save writes, or an OCI layout as a tar; - reads
it from stdin.`,
		Example: `  docker save team/tools:3 | vendetta image import - --node build1
  vendetta image import tools.tar --name team/tools:3`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.file = args[0]
			return runImageImport(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "", "the image's name (default: the one that the archive has)")
	imageNodeFlag(a, cmd, &o.node)
	imageStoreFlag(cmd, &o.store, storeUsage)
	return cmd
}

const (
	// importPiece is what one message carries of an archive.
	importPiece = 128 << 10
	// importSaid is after how much of it a person is told.
	importSaid = 64 << 20
)

func runImageImport(ctx context.Context, a *app, o imageImportOptions) error {
	archive := a.in
	if _, typed := terminal(a.in); typed && o.file == "-" {
		return api.Errorf(api.InvalidArgument, "import image: stdin is a terminal").
			WithNext("docker save IMAGE | vendetta image import -")
	}
	if o.file != "-" {
		f, err := os.Open(o.file)
		if err != nil {
			return api.Errorf(api.InvalidArgument, "import image: %w", err).WithNext("name a file that docker save wrote")
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil || info.IsDir() {
			return api.Errorf(api.InvalidArgument, "import image: %s is not a file", o.file).
				WithNext("make one tar of it: tar -C %s -c . | vendetta image import -", o.file)
		}
		a.note("importing %s (%s) ...", o.file, size(uint64(info.Size())))
		archive = f
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	// Whatever ends this function ends the call with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	upload, err := c.Images.ImportImage(ctx)
	if err != nil {
		return err
	}
	piece := &vendettav1.ImportImageRequest{Node: o.node, Store: o.store, Ref: o.name}
	buffer := make([]byte, importPiece)
	sent := uint64(0)
	for first := true; ; first = false {
		n, err := io.ReadFull(archive, buffer)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return api.Errorf(api.Internal, "import image: read %s: %w", o.file, err)
		}
		if n > 0 || first {
			piece.Data = buffer[:n]
			// A node that has seen enough ends the call; CloseAndReceive tells why.
			if err := upload.Send(piece); err != nil {
				break
			}
			piece = &vendettav1.ImportImageRequest{}
			if sent += uint64(n); sent%importSaid == 0 && sent > 0 {
				a.note("sent %s", size(sent))
			}
		}
		if ended {
			break
		}
	}
	image, err := upload.CloseAndReceive()
	if err != nil {
		return err
	}
	return a.imageResult(image)
}

func newImagePrune(a *app) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the images that no workspace and no snapshot uses", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			pruned, err := c.Images.PruneImages(cmd.Context(), &vendettav1.PruneImagesRequest{Node: node})
			if err != nil {
				return err
			}
			t := imageTable(pruned.GetImages())
			t.message, t.empty = pruned, "no image was left to remove"
			return a.print(t)
		},
	}
	imageNodeFlag(a, cmd, &node)
	return cmd
}
