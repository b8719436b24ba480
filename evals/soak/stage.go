//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
	docker "github.com/docker/docker/client"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/evals/testbed"
)

const node = "local"

// stage is a server with one node, this machine, and a lasting workspace of each
// provider that can be used here.
type stage struct {
	program string
	home    string
	state   string
	env     []string
	engine  *docker.Client
	image   string

	client   *client.Client
	serverID string
	// workspaces by provider; each is named as its provider.
	workspaces []string
}

// newStage brings everything up. What it returns is closed even when there is an
// error beside it.
func newStage(ctx context.Context, program string) (*stage, error) {
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w; run make build first", err)
	}
	home, err := os.MkdirTemp("", "vs")
	if err != nil {
		return nil, err
	}
	s := &stage{program: program, home: home, state: filepath.Join(home, "s")}
	s.env = append(os.Environ(), "HOME="+home, "VENDETTA_STATE_DIR="+s.state)
	host, image, err := testbed.Engine()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak: without Docker:", err)
	} else {
		s.env, s.image = append(s.env, "DOCKER_HOST="+host), image
		if s.engine, err = docker.NewClientWithOpts(docker.WithHost(host), docker.WithAPIVersionNegotiation()); err != nil {
			return s, err
		}
	}
	return s, s.start(ctx)
}

func (s *stage) start(ctx context.Context) error {
	if _, err := s.run(ctx, "server", "start"); err != nil {
		return err
	}
	s.client = client.New(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.state, "server", "server.sock"))
	})
	status, err := s.client.Server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{})
	if err != nil {
		return err
	}
	s.serverID = status.GetId()
	if _, err := s.run(ctx, "node", "add", node, "--local"); err != nil {
		return err
	}
	n, err := s.client.Nodes.GetNode(ctx, &vendettav1.GetNodeRequest{Name: node})
	if err != nil {
		return err
	}
	for _, p := range n.GetReport().GetProviders() {
		if !p.GetUsable() {
			fmt.Fprintf(os.Stderr, "soak: without %s: %s\n", p.GetName(), p.GetReason())
			continue
		}
		if err := s.create(ctx, p.GetName(), p.GetName()); err != nil {
			return err
		}
		s.workspaces = append(s.workspaces, p.GetName())
	}
	if len(s.workspaces) == 0 {
		return errors.New("no provider can be used here; vendetta doctor says what is missing")
	}
	return nil
}

func (s *stage) create(ctx context.Context, name, provider string) error {
	spec := &vendettav1.WorkspaceSpec{Provider: provider}
	if provider == "docker" {
		spec.Image = s.image
	}
	change, err := s.client.Workspaces.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{
		Name: name, Node: node, Spec: spec, IdempotencyKey: newID(),
	})
	if err != nil {
		return err
	}
	_, err = s.client.Wait(ctx, change.GetOperation())
	return err
}

func (s *stage) remove(ctx context.Context, name string) error {
	change, err := s.client.Workspaces.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{
		Name: name, Force: true, IdempotencyKey: newID(),
	})
	if err != nil {
		return err
	}
	_, err = s.client.Wait(ctx, change.GetOperation())
	return err
}

func (s *stage) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env, cmd.Dir = s.env, s.home
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("vendetta %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// close removes workspaces and node and stops the server.
func (s *stage) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	if s.client != nil {
		try := func(args ...string) []string {
			out, err := s.run(ctx, args...)
			errs = append(errs, err)
			return strings.Fields(out)
		}
		for _, name := range try("workspace", "list", "-q") {
			try("workspace", "rm", name, "--force")
		}
		for _, name := range try("node", "list", "-q") {
			try("node", "rm", name)
		}
		try("server", "stop")
		s.client.Close()
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.home))...)
}

// subjects are what is looked at, in the order in which they are printed.
const (
	server = "server"
	agent  = "node agent"
	whole  = "all together"
)

// snapshot is what every subject holds at one moment.
type snapshot map[string]usage

func (s *stage) look(ctx context.Context) (snapshot, error) {
	processes, err := processesOf(s.state)
	if err != nil {
		return nil, err
	}
	all := snapshot{whole: {"processes": int64(len(processes))}}
	note := func(subject string, pid int) error {
		u, err := processUsage(pid)
		if err == nil {
			all[subject] = u
		}
		return err
	}
	for _, p := range processes {
		switch {
		case p.is("server", "start"):
			err = note(server, p.pid)
		case p.is("nodeagent", "run"):
			err = note(agent, p.pid)
		case p.is("vendetta-guest"):
			err = note(s.guestName(p.pid), p.pid)
		}
		if err != nil {
			return nil, err
		}
	}
	if all[whole]["mounts"], err = mountsBelow(s.state); err != nil {
		return nil, err
	}
	if all[whole]["files"], err = filesBelow(s.state); err != nil {
		return nil, err
	}
	return all, s.lookAtEngine(ctx, all[whole])
}

// guestName tells the guests of the lasting workspaces apart: Docker's has a
// cgroup of the engine's.
func (s *stage) guestName(pid int) string {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if strings.Contains(string(groups), "docker") {
		return "guest in docker"
	}
	return "guest in native"
}

func (s *stage) lookAtEngine(ctx context.Context, u usage) error {
	if s.engine == nil {
		return nil
	}
	own := filters.NewArgs(filters.Arg("label", "vendetta.server="+s.serverID))
	containers, err := s.engine.ContainerList(ctx, container.ListOptions{All: true, Filters: own})
	if err != nil {
		return err
	}
	volumes, err := s.engine.VolumeList(ctx, volume.ListOptions{Filters: own})
	if err != nil {
		return err
	}
	u["containers"], u["volumes"] = int64(len(containers)), int64(len(volumes.Volumes))
	return nil
}

// settled looks until nothing is above the slack over before, since what has just
// ended is given back a little later, but not for ever.
func (s *stage) settled(ctx context.Context, before snapshot) (snapshot, error) {
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		// The first look is a second after the end of the work.
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		now, err := s.look(ctx)
		if err != nil {
			return nil, err
		}
		grown := slices.ContainsFunc(compare(before, now), func(c comparison) bool { return c.grown })
		if before == nil || !grown || time.Now().After(deadline) {
			return now, nil
		}
	}
}
