package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"connectrpc.com/connect"

	"github.com/vendetta-dev/vendetta/coordination/api"
	nodeagentv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/nodeagent/v1/nodeagentv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/nodeagent"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/docker"
	"github.com/vendetta-dev/vendetta/providers/image"
	"github.com/vendetta-dev/vendetta/providers/lxc"
	"github.com/vendetta-dev/vendetta/providers/native"
	"github.com/vendetta-dev/vendetta/providers/qemu"
)

// kernelVariable names the kernel that virtual machines boot container images
// with, instead of the newest that is found on the node.
const kernelVariable = "VENDETTA_QEMU_KERNEL"

// nodeProviders is the list of what a node can host workspaces with.
func nodeProviders(a *app, guest, self string, images *image.Store, log *slog.Logger) func(serverID string) []providers.Provider {
	return func(serverID string) []providers.Provider {
		list := []providers.Provider{native.New(native.Options{
			ServerID: serverID, StateDir: filepath.Join(a.agentDir(), "native", serverID),
			GuestProgram: guest, InitCommand: []string{self, "nodeagent", "native-init"}, Images: images, Logger: log,
		}), qemu.New(qemu.Options{
			ServerID: serverID, StateDir: filepath.Join(a.agentDir(), "qemu", serverID), GuestProgram: guest, Images: images,
			Kernel: os.Getenv(kernelVariable), KernelDir: filepath.Join(a.agentDir(), "kernel"), Logger: log,
		})}
		list = append(list, lxc.New(lxc.Options{
			ServerID: serverID, StateDir: filepath.Join(a.agentDir(), "lxc", serverID),
			GuestProgram: guest, Helper: sibling(self, "vendetta-lxc"), Images: images, Logger: log,
		}))
		engine, err := docker.New(docker.Options{
			ServerID: serverID, StateDir: filepath.Join(a.agentDir(), "docker", serverID), GuestProgram: guest, Logger: log,
		})
		if err != nil {
			log.Error("docker is left out", "error", err)
			return list
		}
		return append(list, engine)
	}
}

// nodeImages is the machine's own store of images. The providers that have no
// engine of their own share it.
func nodeImages(a *app, log *slog.Logger) *image.Store {
	return image.New(image.Options{Dir: filepath.Join(a.agentDir(), "images"), Private: []string{a.stateDir}, Logger: log})
}

// nodeStores are the node's: its own and the Docker engine's.
func nodeStores(own *image.Store, log *slog.Logger) func() []providers.Images {
	stores := []providers.Images{own}
	engine, err := docker.NewStore(docker.StoreOptions{Logger: log})
	if err != nil {
		log.Error("the images of docker are left out", "error", err)
	} else {
		stores = append(stores, engine)
	}
	return func() []providers.Images { return stores }
}

// guestProgram is the guest beside this program, or in the bundle beside it.
func guestProgram(self string) (string, error) {
	if path := sibling(self, "vendetta-guest"); path != "" {
		return path, nil
	}
	return "", api.Errorf(api.FailedPrecondition, "node agent: the guest program is missing beside %s", self).
		WithNext("make build, then add the node again")
}

// sibling is a program beside this one, or in the bundle beside it; "" for none.
func sibling(self, name string) string {
	places := []string{filepath.Join(filepath.Dir(self), name)}
	if bundle, err := bundleDir(); err == nil {
		places = append(places, filepath.Join(bundle, "linux-"+runtime.GOARCH, name))
	}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

func self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func startNodeAgent(ctx context.Context, a *app) (string, error) {
	program, err := self()
	if err != nil {
		return "", err
	}
	return nodeagent.Start(ctx, nodeagent.StartOptions{
		Program: program, Args: a.agentArgs("supervise"), StateDir: a.agentDir(),
	})
}

func (a *app) agentArgs(verb string) []string {
	return []string{"nodeagent", verb, "--state-dir", a.stateDir}
}

func superviseNodeAgent(ctx context.Context, a *app) error {
	program, err := self()
	if err != nil {
		return err
	}
	return nodeagent.Supervise(ctx, nodeagent.SuperviseOptions{
		Program: program, Args: a.agentArgs("run"), StateDir: a.agentDir(), Logger: a.logger(a.err),
	})
}

func runNodeAgent(ctx context.Context, a *app) error {
	program, err := self()
	if err != nil {
		return err
	}
	guest, err := guestProgram(program)
	if err != nil {
		return err
	}
	log := a.logger(a.err)
	images := nodeImages(a, log)
	agent, err := nodeagent.New(nodeagent.Options{
		StateDir: a.agentDir(), Providers: nodeProviders(a, guest, program, images, log), Version: api.Version, Logger: log,
		Images: nodeStores(images, log),
	})
	if err != nil {
		return err
	}
	listener, err := nodeagent.Listen(a.agentDir())
	if err != nil {
		return err
	}
	return agent.Run(ctx, listener)
}

func connectNodeAgent(ctx context.Context, a *app, socket string) error {
	if socket == "" {
		socket = nodeagent.SocketPath(a.agentDir())
	}
	return nodeagent.Connect(ctx, socket, a.in, a.out)
}

// uninstallNodeAgent asks the agent itself, which knows whether workspaces are
// left; one that does not run is started for it.
func uninstallNodeAgent(ctx context.Context, a *app) error {
	if _, err := os.Stat(a.agentDir()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	socket, err := startNodeAgent(ctx, a)
	if err != nil {
		return err
	}
	agent := nodeagentv1connect.NewNodeAgentServiceClient(wire.Client(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}), wire.BaseURL)
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set(api.ServerHeader, "uninstall")
	if _, err := agent.Shutdown(ctx, &nodeagentv1.ShutdownRequest{Uninstall: true}); err != nil {
		return err
	}
	if err := nodeagent.Stop(ctx, a.agentDir()); err != nil {
		return err
	}
	// Without workspaces these are only folders of the agent's and the providers' own.
	return os.RemoveAll(a.agentDir())
}

func nativeInit() int { return native.Init() }
