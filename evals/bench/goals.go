//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/sourcegraph/conc/pool"

	vendettav1 "github.com/vendetta-dev/vendetta/coordination/api/vendetta/v1"
)

// Names of what is recorded.
const (
	mMCP       = "mcp"        // whole road, node near
	mServer    = "server"     // Go client, server, node agent
	mAgent     = "agent"      // node agent over SSH, no server
	mFork      = "fork"       // fork and exec alone
	mDockerAPI = "docker api" // Docker's exec API on the node
	mSSH       = "ssh"        // ssh with ControlMaster, docker exec
	mDockerSSH = "docker -H ssh"
	mCPU       = "server cpu"
	mBusyCPU   = "server cpu, many in flight"
	mCreate    = "create"
	mAPICreate = "docker api create"

	rMCP       = "mcp rate"
	rServer    = "server rate"
	rDockerAPI = "docker api rate"

	nConnections = "new connections"
	nStreams     = "new streams"
)

// roundTrips of goal 2; 0 is what the others are compared with.
var roundTrips = []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond}

func at(name string, rtt time.Duration) string { return name + " at " + rtt.String() }

// How often a thing is done in one round. The slow ones are rarer.
const (
	often   = 30
	cpuRuns = 150
	seldom  = 4

	inParallel     = 32
	parallelOurs   = 1024
	parallelDocker = 2 * inParallel
)

// step is one thing that a round measures.
type step struct {
	name  string
	times int
	do    func(context.Context) error
}

// timed does each step so many times and records how long each took.
func (r *record) timed(ctx context.Context, steps ...step) error {
	for _, s := range steps {
		for range s.times {
			began := time.Now()
			if err := s.do(ctx); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			r.add(s.name, time.Since(began))
		}
	}
	return nil
}

// warmUp does everything once, so that every connection and cache is there.
func warmUp(ctx context.Context, b *bed) error {
	throwaway := newRecord()
	if err := throwaway.timed(ctx, b.execSteps()...); err != nil {
		return err
	}
	return b.farSteps(ctx, throwaway, 0)
}

