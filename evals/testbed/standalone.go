package testbed

import (
	"context"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Engine is Docker and Image for a program that is not a test: the address of an
// engine that answers and the name of BaseImage in it.
func Engine() (host, image string, err error) {
	if host, err = dockerHost(); err != nil {
		return "", "", err
	}
	return host, BaseImage, importImages()
}

// KernelFile is Kernel for a program that is not a test.
func KernelFile() (string, error) { return fetchKernel() }

// ArchiveFile is Archive for a program that is not a test: it writes to path.
func ArchiveFile(ctx context.Context, path string) error {
	image, err := OCI(ctx)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(BaseImage)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, image)
}
