//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	docker "github.com/docker/docker/client"
)

// peers are what a user would do without vendetta: a plain container, and the
// ways to run a command in it.
type peers struct {
	engine    *docker.Client
	image     string
	container string
	env       []string
	config    string
}

// peerLabel marks the containers that peers make.
const peerLabel = "vendetta-bench.peer"

func newPeers(ctx context.Context, b *bed) (*peers, error) {
	p := &peers{engine: b.engine, image: b.image, config: filepath.Join(b.home, "ssh_config")}
	bin := filepath.Join(b.home, "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		return p, err
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return p, fmt.Errorf("%w; apt-get install openssh-client", err)
	}
	// ssh takes its config from the password file's home, so docker, which runs
	// it without further ado, is given one that reads ours.
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %s -F %s \"$@\"\n", ssh, p.config)
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(wrapper), 0o700); err != nil {
		return p, err
	}
	p.env = with(b.env, "PATH="+bin+":"+os.Getenv("PATH"), "DOCKER_CONFIG="+filepath.Join(b.home, "docker"))
	if err := p.writeConfig(b); err != nil {
		return p, err
	}
	p.container, err = p.create(ctx)
	return p, err
}

// writeConfig gives ssh one kept connection for each host (ControlMaster), which
// is the best that OpenSSH can do.
func (p *peers) writeConfig(b *bed) error {
	sshd := b.nodes[near].sshd
	known := filepath.Join(b.home, "known_hosts")
	if err := os.WriteFile(known, []byte("bench "+sshd.HostKey+"\n"), 0o600); err != nil {
		return err
	}
	var c strings.Builder
	for name, port := range map[string]int{near: sshd.Port, far: b.theirs.port()} {
		fmt.Fprintf(&c, "Host %s\n  HostName %s\n  Port %d\n", name, sshd.Host, port)
	}
	fmt.Fprintf(&c, "Host *\n  User %s\n  IdentityFile %s\n  IdentitiesOnly yes\n  HostKeyAlias bench\n  UserKnownHostsFile %s\n"+
		"  StrictHostKeyChecking yes\n  BatchMode yes\n  ControlMaster auto\n  ControlPath %s\n  ControlPersist 600\n",
		sshd.User, b.key(), known, filepath.Join(b.home, "c-%n"))
	return os.WriteFile(p.config, []byte(c.String()), 0o600)
}

// create makes and starts a container that waits, with the engine's defaults.
func (p *peers) create(ctx context.Context) (string, error) {
	made, err := p.engine.ContainerCreate(ctx, &container.Config{
		Image: p.image, Cmd: []string{"sleep", "86400"}, Labels: map[string]string{peerLabel: strconv.Itoa(os.Getpid())},
	}, nil, nil, nil, "")
	if err != nil {
		return "", err
	}
	return made.ID, p.engine.ContainerStart(ctx, made.ID, container.StartOptions{})
}

func (p *peers) remove(ctx context.Context, id string) error {
	return p.engine.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
}

// api runs a command in a container by Docker's API alone: create the exec,
// start it with its output attached, read that to its end, ask for the exit code.
func (p *peers) api(ctx context.Context, id string, argv ...string) error {
	made, err := p.engine.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: argv, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return err
	}
	attached, err := p.engine.ContainerExecAttach(ctx, made.ID, container.ExecStartOptions{})
	if err != nil {
		return err
	}
	defer attached.Close()
	if _, err := io.Copy(io.Discard, attached.Reader); err != nil {
		return err
	}
	ended, err := p.engine.ContainerExecInspect(ctx, made.ID)
	if err != nil {
		return err
	}
	if ended.Running || ended.ExitCode != 0 {
		return fmt.Errorf("docker exec %v: running %t, exit code %d", argv, ended.Running, ended.ExitCode)
	}
	return nil
}

// ssh runs `docker exec` on the host, over its kept connection.
func (p *peers) ssh(ctx context.Context, host string) error {
	return p.command(ctx, "ssh", "-F", p.config, host, "docker", "exec", p.container, "true")
}

// dockerSSH runs docker here, whose engine is reached over ssh.
func (p *peers) dockerSSH(ctx context.Context, host string) error {
	return p.command(ctx, "docker", "-H", "ssh://"+host, "exec", p.container, "true")
}

func (p *peers) command(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = p.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (p *peers) close(ctx context.Context) error {
	for _, host := range []string{near, far} {
		if _, err := os.Stat(strings.TrimSuffix(p.config, "ssh_config") + "c-" + host); err == nil {
			_ = p.command(ctx, "ssh", "-F", p.config, "-O", "exit", host)
		}
	}
	return errors.Join(removeContainers(ctx, p.engine, peerLabel+"="+strconv.Itoa(os.Getpid())))
}