// measure is one round over all goals.
func measure(ctx context.Context, b *bed, r *record) error {
	if err := r.timed(ctx, b.execSteps()...); err != nil {
		return err
	}
	for _, rtt := range roundTrips {
		if err := b.farSteps(ctx, r, rtt); err != nil {
			return err
		}
	}
	for _, part := range []func(context.Context, *record) error{b.measureCPU, b.measureRates, b.measureCreate, b.measureKinds, b.measureSpares} {
		if err := part(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// execSteps are goals 1 and 3: one command at a time, on the near node.
func (b *bed) execSteps() []step {
	return []step{
		{mMCP, often, func(ctx context.Context) error { return b.roads.whole(ctx, near) }},
		{mDockerAPI, often / 2, func(ctx context.Context) error { return b.peers.api(ctx, b.peers.container, "true") }},
		{mServer, often, func(ctx context.Context) error { return b.roads.server(ctx, near, "true") }},
		{mSSH, seldom, func(ctx context.Context) error { return b.peers.ssh(ctx, near) }},
		{mAgent, often, func(ctx context.Context) error { return b.roads.agent(ctx, "true") }},
		{mDockerSSH, seldom, func(ctx context.Context) error { return b.peers.dockerSSH(ctx, near) }},
		{mFork, often, fork},
	}
}

// farSteps are goal 2: the whole road and the peers with a round trip between.
// The connections stay the same, only their delay changes.
func (b *bed) farSteps(ctx context.Context, r *record, rtt time.Duration) error {
	b.ours.setRoundTrip(rtt)
	b.theirs.setRoundTrip(rtt)
	defer b.ours.setRoundTrip(0)
	defer b.theirs.setRoundTrip(0)
	connections, streams := b.ours.connections(), b.streams()
	err := r.timed(ctx, step{at(mMCP, rtt), often / 2, func(ctx context.Context) error { return b.roads.whole(ctx, far) }})
	if err != nil {
		return err
	}
	r.counts[nConnections] += b.ours.connections() - connections
	r.counts[nStreams] += b.streams() - streams
	return r.timed(ctx,
		step{at(mSSH, rtt), seldom / 2, func(ctx context.Context) error { return b.peers.ssh(ctx, far) }},
		step{at(mDockerSSH, rtt), seldom / 2, func(ctx context.Context) error { return b.peers.dockerSSH(ctx, far) }},
	)
}

// measureCPU is the server's processor time for many commands, one after the other.
func (b *bed) measureCPU(ctx context.Context, r *record) error {
	before, err := cpuTime(b.serverPID)
	if err != nil {
		return err
	}
	for range cpuRuns {
		if err := b.roads.server(ctx, near, "true"); err != nil {
			return err
		}
	}
	after, err := cpuTime(b.serverPID)
	r.add(mCPU, perUnit(after-before, cpuRuns))
	return err
}

// measureRates is goal 4: commands per second with many in flight.
func (b *bed) measureRates(ctx context.Context, r *record) error {
	for _, m := range []struct {
		name  string
		total int
		do    func(context.Context) error
	}{
		{rServer, parallelOurs, func(ctx context.Context) error { return b.roads.server(ctx, near, "true") }},
		{rDockerAPI, parallelDocker, func(ctx context.Context) error { return b.peers.api(ctx, b.peers.container, "true") }},
		{rMCP, parallelOurs, func(ctx context.Context) error { return b.roads.whole(ctx, near) }},
	} {
		before, err := cpuTime(b.serverPID)
		if err != nil {
			return err
		}
		began := time.Now()
		p := pool.New().WithMaxGoroutines(inParallel).WithContext(ctx).WithFirstError().WithCancelOnError()
		for range m.total {
			p.Go(m.do)
		}
		if err := p.Wait(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		r.addRate(m.name, float64(m.total)/time.Since(began).Seconds())
		after, err := cpuTime(b.serverPID)
		if err != nil {
			return err
		}
		if m.name == rServer {
			r.add(mBusyCPU, perUnit(after-before, m.total))
		}
	}
	return nil
}

// measureCreate is goal 5. What was created is removed outside of the time.
func (b *bed) measureCreate(ctx context.Context, r *record) error {
	for range 2 {
		began := time.Now()
		err := b.createWorkspace(ctx, "fresh", &vendettav1.WorkspaceSpec{Provider: "docker", Image: b.image})
		if err == nil {
			err = b.roads.server(ctx, "fresh", "echo", "hello")
		}
		r.add(mCreate, time.Since(began))
		if rerr := b.removeWorkspace(ctx, "fresh"); err == nil {
			err = rerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", mCreate, err)
		}
		began = time.Now()
		id, err := b.peers.create(ctx)
		if err == nil {
			err = b.peers.api(ctx, id, "echo", "hello")
		}
		r.add(mAPICreate, time.Since(began))
		if id != "" {
			if rerr := b.peers.remove(ctx, id); err == nil {
				err = rerr
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", mAPICreate, err)
		}
	}
	return nil
}

func (b *bed) createWorkspace(ctx context.Context, name string, spec *vendettav1.WorkspaceSpec) error {
	change, err := b.client.Workspaces.CreateWorkspace(ctx, &vendettav1.CreateWorkspaceRequest{
		Name: name, Node: near, Spec: spec, IdempotencyKey: processID(),
	})
	if err != nil {
		return err
	}
	_, err = b.client.Wait(ctx, change.GetOperation())
	return err
}

func (b *bed) removeWorkspace(ctx context.Context, name string) error {
	change, err := b.client.Workspaces.RemoveWorkspace(ctx, &vendettav1.RemoveWorkspaceRequest{
		Name: name, Force: true, IdempotencyKey: processID(),
	})
	if err != nil {
		return err
	}
	_, err = b.client.Wait(ctx, change.GetOperation())
	return err
}
