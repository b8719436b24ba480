package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Registry is a real registry on loopback, HOST:PORT, one for the process. It
// serves BaseImage and BaseUserImage, the same trees that Image builds in Docker.
func Registry(t testing.TB) string {
	t.Helper()
	host, err := registryHost()
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// RegistryImage is BaseImage's reference in Registry.
func RegistryImage(t testing.TB) string {
	t.Helper()
	return Registry(t) + "/" + BaseImage
}

// RegistryUserImage is BaseUserImage's reference in Registry.
func RegistryUserImage(t testing.TB) string {
	t.Helper()
	return Registry(t) + "/" + BaseUserImage
}

// Layout is an OCI layout folder with BaseImage.
func Layout(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	image, err := OCI(t.Context())
	if err == nil {
		var p layout.Path
		if p, err = layout.Write(dir, empty.Index); err == nil {
			err = p.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": BaseImage}))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Archive is a file as docker save writes it, with BaseImage.
func Archive(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := ArchiveFile(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// RegistryServer is Registry for a program that is not a test: HOST:PORT/NAME of
// BaseImage.
func RegistryServer() (image string, err error) {
	host, err := registryHost()
	return host + "/" + BaseImage, err
}

// registryHost starts this process's registry, once.
var registryHost = sync.OnceValues(func() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{
		Handler:           registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = server.Serve(listener) }() // ends with the process
	host := listener.Addr().String()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) //nolint:forbidigo // the registry is the process's
	defer cancel()
	return host, errors.Join(
		push(ctx, host, BaseImage, ""),
		push(ctx, host, BaseUserImage, ImageUser),
	)
})

func push(ctx context.Context, host, as, user string) error {
	image, err := OCI(ctx)
	if err != nil {
		return err
	}
	if user != "" {
		if image, err = withUser(image, user); err != nil {
			return err
		}
	}
	ref, err := name.ParseReference(host + "/" + as)
	if err != nil {
		return err
	}
	return remote.Write(ref, image, remote.WithContext(ctx))
}

func withUser(image v1.Image, user string) (v1.Image, error) {
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := file.Config
	config.User = user
	return mutate.Config(image, config)
}

// OCI is BaseImage as go-containerregistry's type, for tests that change it.
func OCI(ctx context.Context) (v1.Image, error) {
	rootfs, err := busyboxTree(ctx)
	if err != nil {
		return nil, fmt.Errorf("make test image: %w", err)
	}
	tree, err := io.ReadAll(rootfs)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(tree)), nil
	})
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		ImageVariable + "=" + BaseImage,
	}
	return mutate.ConfigFile(image, file)
}
