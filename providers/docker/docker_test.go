package docker_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

// engine is a client of the test engine.
func engine(t *testing.T) *client.Client {
	t.Helper()
	e, err := client.NewClientWithOpts(client.WithHost(testbed.Docker(t)), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// stateDir is short: a socket's path is limited.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestContract(t *testing.T) { providertest.Run(t, harness(t)) }

func TestCyclesLeaveNothing(t *testing.T) { providertest.RunCycles(t, harness(t)) }

// harness joins the suite, on an engine that other tests use too.
func harness(t *testing.T) providertest.Harness {
	t.Helper()
	testbed.Wants(t, "docker")
	state, e := stateDir(t), engine(t)
	return providertest.Harness{
		New: func(t *testing.T, server string) providers.Provider {
			p, err := docker.New(docker.Options{
				ServerID:     server,
				StateDir:     filepath.Join(state, server),
				GuestProgram: testbed.Guest(t),
				Host:         testbed.Docker(t),
			})
			if err != nil {
				t.Fatal(err)
			}
			return p
		},
		Leftovers: func(t *testing.T, workspace string) []string {
			label := filters.NewArgs(filters.Arg("label", providers.LabelWorkspace+"="+workspace))
			containers, err := e.ContainerList(context.Background(), container.ListOptions{All: true, Filters: label})
			if err != nil {
				t.Fatal(err)
			}
			volumes, err := e.VolumeList(context.Background(), volume.ListOptions{Filters: label})
			if err != nil {
				t.Fatal(err)
			}
			images, err := e.ImageList(context.Background(), image.ListOptions{All: true, Filters: label})
			if err != nil {
				t.Fatal(err)
			}
			left, err := filepath.Glob(filepath.Join(state, "*", workspace))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range containers {
				left = append(left, c.Names...)
			}
			for _, v := range volumes.Volumes {
				left = append(left, v.Name)
			}
			for _, i := range images {
				left = append(left, i.ID)
			}
			return left
		},
		Objects: func(t *testing.T) []string {
			containers, err := e.ContainerList(context.Background(), container.ListOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			volumes, err := e.VolumeList(context.Background(), volume.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			images, err := e.ImageList(context.Background(), image.ListOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			all, err := filepath.Glob(filepath.Join(state, "*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range containers {
				all = append(all, "container "+c.ID+strings.Join(c.Names, ""))
			}
			for _, v := range volumes.Volumes {
				all = append(all, "volume "+v.Name)
			}
			for _, i := range images {
				all = append(all, "image "+i.ID)
			}
			return all
		},
		Kill: func(t *testing.T, p providers.Provider, workspace string) {
			i, err := p.Inspect(t.Context(), workspace)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.ContainerKill(t.Context(), i.Name, "KILL"); err != nil {
				t.Fatal(err)
			}
		},
		Image:         testbed.Image(t),
		MissingImage:  "127.0.0.1:1/nothing/here:1",
		ImageVariable: testbed.ImageVariable,
		UserImage:     testbed.UserImage(t),
		UserImageUID:  "1000",
		Isolated:      true,
		Hardened:      true,
		LimitsPIDs:    true,
		LimitsMemory:  true,
		LimitsCPU:     true,
		Networks:      true,
	}
}
