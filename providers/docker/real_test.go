package docker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
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

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
)

// id is a new workspace's.
func id() string { return strings.ToLower(rand.Text()[:12]) }

// real is a provider on the test engine, for one test.
func real(t *testing.T, change ...func(*docker.Options)) *docker.Provider {
	t.Helper()
	o := docker.Options{
		ServerID:     "real-" + strings.ToLower(t.Name()),
		StateDir:     stateDir(t),
		GuestProgram: program(t, "#!/bin/sh\necho cannot go on >&2\nexit 3\n"),
		Host:         testbed.Docker(t),
		Logger:       slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, c := range change {
		c(&o)
	}
	p, err := docker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		all, err := p.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, i := range all {
			if err := p.Destroy(ctx, i.Workspace, true); err != nil {
				t.Error(err)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestGuestThatEnds(t *testing.T) {
	testbed.Wants(t, "docker")
	p := real(t)
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	// Whether it has ended before Connect or ends while that waits.
	_, err := p.Connect(t.Context(), spec.Workspace)
	want(t, err, nil, "is not running", "ended with status 3", "cannot go on", "docker logs vendetta-"+spec.Workspace)
}

func TestGuestThatEndsWhileConnectWaits(t *testing.T) {
	testbed.Wants(t, "docker")
	p := real(t, func(o *docker.Options) { o.GuestProgram = program(t, "#!/bin/sh\nsleep 0.5\nexit 4\n") })
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context(), spec.Workspace); err != nil {
		t.Fatal(err)
	}
	_, err := p.Connect(t.Context(), spec.Workspace)
	want(t, err, nil, "ended with status 4")
}

// imageWith makes an image like the base with changes, as a Dockerfile says them.
func imageWith(t *testing.T, e *client.Client, changes ...string) string {
	t.Helper()
	c, err := e.ContainerCreate(t.Context(), &container.Config{Image: testbed.Image(t), Cmd: []string{"true"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	made, err := e.ContainerCommit(t.Context(), c.ID, container.CommitOptions{Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.ContainerRemove(t.Context(), c.ID, container.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := e.ImageRemove(context.Background(), made.ID, image.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	})
	return made.ID
}

func TestProjectBelongsToTheImagesUser(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), real(t)
	for _, c := range []struct {
		user     string
		uid, gid int
		kind     error
	}{
		{"root", 0, 0, nil},
		{"dev", 1000, 1000, nil},
		{"1000", 1000, 1000, nil},
		{"1234", 1234, 0, nil},
		{"1234:77", 1234, 77, nil},
		{"dev:root", 1000, 0, nil},
		{"nobody-here", 0, 0, providers.ErrImage},
		{"dev:nobody-here", 0, 0, providers.ErrImage},
	} {
		spec := providers.Spec{Workspace: id(), Image: imageWith(t, e, "USER "+c.user)}
		made, err := p.Create(t.Context(), spec)
		if c.kind != nil {
			want(t, err, c.kind, c.user)
			if _, err := p.Inspect(t.Context(), spec.Workspace); err == nil {
				t.Errorf("%s: an instance was left", c.user)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", c.user, err)
		}
		stream, _, err := e.CopyFromContainer(t.Context(), made.Name, providers.Project)
		if err != nil {
			t.Fatal(err)
		}
		header, err := tar.NewReader(stream).Next()
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != c.uid || header.Gid != c.gid || header.Mode&0o777 != 0o755 {
			t.Errorf("%s: /workspace is of %d:%d, %o", c.user, header.Uid, header.Gid, header.Mode)
		}
		_ = stream.Close()
		if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
			t.Error(err)
		}
	}
}

func TestImageWithoutAccounts(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), real(t)
	for i, c := range []struct {
		passwd *tar.Header
		body   string
		user   string
		fails  bool
	}{
		{nil, "", "77", false},
		{nil, "", "somebody", true},
		{&tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/passwd", Linkname: "elsewhere"}, "", "somebody", true},
		{&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "somebody:x:many:77::/:/bin/sh\n", "somebody", true},
		{&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "somebody:x:77:many::/:/bin/sh\n", "somebody", true},
		{&tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "some:x:many:\n", "77:some", true},
	} {
		var tree bytes.Buffer
		w := tar.NewWriter(&tree)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		if c.passwd != nil {
			c.passwd.Size = int64(len(c.body))
			if err := w.WriteHeader(c.passwd); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, c.body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		ref := "vendetta-test/accounts:" + string(rune('a'+i))
		said, err := e.ImageImport(t.Context(), image.ImportSource{Source: &tree, SourceName: "-"}, ref, image.ImportOptions{Changes: []string{"USER " + c.user}})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, said)
		_ = said.Close()
		spec := providers.Spec{Workspace: id(), Image: ref}
		_, err = p.Create(t.Context(), spec)
		if c.fails {
			want(t, err, providers.ErrImage, "cannot be resolved")
		} else if err != nil {
			t.Error(err)
		}
		if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
			t.Error(err)
		}
		if _, err := e.ImageRemove(t.Context(), ref, image.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
}

func TestPull(t *testing.T) {
	testbed.Wants(t, "docker")
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/vendetta/pulled:1")
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.ConfigFile(img, configOf(t, img)); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	e, p := engine(t), real(t)
	spec := providers.Spec{Workspace: id(), Image: ref.String()}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Error(err)
	}
	if _, err := e.ImageRemove(t.Context(), ref.String(), image.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	spec.Image = host + "/vendetta/absent:1"
	_, err = p.Create(t.Context(), spec)
	want(t, err, providers.ErrImage, "does not exist", "check the name")
}

func configOf(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	return config
}

// An image with nothing in it but a folder: the guest answers, and what is not
// there is named.
func TestImageWithoutAShell(t *testing.T) {
	testbed.Wants(t, "docker")
	e, p := engine(t), real(t, func(o *docker.Options) { o.GuestProgram = testbed.Guest(t) })
	const ref = "vendetta-test/shell-less:1"
	said, err := e.ImageImport(t.Context(), image.ImportSource{Source: bytes.NewReader(layerWith(t, "a", "b")), SourceName: "-"}, ref, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, said)
	_ = said.Close()
	spec := providers.Spec{Workspace: id(), Image: ref}
	up(t, p, spec)
	conn, err := p.Connect(t.Context(), spec.Workspace)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := wire.OpenLink(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	processes := guestv1connect.NewProcessServiceClient(wire.Client(func(context.Context) (net.Conn, error) { return conn, nil }), wire.BaseURL)
	stream, err := processes.Start(t.Context(), &guestv1.StartRequest{ProcessId: id(), Argv: []string{"sh", "-c", "true"}})
	if err != nil {
		t.Fatal(err)
	}
	var ended *guestv1.Process
	for stream.Receive() {
		if p := stream.Msg().GetEnded(); p != nil {
			ended = p
		}
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
	if ended.GetExitCode() != 127 || !strings.Contains(ended.GetMessage(), "sh: command not found") {
		t.Errorf("a shell that is not there: %v, %v", ended, stream.Err())
	}
	if err := p.Destroy(t.Context(), spec.Workspace, true); err != nil {
		t.Error(err)
	}
	forget(t, ref)
}

func TestLinkFolderIsForTheAgentAlone(t *testing.T) {
	testbed.Wants(t, "docker")
	var dir string
	p := real(t, func(o *docker.Options) { dir = o.StateDir })
	spec := providers.Spec{Workspace: id(), Image: testbed.Image(t)}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{"": 0o700, spec.Workspace: 0o700, spec.Workspace + "/link": 0o755, spec.Workspace + "/link/guest.sock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v", path, info.Mode(), err)
		}
	}
}
