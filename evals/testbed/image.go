package testbed

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

// The images that Image and UserImage build.
const (
	BaseImage = "vendetta-test/busybox:1"
	// BaseUserImage is BaseImage with USER dev.
	BaseUserImage = "vendetta-test/busybox-dev:1"
	// ImageUser is the ordinary user of both, ImageUserID its uid and gid.
	ImageUser   = "dev"
	ImageUserID = 1000
	// ImageVariable is set to BaseImage by the environment of both.
	ImageVariable = "TEST_IMAGE"
)

// Image builds BaseImage in the engine of Docker, once, and returns its name: a
// static busybox with all its commands, root, and the user dev.
func Image(t testing.TB) string {
	t.Helper()
	Docker(t)
	if err := importImages(); err != nil {
		t.Fatal(err)
	}
	return BaseImage
}

// UserImage is Image, with dev as the image's user.
func UserImage(t testing.TB) string {
	t.Helper()
	Image(t)
	return BaseUserImage
}

// importImages puts the images into this process's engine, once.
var importImages = sync.OnceValue(func() error {
	host, err := dockerHost()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerdPatience) //nolint:forbidigo // the images are the process's, not the caller's who came first
	defer cancel()
	engine, err := client.NewClientWithOpts(client.FromEnv, client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return fmt.Errorf("import test image: %w", err)
	}
	defer func() { _ = engine.Close() }()
	environment := "ENV " + ImageVariable + "=" + BaseImage
	return errors.Join(
		importImage(ctx, engine, BaseImage, environment),
		importImage(ctx, engine, BaseUserImage, environment, "USER "+ImageUser),
	)
})

func importImage(ctx context.Context, engine *client.Client, name string, changes ...string) error {
	if _, err := engine.ImageInspect(ctx, name); !cerrdefs.IsNotFound(err) {
		return err
	}
	rootfs, err := busyboxTree(ctx)
	if err != nil {
		return fmt.Errorf("import test image: %w", err)
	}
	source := image.ImportSource{Source: rootfs, SourceName: "-"}
	said, err := engine.ImageImport(ctx, source, name, image.ImportOptions{Changes: changes})
	if err != nil {
		return fmt.Errorf("import test image: %w", err)
	}
	defer func() { _ = said.Close() }()
	if _, err := io.Copy(io.Discard, said); err != nil {
		return fmt.Errorf("import test image: %w", err)
	}
	if _, err := engine.ImageInspect(ctx, name); err != nil {
		return fmt.Errorf("import test image: %w", err)
	}
	return nil
}

// busyboxTree is a root filesystem as a tar: this machine's static busybox, a
// link for each of its commands, and the accounts root and dev.
func busyboxTree(ctx context.Context) (io.Reader, error) {
	const busybox = "/bin/busybox" // where the package busybox-static puts it
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("%w (sudo apt-get install busybox-static)", err)
	}
	commands, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	var tree bytes.Buffer
	w := tar.NewWriter(&tree)
	errs := []error{}
	folder := func(name string, mode int64, owner int) {
		errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: owner, Gid: owner}))
	}
	file := func(name string, mode int64, content []byte) {
		errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}))
		_, err := w.Write(content)
		errs = append(errs, err)
	}
	for _, name := range []string{"bin/", "dev/", "etc/", "home/", "proc/", "run/", "sbin/", "sys/", "usr/", "usr/bin/", "var/", "var/log/"} {
		folder(name, 0o755, 0)
	}
	folder("root/", 0o700, 0)
	folder("tmp/", 0o1777, 0)
	folder("home/"+ImageUser+"/", 0o755, ImageUserID)
	file("etc/passwd", 0o644, fmt.Appendf(nil, "root:x:0:0:root:/root:/bin/sh\n%s:x:%d:%d::/home/%[1]s:/bin/sh\n", ImageUser, ImageUserID, ImageUserID))
	file("etc/group", 0o644, fmt.Appendf(nil, "root:x:0:\n%s:x:%d:\n", ImageUser, ImageUserID))
	file("bin/busybox", 0o755, program)
	for _, command := range strings.Fields(string(commands)) {
		if command != "busybox" {
			errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + command, Linkname: "/bin/busybox"}))
		}
	}
	errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/bin/env", Linkname: "/bin/busybox"}))
	return &tree, errors.Join(append(errs, w.Close())...)
}

// Busybox unpacks the tree of BaseImage into dir, which it makes. It needs root.
func Busybox(t testing.TB, dir string) {
	t.Helper()
	if err := unpackBusybox(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
}

func unpackBusybox(ctx context.Context, dir string) error {
	rootfs, err := busyboxTree(ctx)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	unpack := exec.CommandContext(ctx, "tar", "-C", dir, "-x", "--numeric-owner")
	unpack.Stdin = rootfs
	if said, err := unpack.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack test image: %w: %s", err, said)
	}
	return nil
}
