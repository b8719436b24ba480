//go:build linux

package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
)

// Options of a guest. StateDir and ProjectDir are required and absolute.
type Options struct {
	// StateDir keeps processes' records and output, and what is known of the
	// project. It is made when missing, with access for nobody else.
	StateDir string
	// ProjectDir is where the project lies and where relative paths begin.
	ProjectDir string
	// DefaultUser runs commands and owns new files: NAME, UID, NAME:GROUP or
	// UID:GID. Empty means the user that the guest runs as.
	DefaultUser string
	// Env is the instance's environment as NAME=VALUE, which commands get.
	Env []string
	// ReapOrphans reaps children that were not started here: for the first
	// process of an instance.
	ReapOrphans bool
	// GiveProject makes a project folder that is empty and root's the default
	// user's own, where no provider could do it from outside.
	GiveProject bool
	// Etc is the folder of passwd and group; empty means /etc.
	Etc string
	// KeepEnded is the number of ended processes kept with their output, 200
	// unless set.
	KeepEnded int
	// MostRunning bounds the processes that run at a time, 256 unless set.
	MostRunning int
	// Logger is required.
	Logger *slog.Logger
}

// Guest serves the guest's API. It must be closed.
type Guest struct {
	opts      Options
	log       *slog.Logger
	accounts  accounts
	startedAt time.Time
	mux       *http.ServeMux
	processes *processes
	reaper    *reaper

	// project serialises imports of the project.
	project sync.Mutex

	// ctx ends all work; hold, before it, the waiting of writers for readers.
	ctx, hold       context.Context //nolint:containedctx // the guest's life, not a call's
	cancel, release context.CancelFunc
	work            conc.WaitGroup
}

// New makes a guest on what an earlier one left in StateDir: its running
// processes are lost, their output is kept. ctx carries values only; Close ends the guest.
func New(ctx context.Context, opts Options) (*Guest, error) {
	if !filepath.IsAbs(opts.StateDir) || !filepath.IsAbs(opts.ProjectDir) {
		return nil, api.Errorf(api.InvalidArgument, "guest: state %q and project %q must be absolute paths", opts.StateDir, opts.ProjectDir)
	}
	if opts.Etc == "" {
		opts.Etc = "/etc"
	}
	if opts.KeepEnded == 0 {
		opts.KeepEnded = 200
	}
	if opts.MostRunning == 0 {
		opts.MostRunning = 256
	}
	if opts.DefaultUser == "" {
		opts.DefaultUser = strconv.Itoa(os.Geteuid()) + ":" + strconv.Itoa(os.Getegid())
		if os.Geteuid() == 0 {
			opts.DefaultUser = "0"
		}
	}
	opts.Env = slices.Clone(opts.Env)
	if opts.GiveProject {
		if err := giveProject(opts.ProjectDir, opts.DefaultUser, accounts{etc: opts.Etc}); err != nil {
			return nil, fmt.Errorf("guest: %w", err)
		}
	}
	processes, err := loadProcesses(filepath.Join(opts.StateDir, "processes"), opts.KeepEnded, opts.MostRunning, opts.Logger)
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	g := &Guest{
		opts: opts, log: opts.Logger, accounts: accounts{etc: opts.Etc}, startedAt: time.Now(),
		mux: http.NewServeMux(), processes: processes,
	}
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	g.hold, g.release = context.WithCancel(g.ctx)
	g.reaper = newReaper(g.ctx, opts.ReapOrphans) //nolint:contextcheck // the reaper lives as long as the guest, not as the call
	options := []connect.HandlerOption{
		connect.WithInterceptors(edge{}),
		connect.WithReadMaxBytes(requestMost),
		// Output and files go through as they are: every hop is fast or already compressed.
		connect.WithCompression("gzip", nil, nil),
	}
	g.mux.Handle(guestv1connect.NewGuestServiceHandler(guestService{g}, options...))
	g.mux.Handle(guestv1connect.NewProcessServiceHandler(processService{g}, options...))
	g.mux.Handle(guestv1connect.NewFileServiceHandler(fileService{g}, options...))
	g.mux.Handle(guestv1connect.NewProjectServiceHandler(projectService{g}, options...))
	return g, nil
}

// requestMost bounds one message from a caller.
const requestMost = 8 << 20

// ServeHTTP serves the guest's API.
func (g *Guest) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

// Close ends the guest's processes: they are asked to end, killed after grace,
// and their ends recorded. A signal that ends one now is the instance's end and not
// the command's own, so such a process reads lost. It returns when all work is done.
func (g *Guest) Close(grace time.Duration) {
	running := g.processes.shut()
	for _, p := range running {
		p.lose()
		g.hangUp(p)
	}
	if !waitAll(running, grace) {
		for _, p := range running {
			_ = g.reaper.signal(p.group(), sigKill, p.alive)
		}
		waitAll(running, outputGrace)
	}
	g.release()
	waitAll(running, outputGrace+time.Second)
	g.cancel()
	g.work.Wait()
	g.reaper.close()
}

// hangUp asks a process to end as a terminal or an init system does.
func (g *Guest) hangUp(p *process) {
	if p.snapshot().GetTty() {
		_ = g.reaper.signal(p.group(), sigHup, p.alive)
	}
	if err := g.reaper.signal(p.group(), sigTerm, p.alive); err != nil && !errors.Is(err, os.ErrProcessDone) {
		g.log.Warn("end a process", "process", p.id, "error", err)
	}
	_ = g.reaper.signal(p.group(), sigCont, p.alive)
}

// waitAll waits until all have ended, at most for limit.
func waitAll(running []*process, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, p := range running {
		select {
		case <-p.done:
		case <-timer.C:
			return false
		}
	}
	return true
}

type guestService struct{ g *Guest }

func (s guestService) Hello(_ context.Context, req *guestv1.HelloRequest) (*guestv1.HelloResponse, error) {
	protocol, err := api.Negotiate(req.GetProtocolMin(), req.GetProtocolMax(),
		"make the workspace anew with `vendetta workspace down` and `up`, or upgrade the node agent")
	if err != nil {
		return nil, err
	}
	return &guestv1.HelloResponse{
		Protocol: protocol, Version: api.Version,
		StartedAt: timestamppb.New(s.g.startedAt), DefaultUser: s.g.opts.DefaultUser,
	}, nil
}
