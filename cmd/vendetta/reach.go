package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	gossh "golang.org/x/crypto/ssh"

	"github.com/vendetta-dev/vendetta/coordination"
	"github.com/vendetta-dev/vendetta/coordination/api"
	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
	"github.com/vendetta-dev/vendetta/nodeagent/install"
	"github.com/vendetta-dev/vendetta/transport"
	"github.com/vendetta-dev/vendetta/transport/ssh"
	"github.com/vendetta-dev/vendetta/transport/unix"
)

// nodeReach joins the server's domain to the transports: it keeps one transport
// for each node and installs node agents over them.
type nodeReach struct {
	app       *app
	key       gossh.Signer
	publicKey string
	home      string
	localUser string
	serverID  string
	log       *slog.Logger

	mu         sync.Mutex
	transports map[string]transport.Transport
}

var (
	_ coordination.Dialer    = (*nodeReach)(nil)
	_ coordination.Installer = (*nodeReach)(nil)
)

// transportCodes maps the transports' kinds of failure to codes of the contract.
var transportCodes = []struct {
	kind error
	code api.Code
}{
	{transport.ErrHostKey, api.FailedPrecondition},
	{transport.ErrLogin, api.PermissionDenied},
	{transport.ErrUnreachable, api.Unavailable},
	{transport.ErrNoAgent, api.Unavailable},
}

func reachError(err error) error {
	if err == nil {
		return nil
	}
	var own *transport.Error
	if !errors.As(err, &own) {
		return api.From(err)
	}
	e := &api.Error{Code: api.Unavailable, Message: own.Message, Next: own.Next, Cause: err}
	for _, row := range transportCodes {
		if errors.Is(err, row.kind) {
			e.Code = row.code
			break
		}
	}
	if errors.Is(err, transport.ErrNoAgent) {
		e.Cause = errors.Join(coordination.ErrNoAgent, err)
	}
	return e
}

// Dial implements coordination.Dialer.
func (r *nodeReach) Dial(ctx context.Context, target coordination.Target) (net.Conn, error) {
	t, err := r.transport(target)
	if err != nil {
		return nil, reachError(err)
	}
	conn, err := t.Dial(ctx)
	return conn, reachError(err)
}

// Forget implements coordination.Dialer.
func (r *nodeReach) Forget(nodeID string) {
	r.mu.Lock()
	t := r.transports[nodeID]
	delete(r.transports, nodeID)
	r.mu.Unlock()
	if t != nil {
		_ = t.Close()
	}
}

func (r *nodeReach) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.transports {
		_ = t.Close()
	}
	r.transports = nil
}

func (r *nodeReach) transport(target coordination.Target) (transport.Transport, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.transports[target.ID]; ok {
		return t, nil
	}
	var t transport.Transport
	if target.Address.GetLocal() {
		t = unix.New(target.Address.GetSocket())
	} else {
		kept, err := ssh.New(r.options(target, nil))
		if err != nil {
			return nil, err
		}
		t = kept
	}
	if r.transports == nil {
		r.transports = map[string]transport.Transport{}
	}
	r.transports[target.ID] = t
	return t, nil
}

func (r *nodeReach) options(target coordination.Target, login *vendettav1.Login) ssh.Options {
	address := target.Address
	o := ssh.Options{
		Name: target.Name, Host: address.GetHost(), User: address.GetUser(), Port: int(address.GetPort()),
		Jump: address.GetJump(), Identity: address.GetIdentity(),
		Socket: address.GetSocket(), Program: address.GetProgram(),
		HostKeys: target.HostKeys,
		KnownHosts: []string{
			filepath.Join(r.home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts",
		},
		ConfigFiles: []string{filepath.Join(r.home, ".ssh", "config"), "/etc/ssh/ssh_config"},
		Home:        r.home, LocalUser: r.localUser, Key: r.key, Logger: r.log,
	}
	if login != nil {
		o.Login = &ssh.Login{AgentSocket: login.GetAgentSocket(), Identities: login.GetIdentities(), Password: login.GetPassword()}
	}
	return o
}

// Probe implements coordination.Installer.
func (r *nodeReach) Probe(ctx context.Context, target coordination.Target, login *vendettav1.Login) ([]*vendettav1.HostKey, error) {
	if target.Address.GetLocal() {
		return nil, nil
	}
	seen, err := ssh.Probe(ctx, r.options(target, login))
	if err != nil {
		return nil, reachError(err)
	}
	keys := make([]*vendettav1.HostKey, len(seen))
	for i, k := range seen {
		keys[i] = &vendettav1.HostKey{Host: k.Host, Type: k.Type, Fingerprint: k.Fingerprint, Known: k.Known, Jump: k.Jump}
	}
	return keys, nil
}

// withSSH runs f over a connection of its own to the node.
func (r *nodeReach) withSSH(target coordination.Target, login *vendettav1.Login, f func(*ssh.Transport) error) error {
	t, err := ssh.New(r.options(target, login))
	if err != nil {
		return reachError(err)
	}
	return reachError(errors.Join(f(t), t.Close()))
}

func (r *nodeReach) installOptions() (install.Options, error) {
	bundle, err := bundleDir()
	if err != nil {
		return install.Options{}, err
	}
	return install.Options{Bundle: bundle, ServerID: r.serverID, PublicKey: r.publicKey}, nil
}

// Install implements coordination.Installer.
func (r *nodeReach) Install(ctx context.Context, target coordination.Target, login *vendettav1.Login) (coordination.Target, error) {
	o, err := r.installOptions()
	if err != nil {
		return target, err
	}
	r.Forget(target.ID)
	var result install.Result
	if target.Address.GetLocal() {
		result, err = install.Local(ctx, r.localProgram(), r.app.stateDir)
	} else {
		err = r.withSSH(target, login, func(t *ssh.Transport) error {
			result, err = install.Install(ctx, t, o)
			return err
		})
	}
	if err != nil {
		return target, reachError(err)
	}
	for _, warning := range result.Warnings {
		r.log.Warn("node agent installed with a warning", "node", target.Name, "warning", warning)
	}
	target.Address.Socket, target.Address.Program = result.Socket, result.Program
	return target, nil
}

// Start implements coordination.Installer.
func (r *nodeReach) Start(ctx context.Context, target coordination.Target) error {
	if target.Address.GetLocal() {
		_, err := install.Local(ctx, r.localProgram(), r.app.stateDir)
		return reachError(err)
	}
	return r.withSSH(target, nil, func(t *ssh.Transport) error {
		_, err := install.Start(ctx, t, target.Address.GetProgram())
		return err
	})
}

// Uninstall implements coordination.Installer.
func (r *nodeReach) Uninstall(ctx context.Context, target coordination.Target) error {
	if target.Address.GetLocal() {
		return reachError(install.UninstallLocal(ctx, r.localProgram(), r.app.stateDir))
	}
	o, err := r.installOptions()
	if err != nil {
		return err
	}
	return r.withSSH(target, nil, func(t *ssh.Transport) error {
		return install.Uninstall(ctx, t, o)
	})
}

// localProgram is this very program, which serves as the node agent here.
func (r *nodeReach) localProgram() string {
	program, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return program
}
