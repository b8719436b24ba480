//go:build linux

package main

import (
	"strings"
	"testing"
	"time"
)

func TestTableIsAligned(t *testing.T) {
	var b strings.Builder
	printTable(&b, []string{"A", "LONG", "C"}, [][]string{{"äöü", "", "x"}, {"1", "22", ""}})
	want := "A    LONG  C\näöü  -     x\n1    22    -\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00 ms", 1234 * time.Microsecond: "1.23 ms", 12345 * time.Microsecond: "12.3 ms", 1234 * time.Millisecond: "1234 ms",
	} {
		if got := milliseconds(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

func TestGoalsAreJudged(t *testing.T) {
	ms := time.Millisecond
	if r := atMost(row{}, 5*ms, 50*ms, 0.10); r.met != "yes" || r.ratio != "0.100x" || r.want != "<= 0.10x" {
		t.Errorf("%+v", r)
	}
	if r := atMost(row{}, 6*ms, 50*ms, 0.10); r.met != "NO" {
		t.Errorf("%+v", r)
	}
	if r := atMost(row{}, 6*ms, 50*ms, 0); r.met != "" || r.ratio != "0.120x" {
		t.Errorf("%+v", r)
	}
	if r := atMost(row{}, 6*ms, 0, 0.1); r.met != "" || r.ratio != "" {
		t.Errorf("nothing was measured beside it: %+v", r)
	}
	if r := within(row{}, 6*ms, 5*ms); r.met != "NO" || r.want != "<= 5.00 ms" {
		t.Errorf("%+v", r)
	}
}

// A record in which every goal is met, by name.
func goodRecord() *record {
	r := newRecord()
	us := time.Microsecond
	for name, d := range map[string]time.Duration{
		mMCP: 3000 * us, mServer: 2000 * us, mAgent: 1500 * us, mFork: 700 * us, mDockerAPI: 50000 * us,
		mSSH: 80000 * us, mDockerSSH: 110000 * us, mCPU: 400 * us, mCreate: 300000 * us, mAPICreate: 310000 * us,
		fromSpare(dockerKind): 12000 * us, fromSpare(lxc): 9000 * us, created(lxc): 30000 * us, peerOf(lxc): 25000 * us,
		created(native): 20000 * us, peerOf(native): 8000 * us, created(qemu): 3100000 * us, peerOf(qemu): 3000000 * us,
		forked(qemu): 900000 * us,
		at(mMCP, 0):  3000 * us, at(mMCP, 10*time.Millisecond): 14000 * us, at(mMCP, 50*time.Millisecond): 62000 * us,
		at(mSSH, 10*time.Millisecond): 100000 * us,
	} {
		r.add(name, d)
	}
	r.addRate(rServer, 900)
	r.addRate(rDockerAPI, 20)
	return r
}

func TestReport(t *testing.T) {
	var b strings.Builder
	report(&b, []string{"a machine"}, 3, goodRecord(), []ceiling{{"up", "what", time.Second, time.Minute}})
	for _, want := range []string{"a machine", "3 rounds", "0.060x", "<= 15.0 ms", "45.0x", "0 and 0", "1000 ms", "< 1m0s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "NO\n") {
		t.Errorf("a goal is missed:\n%s", b.String())
	}
	slow := goodRecord()
	slow.samples[at(mMCP, 50*time.Millisecond)] = sample{64 * time.Millisecond}
	slow.counts[nStreams] = 1
	b.Reset()
	report(&b, nil, 3, slow, nil)
	if got := strings.Count(b.String(), "NO\n"); got != 2 {
		t.Errorf("%d goals are missed, want 2:\n%s", got, b.String())
	}
}
