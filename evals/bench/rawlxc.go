//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers/host"
	"github.com/vendetta-dev/vendetta/providers/image"
)

// rawBridge is the peer's bridge; rawBase the first of its ids, in the range that
// no distribution gives to anything, far from what a fresh agent takes.
const (
	rawBridge  = "vbraw0"
	rawNetwork = "10.249.7"
	rawBase    = 1879048192 + 3000*host.IDsPerInstance
)

// rawLXC is LXC without vendetta: a program for each container that may run at a
// time, which stays, so that its start is in no time.
type rawLXC struct {
	programs []*rawProgram
}

type rawProgram struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
}

func newRawLXC(ctx context.Context, b *bed) (*rawLXC, error) {
	program := filepath.Join(b.home, "rawlxc")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "lxc", "-o", program, "github.com/vendetta-dev/vendetta/evals/bench/rawlxc")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build rawlxc: %w: %s", err, out)
	}
	store := image.New(image.Options{Dir: filepath.Join(b.nodes[near].state, "agent", "images")})
	base, err := store.Get(ctx, testbed.BaseImage, "", "bench")
	if err != nil {
		return nil, err
	}
	l := &rawLXC{}
	for _, args := range [][]string{
		{"link", "add", rawBridge, "type", "bridge"}, {"addr", "add", rawNetwork + ".1/24", "dev", rawBridge}, {"link", "set", rawBridge, "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return l, fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	for i := range atOnce {
		dir := filepath.Join(b.home, "raw", fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return l, err
		}
		cmd := exec.Command(program, "-dir", dir, "-lower", base.Root, "-name", fmt.Sprintf("raw%d", i), "-bridge", rawBridge,
			"-address", fmt.Sprintf("%s.%d/24", rawNetwork, i+10), "-base", fmt.Sprint(rawBase+i*host.IDsPerInstance))
		cmd.Stderr = os.Stderr
		// Where liblxc finds newuidmap it asks /etc/subuid, though root needs nobody's leave.
		cmd.Env = []string{"PATH="}
		in, err := cmd.StdinPipe()
		if err != nil {
			return l, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return l, err
		}
		if err := cmd.Start(); err != nil {
			return l, err
		}
		l.programs = append(l.programs, &rawProgram{cmd: cmd, in: in, answers: bufio.NewReader(out)})
	}
	return l, os.Chmod(b.home, 0o711)
}

func (p *rawProgram) ask(what string) error {
	if _, err := io.WriteString(p.in, what+"\n"); err != nil {
		return err
	}
	answer, err := p.answers.ReadString('\n')
	if err == nil && answer != "ok\n" {
		err = errors.New("rawlxc " + what + ": " + strings.TrimSpace(answer))
	}
	return err
}

// create makes the i-th container and runs a command in it.
func (l *rawLXC) create(i int) (remove func(context.Context) error, err error) {
	p := l.programs[i]
	return func(context.Context) error { return p.ask("remove") }, p.ask("create")
}

func (l *rawLXC) close(ctx context.Context) error {
	var errs []error
	for _, p := range l.programs {
		errs = append(errs, p.in.Close(), p.cmd.Wait())
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/rawlxc*")
	errs = append(errs, err)
	for _, group := range groups {
		// liblxc leaves some, and the last may still be ending.
		_ = os.Remove(filepath.Join(group, "lxc.pivot"))
		_ = os.Remove(group)
	}
	return errors.Join(append(errs, exec.CommandContext(ctx, "ip", "link", "del", rawBridge).Run())...)
}
