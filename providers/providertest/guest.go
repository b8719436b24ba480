package providertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/coordination/api"
	guestv1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1"
	"github.com/vendetta-dev/vendetta/coordination/api/vendetta/guest/v1/guestv1connect"
	"github.com/vendetta-dev/vendetta/coordination/api/wire"
)

// guest is the far end of a link, held as a node agent holds it.
type guest struct {
	ctx       context.Context //nolint:containedctx // bounds one test
	conn      net.Conn
	http      *http.Client
	info      guestv1connect.GuestServiceClient
	processes guestv1connect.ProcessServiceClient
}

func (b *bench) connect(t *testing.T, workspace string) *guest {
	t.Helper()
	g, err := b.tryConnect(workspace)
	if err != nil {
		t.Fatalf("connect: %v%s", err, next(err))
	}
	t.Cleanup(g.close)
	hello, err := g.info.Hello(b.ctx, &guestv1.HelloRequest{ProtocolMin: api.ProtocolOldest, ProtocolMax: api.Protocol})
	if err != nil {
		t.Fatalf("hello: %v", err)
	}
	if hello.GetProtocol() != api.Protocol {
		t.Fatalf("guest speaks protocol %d", hello.GetProtocol())
	}
	return g
}

func (b *bench) tryConnect(workspace string) (*guest, error) {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	conn, err := b.p.Connect(ctx, workspace)
	if err != nil {
		return nil, err
	}
	if err := wire.OpenLink(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	only := make(chan net.Conn, 1)
	only <- conn
	client := wire.Client(func(context.Context) (net.Conn, error) {
		select {
		case conn := <-only:
			return conn, nil
		default:
			return nil, errors.New("the guest's link has ended")
		}
	})
	return &guest{
		ctx:       b.ctx,
		conn:      conn,
		http:      client,
		info:      guestv1connect.NewGuestServiceClient(client, wire.BaseURL),
		processes: guestv1connect.NewProcessServiceClient(client, wire.BaseURL),
	}, nil
}

func (g *guest) close() {
	g.http.CloseIdleConnections()
	_ = g.conn.Close() // the provider may have closed it
}

// events is a stream of a process.
type events interface {
	Receive() bool
	Msg() *guestv1.ProcessEvent
	Err() error
}

// result of a command.
type result struct {
	output string
	code   int32
}

// run runs a command to its end.
func (g *guest) run(t *testing.T, argv ...string) result {
	t.Helper()
	stream, err := g.processes.Start(g.ctx, &guestv1.StartRequest{ProcessId: random(t), Argv: argv})
	if err != nil {
		t.Fatalf("start %q: %v", argv, err)
	}
	defer func() { _ = stream.Close() }()
	return collect(t, stream)
}

// starts tells whether a command can be started just now and ends well.
func (g *guest) starts(t *testing.T, argv ...string) bool {
	t.Helper()
	stream, err := g.processes.Start(g.ctx, &guestv1.StartRequest{ProcessId: random(t), Argv: argv})
	if err != nil {
		return false
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if ended := stream.Msg().GetEnded(); ended != nil {
			return ended.GetExitCode() == 0
		}
	}
	return false
}

// script runs a shell's script and returns its output; its failure is the test's.
func (g *guest) script(t *testing.T, script string) string {
	t.Helper()
	r := g.run(t, "sh", "-c", script)
	if r.code != 0 {
		t.Fatalf("%s: status %d: %s", script, r.code, r.output)
	}
	return r.output
}

// begin starts a command and returns its id when it runs.
func (g *guest) begin(t *testing.T, argv ...string) string {
	t.Helper()
	id := random(t)
	stream, err := g.processes.Start(g.ctx, &guestv1.StartRequest{ProcessId: id, Argv: argv, Detach: true})
	if err != nil {
		t.Fatalf("start %q: %v", argv, err)
	}
	defer func() { _ = stream.Close() }()
	if !stream.Receive() || stream.Msg().GetStarted() == nil {
		t.Fatalf("start %q: %v, %v", argv, stream.Msg(), stream.Err())
	}
	return id
}

// attach follows a process from its first byte to its end.
func (g *guest) attach(t *testing.T, id string) result {
	t.Helper()
	stream, err := g.processes.Attach(g.ctx, &guestv1.AttachRequest{ProcessId: id, Follow: true})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	defer func() { _ = stream.Close() }()
	return collect(t, stream)
}

func collect(t *testing.T, stream events) result {
	t.Helper()
	r, err := gather(stream)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// gather is collect for a goroutine.
func gather(stream events) (result, error) {
	var r result
	for stream.Receive() {
		if output := stream.Msg().GetOutput(); output != nil {
			r.output += string(output.GetData())
		}
		if ended := stream.Msg().GetEnded(); ended != nil {
			r.code = ended.GetExitCode()
			return r, nil
		}
	}
	return r, fmt.Errorf("stream ended before the process: %w (output %q)", stream.Err(), r.output)
}

// follow is attach in the background; the function it returns waits for the end.
func (g *guest) follow(t *testing.T, id string) func() result {
	t.Helper()
	var r result
	var ended error
	var wait conc.WaitGroup
	wait.Go(func() {
		stream, err := g.processes.Attach(g.ctx, &guestv1.AttachRequest{ProcessId: id, Follow: true})
		if err != nil {
			ended = err
			return
		}
		r, ended = gather(stream)
		_ = stream.Close()
	})
	t.Cleanup(wait.Wait)
	return func() result {
		t.Helper()
		wait.Wait()
		if ended != nil {
			t.Errorf("follow a command: %v", ended)
		}
		return r
	}
}

// knows tells whether the guest has a record of a process.
func (g *guest) knows(t *testing.T, id string) bool {
	t.Helper()
	stream, err := g.processes.Attach(g.ctx, &guestv1.AttachRequest{ProcessId: id})
	if err == nil {
		for stream.Receive() {
			continue // only how it ends counts
		}
		err = stream.Err()
		_ = stream.Close()
	}
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		t.Fatalf("attach: %v", err)
	}
	return err == nil
}

// number is the number that a script prints.
func (g *guest) number(t *testing.T, script string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(g.script(t, script)))
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return n
}
