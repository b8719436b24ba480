//go:build linux

package qemu

import (
	"context"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// bootPatience bounds a boot; a translated one of a whole system takes a minute
// where nothing else runs.
const bootPatience = 9 * time.Minute

func realProvider(t *testing.T, change func(*Options)) *Provider {
	t.Helper()
	testbed.Wants(t, Name)
	state, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{
		ServerID: "real", StateDir: filepath.Join(state, "qemu"), GuestProgram: testbed.Guest(t), Kernel: testbed.Kernel(t),
		Images: image.New(image.Options{Dir: filepath.Join(state, "images")}),
	}
	if change != nil {
		change(&opts)
	}
	p := New(opts)
	t.Cleanup(func() {
		all, err := p.List(context.WithoutCancel(t.Context()))
		for _, i := range all {
			err = errors.Join(err, p.Destroy(context.WithoutCancel(t.Context()), i.Workspace, true))
		}
		if err = errors.Join(err, p.Close(), os.RemoveAll(state)); err != nil {
			t.Error(err)
		}
	})
	return p
}

// inside runs a command in a machine, once its guest answers.
func inside(t *testing.T, p *Provider, ws string, argv ...string) (output string, code int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootPatience)
	defer cancel()
	conn, err := p.Connect(ctx, ws)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := wire.OpenLink(ctx, conn); err != nil {
		t.Fatalf("%v; the console: %s", err, p.Console(context.WithoutCancel(ctx), ws))
	}
	client := wire.Client(func(context.Context) (net.Conn, error) { return conn, nil })
	stream, err := guestv1connect.NewProcessServiceClient(client, wire.BaseURL).Start(ctx, &guestv1.StartRequest{ProcessId: strings.ToLower(rand.Text()), Argv: argv})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		output += string(stream.Msg().GetOutput().GetData())
		if ended := stream.Msg().GetEnded(); ended != nil {
			return output, ended.GetExitCode()
		}
	}
	t.Fatalf("%q: %v", argv, stream.Err())
	return "", 0
}

// A disk image that is fetched by its address boots by itself and gets the guest
// from the seed.
func TestDiskImage(t *testing.T) {
	p := realProvider(t, nil)
	path := testbed.CloudImage(t)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(raw)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
	defer server.Close()
	s := providers.Spec{
		Workspace: "disk", Name: "clouds", Image: server.URL + "/debian.qcow2", Checksum: "sha512:" + strings.Repeat("0", 128),
		Resources: providers.Resources{MemoryBytes: 512 << 20, DiskBytes: 3 << 30, PIDs: 500},
	}
	if _, err := p.Create(t.Context(), s); !errors.Is(err, providers.ErrImage) {
		t.Errorf("a wrong checksum: %v", err)
	}
	if all, err := p.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("it left %v, %v", all, err)
	}
	s.Checksum = "sha512:" + hex.EncodeToString(sum[:])
	i, err := p.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if i.Digest == "" || i.Boot < time.Minute {
		t.Errorf("created %+v", i)
	}
	if err := p.Start(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	output, code := inside(t, p, "disk", "sh", "-c", "cat /proc/1/comm; hostname; pwd; id -u; echo mine > kept; test -s /.vendetta/bin/vendetta-guest && mountpoint -q /workspace && echo attached")
	if code != 0 || output != "systemd\nclouds\n/workspace\n0\nattached\n" {
		t.Errorf("status %d: %q", code, output)
	}
	if err := p.Stop(t.Context(), "disk", bootPatience); err != nil {
		t.Fatal(err)
	}
	if i, err := p.Inspect(t.Context(), "disk"); err != nil || i.State != providers.StateStopped {
		t.Errorf("stopped %+v, %v", i, err)
	}
}

// A guest that never answers leaves the last lines of its console, after its
// machine's end too.
func TestGuestThatNeverAnswers(t *testing.T) {
	p := realProvider(t, func(o *Options) { o.GuestProgram = "/bin/busybox" })
	ctx := t.Context()
	if _, err := p.Create(ctx, providers.Spec{Workspace: "mute", Name: "mute", Image: testbed.RegistryImage(t)}); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(ctx, "mute"); err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	if err := p.await(waiting, "mute", func(s string) (bool, error) { return stateOf(s) == providers.StateStopped, nil }); err != nil {
		t.Fatal(err)
	}
	i, err := p.Inspect(ctx, "mute")
	if err != nil || i.State != providers.StateStopped || i.Message == "" {
		t.Errorf("found %+v, %v", i, err)
	}
	const want = "applet not found"
	if said := p.Console(ctx, "mute"); !strings.Contains(said, want) {
		t.Errorf("the console says %q", said)
	}
	if err := p.Stop(ctx, "mute", 0); err != nil {
		t.Fatal(err)
	}
	if said := p.Console(ctx, "mute"); !strings.Contains(said, want) {
		t.Errorf("after the machine's end the console says %q", said)
	}
	if said := p.Console(ctx, "nobody"); said != "" {
		t.Errorf("the console of nobody says %q", said)
	}
}
