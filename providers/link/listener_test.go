package link_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/link"
)

const patience = 10 * time.Second

func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

func listen(t *testing.T, d string, opts link.Options) *link.Listener {
	t.Helper()
	l, err := link.Listen(d, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func dial(t *testing.T, d string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(d, link.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func connect(t *testing.T, l *link.Listener) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := l.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// joined fails unless what is written at one end comes out at the other.
func joined(t *testing.T, agent, guest net.Conn) {
	t.Helper()
	if err := errors.Join(agent.SetDeadline(time.Now().Add(patience)), guest.SetDeadline(time.Now().Add(patience))); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := guest.Read(got); err != nil || !bytes.Equal(got, []byte("ping")) {
		t.Fatalf("read %q, %v", got, err)
	}
}

// ended fails unless the other end of conn has been closed.
func ended(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("stream is open: %v", err)
	}
}

func TestSocketNameIsTheContracts(t *testing.T) {
	if link.SocketName != providers.GuestSocket {
		t.Fatal(link.SocketName)
	}
}

func TestConnectGivesTheDialledStream(t *testing.T) {
	d := dir(t)
	l := listen(t, filepath.Join(d, "a", "link"), link.Options{})
	guest := dial(t, filepath.Join(d, "a", "link"))
	joined(t, connect(t, l), guest)
}

func TestConnectWaitsForTheDial(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	got := make(chan net.Conn)
	go func() { got <- connect(t, l) }()
	guest := dial(t, d)
	joined(t, <-got, guest)
}

func TestLaterConnectClosesTheEarlierStream(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	first := dial(t, d)
	connect(t, l)
	got := make(chan net.Conn)
	go func() { got <- connect(t, l) }()
	ended(t, first)
	second := dial(t, d)
	joined(t, <-got, second)
}

func TestNewestLivingDialWins(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	old := dial(t, d)
	fresh := dial(t, d)
	if err := dial(t, d).Close(); err != nil { // a guest that died while it waited
		t.Fatal(err)
	}
	joined(t, connect(t, l), fresh)
	ended(t, old)
}

func TestLaterConnectEndsAWaitingOne(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	failed := make(chan error, 2)
	go func() {
		_, err := l.Connect(t.Context())
		failed <- err
	}()
	// Whichever of the two came first, one gives way and the other gets the dial.
	got := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Connect(t.Context())
		if err != nil {
			failed <- err
			return
		}
		got <- conn
	}()
	if err := <-failed; !errors.Is(err, link.ErrReplaced) {
		t.Fatal(err)
	}
	guest := dial(t, d)
	select {
	case conn := <-got:
		joined(t, conn, guest)
	case err := <-failed: // the first one was the later
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := l.Connect(ctx)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	guest := dial(t, d)
	joined(t, connect(t, l), guest) // the listener is as good as before
}

func TestCloseEndsWaitingAndHandedOutStreams(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	guest := dial(t, d)
	connect(t, l)
	failed := make(chan error)
	go func() {
		_, err := l.Connect(t.Context())
		failed <- err
	}()
	ended(t, guest)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, link.ErrClosed) {
		t.Fatal(err)
	}
	if _, err := l.Connect(t.Context()); !errors.Is(err, link.ErrClosed) {
		t.Fatal(err)
	}
}

func TestNewListenerTakesTheName(t *testing.T) {
	d := dir(t)
	dead := listen(t, d, link.Options{})
	l := listen(t, d, link.Options{})
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	guest := dial(t, d)
	joined(t, connect(t, l), guest)
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		opts         link.Options
		folder, sock fs.FileMode
	}{
		{link.Options{}, 0o755, 0o600},
		{link.Options{DirMode: 0o711, SocketMode: 0o666}, 0o711, 0o666},
	} {
		d := filepath.Join(dir(t), "link")
		listen(t, d, c.opts)
		for path, want := range map[string]fs.FileMode{d: c.folder, filepath.Join(d, link.SocketName): c.sock} {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: mode %v, want %v (%v)", path, info.Mode().Perm(), want, err)
			}
		}
		entries, err := os.ReadDir(d)
		if err != nil || len(entries) != 1 {
			t.Errorf("folder holds %v, %v", entries, err)
		}
	}
}

func TestPeerIsAsked(t *testing.T) {
	d := dir(t)
	var logged bytes.Buffer
	refuse := true
	l := listen(t, d, link.Options{
		Logger: slog.New(slog.NewTextHandler(&logged, nil)),
		Peer: func(uid uint32) error {
			if int(uid) != os.Getuid() {
				t.Errorf("uid %d", uid)
			}
			if refuse {
				refuse = false
				return errors.New("not the guest")
			}
			return nil
		},
	})
	refused := dial(t, d)
	guest := dial(t, d)
	joined(t, connect(t, l), guest)
	ended(t, refused)
	if !strings.Contains(logged.String(), "not the guest") {
		t.Errorf("log: %s", logged.String())
	}
}

func TestManyRefusedDialsEndConnect(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{Peer: func(uint32) error { return errors.New("never") }})
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			conn, err := net.Dial("unix", filepath.Join(d, link.SocketName))
			if err == nil {
				_ = conn.Close()
			}
		}
	}()
	_, err := l.Connect(t.Context())
	close(stop)
	<-stopped
	if err == nil || !strings.Contains(err.Error(), "none of them was a guest's") {
		t.Fatal(err)
	}
}

func TestLongPath(t *testing.T) {
	d := filepath.Join(dir(t), strings.Repeat("long/", 40), "link")
	l := listen(t, d, link.Options{})
	// The guest sees a short path; here a symlink stands for its mount.
	short := filepath.Join(dir(t), "l")
	if err := os.Symlink(d, short); err != nil {
		t.Fatal(err)
	}
	guest := dial(t, short)
	joined(t, connect(t, l), guest)
}

func TestListenFailures(t *testing.T) {
	d := dir(t)
	file := filepath.Join(d, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Listen(filepath.Join(file, "link"), link.Options{}); err == nil {
		t.Error("listened below a file")
	}
	inTheWay := filepath.Join(d, "taken")
	if err := os.MkdirAll(filepath.Join(inTheWay, link.SocketName, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Listen(inTheWay, link.Options{}); err == nil {
		t.Error("replaced a folder")
	}
	blocked := filepath.Join(d, "blocked")
	if err := os.MkdirAll(filepath.Join(blocked, ".new.sock", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Listen(blocked, link.Options{}); err == nil {
		t.Error("listened over a folder")
	}
}

func TestConnectAfterItsContextsEnd(t *testing.T) {
	d := dir(t)
	l := listen(t, d, link.Options{})
	guest := dial(t, d)
	agent := connect(t, l)
	waiting := dial(t, d) // which could be had at once
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // whether it finds the listener free or its context ended first
		if _, err := l.Connect(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	joined(t, agent, guest)
	joined(t, connect(t, l), waiting)
}

func TestFolderThatCannotBeChanged(t *testing.T) {
	if _, err := link.Listen("/proc/self/fdinfo", link.Options{}); err == nil {
		t.Error("listened in /proc")
	}
}
