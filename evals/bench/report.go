//go:build linux

package main

import (
	"fmt"
	"io"
	"time"
)

// Limits of the goals.
const (
	limitAPI       = 0.10
	limitAPIp99    = 0.15
	limitSSH       = 0.06
	limitTrips     = 1.2
	limitShare     = 1500 * time.Microsecond
	limitShareCPU  = 500 * time.Microsecond
	limitRate      = 30.0
	limitCreate    = 1.0
	limitSpare     = 0.05
	limitTogether  = 0.9
	nameAPI        = "Docker's exec API on the node"
	nameSSH        = "ssh (ControlMaster) docker exec"
	nameDockerSSH  = "docker -H ssh:// exec"
	wholeRoad      = "exec true, MCP to workspace"
	commandsPerSec = "%.0f /s"
	createsPerSec  = "%.1f /s"

	limitLXCBesideDocker = 0.15
)

// report prints the facts, the table and what its lines mean.
func report(w io.Writer, facts []string, rounds int, r *record, ceilings []ceiling) {
	print := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	print("")
	for _, fact := range facts {
		print("%s", fact)
	}
	print("%d rounds, everything in turn in one run\n", rounds)
	rows := [][]string{}
	for _, g := range goalRows(r) {
		rows = append(rows, g.cells())
	}
	printTable(w, header, rows)
	print("\nWhat a user may count on at most:\n")
	rows = nil
	for _, c := range ceilings {
		rows = append(rows, []string{c.name, c.what, milliseconds(c.measured), "< " + c.limit.String(), yes(c.measured < c.limit)})
	}
	printTable(w, []string{"CEILING", "WHAT", "MEASURED", "LIMIT", "MET"}, rows)
	print("%s", legend)
}

// goalRows makes the table of what was recorded.
func goalRows(r *record) []row {
	rows := execRows(r)
	rows = append(rows, farRows(r)...)
	rows = append(rows, shareRows(r)...)
	return append(rows, kindRows(r)...)
}

// peerNames say what a provider's create is held beside.
var peerNames = map[string]string{
	dockerKind: "Docker API create+start+exec",
	lxc:        "go-lxc in the same configuration",
	native:     "unshare of the same namespaces",
	qemu:       "the same machine started by hand",
}

// limits of goal 7 by provider, and what each costs beside Docker.
var createLimits = map[string]float64{lxc: 1.5, native: 3, qemu: 1.3}

func kindRows(r *record) []row {
	engine := r.samples[mAPICreate]
	var rows []row
	for _, kind := range []string{dockerKind, lxc, native, qemu} {
		spare := r.samples[fromSpare(kind)]
		if len(spare) == 0 {
			continue
		}
		what := kind + " workspace from a spare, create to first output"
		rows = append(rows, atMost(row{goal: "6", what: what, ours: both(spare), peer: peerNames[dockerKind], theirs: both(engine)},
			spare.p50(), engine.p50(), limitSpare))
	}
	for _, kind := range []string{lxc, native, qemu} {
		ours, theirs := r.samples[created(kind)], r.samples[peerOf(kind)]
		if len(ours) == 0 {
			continue
		}
		what := kind + " workspace, create to first output"
		rows = append(rows, atMost(row{goal: "7", what: what, ours: both(ours), peer: peerNames[kind], theirs: both(theirs)},
			ours.p50(), theirs.p50(), createLimits[kind]))
		limit := 0.0
		if kind == lxc {
			limit = limitLXCBesideDocker
		}
		rows = append(rows, atMost(row{goal: "7", what: what, ours: both(ours), peer: peerNames[dockerKind], theirs: both(engine)},
			ours.p50(), engine.p50(), limit))
	}
	if fork := r.samples[forked(qemu)]; len(fork) > 0 {
		rows = append(rows, row{goal: "7", what: "qemu, fork of a running machine to its first output", ours: both(fork)})
	}
	for _, kind := range []string{dockerKind, lxc, native, qemu} {
		ours, theirs := r.rate(together(kind)), r.rate(peersRate(kind))
		if ours <= 0 || theirs <= 0 {
			continue
		}
		rows = append(rows, row{
			goal: "8", what: fmt.Sprintf("%d %s workspaces at once, create to first output", atOnce, kind), ours: fmt.Sprintf(createsPerSec, ours),
			peer: peerNames[kind], theirs: fmt.Sprintf(createsPerSec, theirs),
			ratio: fmt.Sprintf("%.2fx", ours/theirs), want: fmt.Sprintf(">= %.1fx", limitTogether), met: yes(ours/theirs >= limitTogether),
		})
	}
	return rows
}

