package fake_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/nodeagent/guest"
	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/fake"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

// realGuest runs the guest that instances run, in this process.
func realGuest(t *testing.T) fake.Guest {
	return func(ctx context.Context, home fake.Home) {
		g, err := guest.New(ctx, guest.Options{
			StateDir:   home.State,
			ProjectDir: home.Project,
			Env:        append(os.Environ(), mark(home)),
			Logger:     slog.New(slog.DiscardHandler),
		})
		if err != nil {
			// An instance may be destroyed while its guest starts.
			if ctx.Err() == nil {
				t.Errorf("guest: %v", err)
			}
			return
		}
		serving, stop := context.WithCancel(context.WithoutCancel(ctx))
		served := make(chan struct{})
		go func() {
			defer close(served)
			guest.ServeLink(serving, home.Dial, g, slog.New(slog.DiscardHandler))
		}()
		<-ctx.Done()
		g.Close(time.Second)
		stop()
		<-served
	}
}

// mark is in the environment of a guest's commands, by which freeze finds them.
func mark(home fake.Home) string { return "VENDETTA_FAKE_STATE=" + home.State }

// freeze halts a guest's commands, or lets them go on.
func freeze(home fake.Home, halted bool) {
	signal := unix.SIGCONT
	if halted {
		signal = unix.SIGSTOP
	}
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environments {
		environment, err := os.ReadFile(path)
		pid, numeric := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && numeric == nil && slices.Contains(strings.Split(string(environment), "\x00"), mark(home)) {
			_ = unix.Kill(pid, signal) // it may have ended
		}
	}
}

// harness joins the suite.
func harness(t *testing.T) providertest.Harness {
	t.Helper()
	dir := t.TempDir()
	machine := fake.NewMachine(dir, realGuest(t))
	t.Cleanup(machine.Close)
	machine.SetFreezer(freeze)
	machine.SetImages("base")
	return providertest.Harness{
		New: func(_ *testing.T, server string) providers.Provider {
			return fake.New(fake.Options{ServerID: server, Machine: machine})
		},
		Leftovers: func(t *testing.T, workspace string) []string {
			left := []string{}
			for _, pattern := range []string{workspace, ".snapshots/" + workspace, ".fork-" + workspace} {
				left = append(left, glob(t, filepath.Join(dir, pattern))...)
			}
			return left
		},
		Objects:      func(t *testing.T) []string { return glob(t, filepath.Join(dir, "*")) },
		Kill:         func(_ *testing.T, _ providers.Provider, workspace string) { machine.Kill(workspace) },
		Image:        "base",
		MissingImage: "missing",
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestContract(t *testing.T) { providertest.Run(t, harness(t)) }

func TestCyclesLeaveNothing(t *testing.T) { providertest.RunCycles(t, harness(t)) }

// idle is a guest that does nothing until it is told to end.
func idle(ctx context.Context, _ fake.Home) { <-ctx.Done() }

func setUp(t *testing.T, guest fake.Guest) (*fake.Machine, *fake.Provider) {
	t.Helper()
	machine := fake.NewMachine(t.TempDir(), guest)
	t.Cleanup(machine.Close)
	return machine, fake.New(fake.Options{ServerID: "s", Machine: machine, Name: "docker"})
}

func TestNameCanBeAnothers(t *testing.T) {
	if _, p := setUp(t, idle); p.Name() != "docker" {
		t.Error(p.Name())
	}
}

func TestFailuresAreUsedUp(t *testing.T) {
	machine, p := setUp(t, idle)
	spec := providers.Spec{Workspace: "w"}
	cause := errors.New("cause")
	ctx := t.Context()
	for _, op := range []fake.Operation{fake.Create, fake.Start, fake.Inspect, fake.List, fake.Connect, fake.Usage, fake.Stop, fake.Destroy} {
		machine.Fail(op, cause)
	}
	call := func() map[fake.Operation]error {
		errs := map[fake.Operation]error{}
		_, errs[fake.Create] = p.Create(ctx, spec)
		errs[fake.Start] = p.Start(ctx, "w")
		_, errs[fake.Inspect] = p.Inspect(ctx, "w")
		_, errs[fake.List] = p.List(ctx)
		_, errs[fake.Usage] = p.Usage(ctx, "w")
		errs[fake.Stop] = p.Stop(ctx, "w", time.Second)
		_, errs[fake.Connect] = p.Connect(ctx, "w")
		errs[fake.Destroy] = p.Destroy(ctx, "w", true)
		return errs
	}
	for op, err := range call() {
		if !errors.Is(err, cause) {
			t.Errorf("%s: %v", op, err)
		}
	}
	for op, err := range call() {
		if (err != nil) != (op == fake.Connect) { // stopped by then
			t.Errorf("%s again: %v", op, err)
		}
	}
	want := fake.Call{Operation: fake.Create, Workspace: "w"}
	if calls := machine.Calls(); len(calls) != 16 || calls[0] != want {
		t.Errorf("calls %v", calls)
	}
}

func TestFailureOfARepeatLeavesTheInstance(t *testing.T) {
	machine, p := setUp(t, idle)
	spec := providers.Spec{Workspace: "w"}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("cause")
	machine.Fail(fake.Create, cause)
	if _, err := p.Create(t.Context(), spec); !errors.Is(err, cause) {
		t.Error(err)
	}
	if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateStopped {
		t.Errorf("%+v, %v", i, err)
	}
	other := fake.New(fake.Options{ServerID: "other", Machine: machine})
	if _, err := other.Create(t.Context(), spec); err == nil {
		t.Error("made another server's workspace")
	}
}

func TestHalfMade(t *testing.T) {
	machine, p := setUp(t, idle)
	machine.FailHalfway(&providers.Error{Kind: providers.ErrExhausted, Message: "disk full"})
	if _, err := p.Create(t.Context(), providers.Spec{Workspace: "w"}); !errors.Is(err, providers.ErrExhausted) {
		t.Fatal(err)
	}
	all, err := p.List(t.Context())
	if err != nil || len(all) != 1 || all[0].State != providers.StateBroken || all[0].Message != "disk full" {
		t.Fatalf("%+v, %v", all, err)
	}
	if err := p.Start(t.Context(), "w"); err == nil {
		t.Error("started a broken instance")
	}
	if err := p.Destroy(t.Context(), "w", true); err != nil {
		t.Error(err)
	}
	if all, err := p.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machine, p := setUp(t, idle)
		release := machine.Block(fake.Create)
		made := make(chan error)
		go func() {
			_, err := p.Create(t.Context(), providers.Spec{Workspace: "w"})
			made <- err
		}()
		synctest.Wait()
		if n := machine.Blocked(fake.Create); n != 1 {
			t.Errorf("%d calls wait", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Create(ctx, providers.Spec{Workspace: "v"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		release()
		release()
		if err := <-made; err != nil {
			t.Error(err)
		}
		if n := machine.Blocked(fake.Create); n != 0 {
			t.Errorf("%d calls wait", n)
		}
	})
}

func TestStopGivesUpAfterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan struct{})
		_, p := setUp(t, func(context.Context, fake.Home) { <-finish })
		defer close(finish)
		if _, err := p.Create(t.Context(), providers.Spec{Workspace: "w"}); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Stop(ctx, "w", time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		began := time.Now()
		if err := p.Stop(t.Context(), "w", time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateStopped {
			t.Errorf("%+v, %v", i, err)
		}
	})
}

func TestGuestThatEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := setUp(t, func(ctx context.Context, home fake.Home) {
			if _, err := home.Dial(ctx); err != nil {
				t.Error(err)
			}
			<-time.After(time.Second)
		})
		if _, err := p.Create(t.Context(), providers.Spec{Workspace: "w"}); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		conn, err := p.Connect(t.Context(), "w")
		if err != nil {
			t.Fatal(err)
		}
		// The guest does not dial again, so the next one waits until it has ended.
		if _, err := p.Connect(t.Context(), "w"); err == nil {
			t.Error("connected twice to one dial")
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the stream is open")
		}
		if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateStopped || i.Message != "ended by itself" {
			t.Errorf("%+v, %v", i, err)
		}
	})
}

