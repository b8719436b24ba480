package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination"
	"github.com/vendetta-dev/vendetta/coordination/api"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
	"github.com/vendetta-dev/vendetta/coordination/httpapi"
	"github.com/vendetta-dev/vendetta/coordination/store"
	"github.com/vendetta-dev/vendetta/coordination/store/sqlite"
	"github.com/vendetta-dev/vendetta/transport/ssh/keys"
)

// serve runs the server in this process until ctx ends or a caller shuts it down.
func (a *app) serve(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := a.logger(a.err)
	records, err := sqlite.Open(ctx, filepath.Join(a.serverDir(), "vendetta.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	key, err := keys.Find(filepath.Join(a.serverDir(), "id_ed25519"), "vendetta-server")
	if err != nil {
		return err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return api.Errorf(api.FailedPrecondition, "start the server: %w", err)
	}
	// The name counts only where neither the address nor ~/.ssh/config has a user.
	name := a.getenv("USER")
	if self, err := user.Current(); err == nil {
		name = self.Username
	}
	reach := &nodeReach{app: a, key: key, home: home, localUser: name, log: log}
	defer reach.close()
	domain, err := coordination.New(ctx, coordination.Options{
		Store: records, Dialer: reach, Installer: reach, Version: api.Version, StateDir: a.stateDir,
		PublicKey: keys.PublicLine(key.PublicKey(), "vendetta-server"), PID: os.Getpid(), Logger: log,
		Shutdown: func() { time.AfterFunc(shutdownGrace, cancel) },
	})
	if err != nil {
		return err
	}
	reach.serverID = domain.ID()
	reach.publicKey = keys.PublicLine(key.PublicKey(), "")
	listener, err := a.listenServer(ctx)
	if err != nil {
		return err
	}
	handler := httpapi.New(httpapi.Options{
		Nodes: domain, Workspaces: domain, Operations: domain, Server: domain, Guests: domain, Agents: domain,
		Audit: func(ctx context.Context, e httpapi.Entry) error {
			return records.Update(ctx, func(tx store.Tx) error {
				_, err := tx.AppendAudit(store.Audit{
					At: time.Now(), Principal: e.Principal, Method: e.Method, Workspace: e.Workspace, Fields: e.Fields,
				})
				return err
			})
		},
		Authenticate: httpapi.Local, Logger: log,
	})
	var tasks conc.WaitGroup
	defer tasks.Wait()
	defer cancel()
	tasks.Go(func() {
		<-ctx.Done()
		_ = listener.Close()
	})
	var failed error
	tasks.Go(func() {
		defer cancel()
		failed = domain.Run(ctx)
	})
	log.Info("server runs", "socket", a.serverSocket(), "version", api.Version)
	err = acceptAll(ctx, listener, handler)
	cancel()
	tasks.Wait()
	if failed != nil && !errors.Is(failed, context.Canceled) {
		return failed
	}
	return err
}

// shutdownGrace lets the answer to a shutdown reach its caller.
const shutdownGrace = 100 * time.Millisecond

// acceptAll serves every connection until the listener is closed by ctx's end.
func acceptAll(ctx context.Context, listener net.Listener, handler http.Handler) error {
	var connections conc.WaitGroup
	defer connections.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		connections.Go(func() { wire.Serve(ctx, conn, handler) })
	}
}
