//go:build linux

package main

import (
	"bytes"
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
	docker "github.com/docker/docker/client"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/coordination/client"
	"github.com/vendetta-dev/vendetta/evals/testbed"
)

// The two nodes are one machine with two logins and an OpenSSH server for each:
// near is reached directly, far through a delay proxy.
const (
	near = "near"
	far  = "far"
)

// bed is all that is measured, brought up in folders of its own.
type bed struct {
	program string
	home    string
	state   string
	env     []string

	image  string
	engine *docker.Client
	host   string // the engine's address
	// kinds are the providers that are measured, kernel what qemu boots.
	kinds  []string
	kernel string

	nodes map[string]*machine
	// ours delays the server's way to the node far, theirs the peers' to near.
	ours, theirs *proxy

	client    *client.Client
	serverID  string
	serverPID int

	roads *roads
	peers *peers
	bare  *bareMachine
	lxc   *rawLXC
}

// machine is what a node is made of.
type machine struct {
	home, state string
	sshd        *testbed.SSHD
}

// newBed brings everything up. What it returns is closed even when there is an
// error beside it.
func newBed(ctx context.Context, program string) (*bed, error) {
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w; run make build first", err)
	}
	// Sockets lie below it, whose paths must be short.
	home, err := os.MkdirTemp("", "vb")
	if err != nil {
		return nil, err
	}
	b := &bed{program: program, home: home, state: filepath.Join(home, "s"), nodes: map[string]*machine{}}
	b.env = with(os.Environ(), "HOME="+home, "VENDETTA_STATE_DIR="+b.state, "SSH_AUTH_SOCK=", "DOCKER_HOST=")
	for _, step := range []func(context.Context) error{b.startEngine, b.startNodes, b.startServer, b.addNodes, b.startPeers, b.startRoads, b.startKinds} {
		if err := step(ctx); err != nil {
			return b, err
		}
	}
	return b, nil
}

// with sets variables in an environment; an empty value removes one.
func with(env []string, set ...string) []string {
	env = slices.Clone(env)
	for _, assignment := range set {
		name, value, _ := strings.Cut(assignment, "=")
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		if value != "" {
			env = append(env, assignment)
		}
	}
	return env
}

func (b *bed) startEngine(ctx context.Context) (err error) {
	if b.host, b.image, err = testbed.Engine(); err != nil {
		return err
	}
	b.kinds = strings.Split(os.Getenv("VENDETTA_TEST_PROVIDERS"), ",")
	if slices.Contains(b.kinds, qemu) {
		if b.kernel, err = testbed.KernelFile(); err != nil {
			return err
		}
	}
	b.engine, err = docker.NewClientWithOpts(docker.WithHost(b.host), docker.WithAPIVersionNegotiation())
	if err == nil {
		b.engine.NegotiateAPIVersion(ctx)
	}
	return err
}

func (b *bed) key() string { return filepath.Join(b.home, ".ssh", "id_ed25519") }

func (b *bed) startNodes(ctx context.Context) error {
	if err := os.Mkdir(filepath.Join(b.home, ".ssh"), 0o700); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", b.key()).CombinedOutput(); err != nil {
		return fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	public, err := os.ReadFile(b.key() + ".pub")
	if err != nil {
		return err
	}
	for _, name := range []string{near, far} {
		m := &machine{home: filepath.Join(b.home, name)}
		m.state = filepath.Join(m.home, "s")
		dir := filepath.Join(m.home, "sshd")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		m.sshd, err = testbed.StartSSHD(ctx, testbed.SSHDOptions{
			Dir: dir, AuthorizedKeys: []string{strings.TrimSpace(string(public))},
			Environment: map[string]string{
				"HOME": m.home, "VENDETTA_STATE_DIR": m.state, "PATH": os.Getenv("PATH"), "DOCKER_HOST": b.host, "VENDETTA_QEMU_KERNEL": b.kernel,
				"VENDETTA_AUTHORIZED_KEYS": filepath.Join(dir, "authorized_keys"),
			},
		})
		if err != nil {
			return err
		}
		b.nodes[name] = m
	}
	if b.ours, err = newProxy(ctx, b.nodes[far].sshd.Addr); err != nil {
		return err
	}
	b.theirs, err = newProxy(ctx, b.nodes[near].sshd.Addr)
	return err
}

func (b *bed) startServer(ctx context.Context) error {
	if _, err := b.run(ctx, "server", "start"); err != nil {
		return err
	}
	b.client = client.New(b.dialServer)
	status, err := b.client.Server.ServerStatus(ctx, &vendettav1.ServerStatusRequest{})
	if err != nil {
		return err
	}
	b.serverID, b.serverPID = status.GetId(), int(status.GetPid())
	return nil
}

func (b *bed) dialServer(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(b.state, "server", "server.sock"))
}

// addNodes adds both nodes and makes the workspace of each, named as its node.
func (b *bed) addNodes(ctx context.Context) error {
	for _, name := range []string{near, far} {
		sshd := b.nodes[name].sshd
		port := sshd.Port
		if name == far {
			port = b.ours.port()
		}
		if _, err := b.run(ctx, "node", "add", name, sshd.User+"@"+sshd.Host, "--port", fmt.Sprint(port), "--host-key", sshd.Fingerprint); err != nil {
			return err
		}
		if _, err := b.run(ctx, "workspace", "create", name, "--node", name, "--provider", "docker", "--image", b.image); err != nil {
			return err
		}
	}
	return nil
}

func (b *bed) startPeers(ctx context.Context) (err error) {
	b.peers, err = newPeers(ctx, b)
	return err
}

func (b *bed) startRoads(ctx context.Context) (err error) {
	b.roads, err = newRoads(ctx, b)
	return err
}

// run runs a vendetta command as the user and returns its stdout.
func (b *bed) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, b.program, args...)
	cmd.Env, cmd.Dir = b.env, b.home
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("vendetta %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// close takes everything down, in the opposite order.
func (b *bed) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	if b.roads != nil {
		b.roads.close()
	}
	if b.peers != nil {
		errs = append(errs, b.peers.close(ctx))
	}
	if b.lxc != nil {
		errs = append(errs, b.lxc.close(ctx))
	}
	for _, p := range []*proxy{b.ours, b.theirs} {
		if p != nil {
			p.setRoundTrip(0)
		}
	}
	if b.client != nil {
		errs = append(errs, b.leave(ctx))
		b.client.Close()
	}
	for _, p := range []*proxy{b.ours, b.theirs} {
		if p != nil {
			p.close()
		}
	}
	for _, m := range b.nodes {
		m.sshd.Stop()
	}
	if b.engine != nil {
		errs = append(errs, b.engine.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(b.home))...)
}

// leave removes workspaces and nodes, stops the server, and sees to it that no
// container of theirs is left.
func (b *bed) leave(ctx context.Context) error {
	var errs []error
	try := func(args ...string) []string {
		out, err := b.run(ctx, args...)
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
	errs = append(errs, removeContainers(ctx, b.engine, "vendetta.server="+b.serverID))
	return errors.Join(errs...)
}

func removeContainers(ctx context.Context, engine *docker.Client, label string) error {
	list, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", label))})
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range list {
		errs = append(errs, engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	}
	return errors.Join(errs...)
}