func execRows(r *record) []row {
	whole, engine := r.samples[mMCP], r.samples[mDockerAPI]
	line := func(what, peer string, theirs sample) row {
		return row{goal: "1", what: what, ours: both(whole), peer: peer, theirs: both(theirs)}
	}
	tail := line("the same, p99 beside p99", nameAPI, engine)
	return []row{
		atMost(line(wholeRoad, nameAPI, engine), whole.p50(), engine.p50(), limitAPI),
		atMost(tail, whole.p99(), engine.p99(), limitAPIp99),
		atMost(line(wholeRoad, nameSSH, r.samples[mSSH]), whole.p50(), r.samples[mSSH].p50(), limitSSH),
		atMost(line(wholeRoad, nameDockerSSH, r.samples[mDockerSSH]), whole.p50(), r.samples[mDockerSSH].p50(), 0),
		atMost(line(wholeRoad, "floor: guest over SSH, no server", r.samples[mAgent]), whole.p50(), r.samples[mAgent].p50(), 0),
		atMost(line(wholeRoad, "floor: fork and exec alone", r.samples[mFork]), whole.p50(), r.samples[mFork].p50(), 0),
	}
}

func farRows(r *record) []row {
	base := r.samples[at(mMCP, 0)]
	rows := []row{{goal: "2", what: wholeRoad + ", through the proxy at 0 ms", ours: both(base)}}
	for _, rtt := range roundTrips[1:] {
		ours := r.samples[at(mMCP, rtt)]
		what := fmt.Sprintf("the same at %s round trip", rtt)
		limit := base.p50() + time.Duration(limitTrips*float64(rtt))
		first := row{goal: "2", what: what, ours: both(ours), peer: nameSSH, theirs: both(r.samples[at(mSSH, rtt)])}
		first = atMost(first, ours.p50(), r.samples[at(mSSH, rtt)].p50(), 0)
		rows = append(rows, within(first, ours.p50(), limit))
		other := row{goal: "2", what: what, ours: both(ours), peer: nameDockerSSH, theirs: both(r.samples[at(mDockerSSH, rtt)])}
		rows = append(rows, atMost(other, ours.p50(), r.samples[at(mDockerSSH, rtt)].p50(), 0))
	}
	opened := r.counts[nConnections] + r.counts[nStreams]
	return append(rows, row{
		goal: "2", what: "connections and sessions opened meanwhile", want: "0", met: yes(opened == 0),
		ours: fmt.Sprintf("%d and %d", r.counts[nConnections], r.counts[nStreams]),
	})
}

func shareRows(r *record) []row {
	server, agent, cpu := r.samples[mServer], r.samples[mAgent], r.samples[mCPU]
	share := server.p50() - agent.p50()
	create, engine := r.samples[mCreate], r.samples[mAPICreate]
	return []row{
		{goal: "3", what: "exec true, by the server's API", ours: both(server), peer: "the node agent's, over SSH too", theirs: both(agent)},
		within(row{goal: "3", what: "the server's share: the difference", ours: milliseconds(share)}, share, limitShare),
		within(row{goal: "3", what: "processor time of the server for one exec", ours: milliseconds(cpu.p50())}, cpu.p50(), limitShareCPU),
		{goal: "3", what: fmt.Sprintf("the same, with %d in flight", inParallel), ours: milliseconds(r.samples[mBusyCPU].p50())},
		rateRow(r, fmt.Sprintf("%d commands in flight, by the server's API", inParallel), rServer, true),
		rateRow(r, fmt.Sprintf("%d commands in flight, by one MCP client", inParallel), rMCP, false),
		atMost(row{goal: "5", what: "Docker workspace, create to first output", ours: both(create), peer: "Docker API create+start+exec", theirs: both(engine)},
			create.p50(), engine.p50(), limitCreate),
	}
}

func rateRow(r *record, what, name string, counts bool) row {
	ours, theirs := r.rate(name), r.rate(rDockerAPI)
	row := row{goal: "4", what: what, ours: fmt.Sprintf(commandsPerSec, ours), peer: nameAPI, theirs: fmt.Sprintf(commandsPerSec, theirs)}
	if theirs <= 0 {
		return row
	}
	row.ratio = fmt.Sprintf("%.1fx", ours/theirs)
	if counts {
		row.want = fmt.Sprintf(">= %.0fx", limitRate)
		row.met = yes(ours/theirs >= limitRate)
	}
	return row
}

const legend = `
p50 is the middle of all measured times, p99 the time that 99 of 100 stay below.
RATIO is our p50 by the other's, so below 1 we are quicker; for goals 4 and 8 it
is a number per second, so above 1 we are. Rows without a goal are there to compare.

1  An MCP client asks "vendetta mcp" over stdio to run the program true in a Docker
   workspace on a node reached by SSH, its durable record included. Beside it: Docker's own
   API on the node with no network between, and what people do over SSH today. The
   floors: the same command asked of the node agent itself, and starting a program
   on this machine without anything around it.
2  The same with a longer way to the node, made by a proxy that holds bytes back. It
   should cost one round trip: the goal is the time at 0 ms + 1.2 round trips.
3  What the coordination server adds: the same command by the server's API and by the
   node agent's, both over SSH, and the processor time of the server.
4  How many commands a second end when 32 are under way at any time.
5  From the request for a new workspace until a first command has answered, beside a
   plain container of the same image by Docker's API.
6  The same where a spare was running, beside the same container.
7  The same on the other providers, each beside what it is made of, without vendetta
   and without a network between: go-lxc, unshare, QEMU with the same kernel, initramfs,
   disks and devices.
8  Eight at once: workspaces per second, beside what the provider can do without us.`