func TestConnectTakesTheNewestDialAndTheNewestCallWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		again := make(chan struct{})
		_, p := setUp(t, func(ctx context.Context, home fake.Home) {
			for _, word := range []string{"old", "new"} {
				conn, err := home.Dial(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				go func() { _, _ = conn.Write([]byte(word)) }()
			}
			<-again
			if _, err := home.Dial(ctx); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			if _, err := home.Dial(ctx); err == nil {
				t.Error("dialled after the end")
			}
			if _, err := home.Dial(context.WithoutCancel(ctx)); err == nil {
				t.Error("dialled after the end")
			}
		})
		if _, err := p.Create(t.Context(), providers.Spec{Workspace: "w"}); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		conn, err := p.Connect(t.Context(), "w")
		if err != nil {
			t.Fatal(err)
		}
		word := make([]byte, 3)
		if _, err := conn.Read(word); err != nil || string(word) != "new" {
			t.Errorf("%q, %v", word, err)
		}
		first := make(chan error)
		go func() {
			_, err := p.Connect(t.Context(), "w")
			first <- err
		}()
		synctest.Wait()
		second := make(chan error, 1)
		go func() {
			_, err := p.Connect(t.Context(), "w")
			second <- err
		}()
		if err := <-first; err == nil {
			t.Error("the earlier call was not replaced")
		}
		synctest.Wait()
		close(again)
		if err := <-second; err != nil {
			t.Errorf("the newest call: %v", err)
		}
		if err := p.Stop(t.Context(), "w", 0); err != nil {
			t.Error(err)
		}
	})
}

func TestReboot(t *testing.T) {
	machine, p := setUp(t, idle)
	for _, workspace := range []string{"v", "w"} {
		if _, err := p.Create(t.Context(), providers.Spec{Workspace: workspace}); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(t.Context(), workspace); err != nil {
			t.Fatal(err)
		}
	}
	machine.Reboot()
	machine.Kill("absent")
	all, err := p.List(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, i := range all {
		if i.State != providers.StateStopped {
			t.Errorf("%+v", i)
		}
	}
}

func TestStatus(t *testing.T) {
	machine, p := setUp(t, idle)
	want := providers.Status{Reason: "not running", Fix: "start it"}
	machine.SetStatus(want)
	if got := p.Probe(t.Context()); got.Reason != want.Reason || got.Fix != want.Fix || got.Usable {
		t.Errorf("%+v", got)
	}
}

func TestVolumeThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := fake.New(fake.Options{Machine: fake.NewMachine(file, idle)})
	if _, err := p.Create(t.Context(), providers.Spec{Workspace: "w"}); err == nil {
		t.Error("made a volume below a file")
	}
}
