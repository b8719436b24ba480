package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// roleVariable makes this test's program do a part of one in another process.
const roleVariable = "VENDETTA_TEST_IMAGE_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// play is what another process does with a store.
func play(role string, args []string) error {
	ctx := context.Background()
	s := New(Options{Dir: args[0]})
	switch role {
	case "get": // REF HOLDER
		image, err := s.Get(ctx, args[1], "", args[2])
		fmt.Println(image.Digest, image.Flat)
		return err
	case "stuck": // makes something, and is killed
		if err := s.prepare(); err != nil {
			return err
		}
		dir, _, err := s.scratch(ctx)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "half"), []byte("x"), 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(s.path(tmpDir, "json.half"), []byte("{"), 0o600); err != nil {
			return err
		}
		if _, err := lockName(ctx, s.path(locksDir, args[1])); err != nil {
			return err
		}
		fmt.Println(dir)
		_, err = io.ReadAll(os.Stdin)
		return err
	}
	return fmt.Errorf("no such role: %s", role)
}

func process(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, args...)
	c.Env = append(os.Environ(), roleVariable+"="+role)
	c.Stderr = os.Stderr
	return c
}

func simple(t *testing.T) string {
	t.Helper()
	return imageOf(t, nil, layerOf(t, file("f", "content"))).layout(t)
}

func TestHolders(t *testing.T) {
	s := quick(t)
	image, err := s.Get(t.Context(), simple(t), "", "")
	if err != nil {
		t.Fatal(err)
	}
	used := func(want int) {
		t.Helper()
		images, err := s.List(t.Context())
		if err != nil || len(images) != 1 || images[0].Used != want {
			t.Errorf("list: %+v, %v; want it used by %d", images, err, want)
		}
	}
	used(0)
	for _, holder := range []string{"a", "a", "b/../c", "..", "snapshot x of y", strings.Repeat("z", 200)} {
		if err := s.Hold(image.Digest, holder); err != nil {
			t.Errorf("hold by %q: %v", holder, err)
		}
	}
	used(5)
	if err := s.Release("b/../c"); err != nil {
		t.Error(err)
	}
	used(4)
	// Another process knows them.
	if gone, err := New(s.options).Prune(t.Context()); err != nil || len(gone) != 0 {
		t.Errorf("prune: %+v, %v", gone, err)
	}
	for _, holder := range []string{"a", "..", "snapshot x of y", strings.Repeat("z", 200), "nobody"} {
		for range 2 {
			if err := s.Release(holder); err != nil {
				t.Errorf("release %q: %v", holder, err)
			}
		}
	}
	used(0)
	for _, holder := range []string{"", strings.Repeat("z", 300)} {
		wantError(t, s.Hold(image.Digest, holder), nil, "holder")
		if _, err := s.Get(t.Context(), image.Ref, "", strings.Repeat("z", 300)); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("get: %v", err)
		}
	}
	if err := s.Release(""); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("release of nobody: %v", err)
	}
	if err := s.Hold(sum(nil), "a"); !isAbsent(err) {
		t.Errorf("hold of what is not there: %v", err)
	}
	gone, err := s.Prune(t.Context())
	if err != nil || len(gone) != 1 || gone[0].Digest != image.Digest || gone[0].Ref != image.Ref {
		t.Errorf("prune: %+v, %v", gone, err)
	}
	wantNothing(t, s)
	if left := names(t, s.path(holdersDir)); len(left) > 0 {
		t.Errorf("holders left: %q", left)
	}
	_, err = s.Held(image.Digest)
	wantError(t, err, providers.ErrImage, "not on this node")
	if s.Name() != "node" {
		t.Error(s.Name())
	}
	// A store that was never used has nothing and lets go of all.
	fresh := quick(t)
	if err := fresh.Release("a"); err != nil {
		t.Error(err)
	}
	if images, err := fresh.List(t.Context()); err != nil || len(images) != 0 {
		t.Errorf("%+v, %v", images, err)
	}
	if exists(fresh.options.Dir) {
		t.Error("looking made it")
	}
}

func TestDerived(t *testing.T) {
	s := quick(t)
	ref := simple(t)
	image, err := s.Get(t.Context(), ref, "", "a")
	if err != nil {
		t.Fatal(err)
	}
	var made atomic.Int32
	make := func(_ context.Context, path string) error {
		made.Add(1)
		return os.WriteFile(path, []byte(strings.Repeat("x", 100_000)), 0o600)
	}
	var wait sync.WaitGroup
	other := New(s.options)
	for i := range 6 {
		wait.Go(func() {
			store := s
			if i%2 == 0 {
				store = other
			}
			path, err := store.Derived(t.Context(), image.Digest, "disk.ext4", make)
			if err != nil || len(readFile(t, path)) != 100_000 {
				t.Errorf("%s, %v", path, err)
			}
		})
	}
	wait.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	if images, err := s.List(t.Context()); err != nil || images[0].Bytes < image.Bytes+100_000 {
		t.Errorf("%+v, %v: the derived file is not counted", images, err)
	}
	// A failure leaves nothing, and a repeat works.
	_, err = s.Derived(t.Context(), image.Digest, "other", func(_ context.Context, path string) error {
		return errors.Join(os.WriteFile(path, []byte("half"), 0o600), &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC})
	})
	wantError(t, err, providers.ErrExhausted, "full", "image prune")
	if _, err := s.Derived(t.Context(), image.Digest, "other", make); err != nil {
		t.Error(err)
	}
	_, err = s.Derived(t.Context(), image.Digest, "none", func(context.Context, string) error { return nil })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made nothing: %v", err)
	}
	_, err = s.Derived(t.Context(), image.Digest, "../evil", make)
	wantError(t, err, providers.ErrInvalid)
	_, err = s.Derived(t.Context(), sum(nil), "x", make)
	wantError(t, err, providers.ErrImage, "not on this node")
	// The image goes while a file is made from it.
	if err := s.Release("a"); err != nil {
		t.Fatal(err)
	}
	_, err = s.Derived(t.Context(), image.Digest, "late", func(ctx context.Context, path string) error {
		if gone, err := s.Prune(ctx); err != nil || len(gone) != 1 {
			t.Errorf("prune: %+v, %v", gone, err)
		}
		return make(ctx, path)
	})
	wantError(t, err, providers.ErrImage, "not on this node")
	wantNothing(t, s)
	// It is the image's whose name it has: a disk image may have one too.
	path := filepath.Join(t.TempDir(), "d.img")
	write(t, path, rawDisk("x"))
	disk, err := s.GetDisk(t.Context(), path, "", "", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Derived(t.Context(), disk.Digest, "converted", make); err != nil {
		t.Error(err)
	}
}

// TestTwoProcesses fetch one image once, and both hold it.
func TestTwoProcesses(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	s := quick(t)
	first, second := process(t, "get", s.options.Dir, ref, "one"), process(t, "get", s.options.Dir, ref, "two")
	if err := errors.Join(first.Start(), second.Start()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Wait(), second.Wait()); err != nil {
		t.Fatal(err)
	}
	if n := m.count(http.MethodGet, image.manifest.Layers[0].Digest.String()); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	if images, err := s.List(t.Context()); err != nil || len(images) != 1 || images[0].Used != 2 {
		t.Errorf("%+v, %v", images, err)
	}
}

// TestDeadProcess: what a killed process left in the making goes, and its locks
// hold nobody up; what a living one makes stays.
func TestDeadProcess(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	ref := image.layout(t)
	s := quick(t)
	r, err := parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	start := func(name string) (*exec.Cmd, string) {
		c := process(t, "stuck", s.options.Dir, name)
		hold, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = hold.Close() })
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return c, strings.TrimSpace(line)
	}
	dead, deadDir := start(r.key(s.options.Platform))
	alive, aliveDir := start("another")
	defer func() {
		_ = alive.Process.Kill()
		_ = alive.Wait()
	}()
	// Its lock holds us up while it lives.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, ref, "", "me"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("past another's lock: %v", err)
	}
	if err := dead.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = dead.Wait() // it was killed
	if _, err := s.Get(t.Context(), ref, "", "me"); err != nil {
		t.Fatal(err)
	}
	if exists(deadDir) || exists(s.path(tmpDir, "json.half")) {
		t.Error("what a dead process left is there")
	}
	if !exists(filepath.Join(aliveDir, "half")) {
		t.Error("what a living process makes was removed")
	}
	if _, err := s.Prune(t.Context()); err != nil {
		t.Error(err)
	}
	if !exists(filepath.Join(aliveDir, "half")) {
		t.Error("prune removed what a living process makes")
	}
}

// TestPruneWhileFetching: what is being fetched is not pruned, nor in the way.
func TestPruneWhileFetching(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	s := quick(t)
	once := sync.Once{}
	m.behave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, image.manifest.Layers[0].Digest.String()) {
			once.Do(func() {
				if gone, err := New(s.options).Prune(t.Context()); err != nil || len(gone) != 0 {
					t.Errorf("prune: %+v, %v", gone, err)
				}
			})
		}
		return false
	})
	if _, err := s.Get(t.Context(), ref, "", "me"); err != nil {
		t.Error(err)
	}
}

// TestSpoiltStore: what a crash of the machine may leave of small files.
func TestSpoiltStore(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", "content")))
	m := newMoody(t)
	ref := m.push(t, image, "some/image", "1")
	s := quick(t)
	got, err := s.Get(t.Context(), ref, "", "me")
	if err != nil {
		t.Fatal(err)
	}
	r, err := parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.path(refsDir, r.key(s.options.Platform)), nil)
	if again, err := s.Get(t.Context(), ref, "", "me"); err != nil || again.Digest != got.Digest {
		t.Errorf("%s, %v", again.Digest, err)
	}
	write(t, s.path(refsDir, "spoilt"), []byte("{"))
	if gone, err := s.Prune(t.Context()); err != nil || len(gone) != 0 {
		t.Errorf("%+v, %v", gone, err)
	}
	if left := names(t, s.path(refsDir)); len(left) != 1 {
		t.Errorf("references left: %q", left)
	}
	// A record that cannot be read is trouble that is told, not an absent image.
	write(t, filepath.Join(filepath.Dir(got.Root), recordFile), []byte("{"))
	if _, err := s.Held(got.Digest); err == nil || isAbsent(err) {
		t.Errorf("held: %v", err)
	}
	if _, err := s.List(t.Context()); err == nil {
		t.Error("listed")
	}
	if _, err := s.Prune(t.Context()); err == nil {
		t.Error("pruned")
	}
}

// TestFullDisk: a full disk leaves nothing behind and says so.
func TestFullDisk(t *testing.T) {
	dir := mountSmall(t)
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(i>>8) | 1
	}
	image := imageOf(t, func(raw []byte) []byte { return gzipped(t, raw) }, layerOf(t, file("f", string(noise))))
	m := newMoody(t)
	disk := filepath.Join(t.TempDir(), "d.img")
	write(t, disk, noise)
	packed := imageOf(t, nil, layerOf(t, file("f", string(noise))))
	for name, try := range map[string]func(*Store) error{
		"unpacking": func(s *Store) error {
			_, err := s.Get(t.Context(), image.layout(t), "", "me")
			return err
		},
		"downloading": func(s *Store) error {
			_, err := s.Get(t.Context(), m.push(t, packed, "some/image", "1"), "", "me")
			return err
		},
		"a disk image": func(s *Store) error {
			_, err := s.GetDisk(t.Context(), disk, "", "", "me")
			return err
		},
		"importing": func(s *Store) error {
			f, err := os.Open(archiveOf(t, packed.savedOf(t)))
			if err != nil {
				return err
			}
			_, err = s.Import(t.Context(), "x:1", f)
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := quick(t)
			s.options.Dir = filepath.Join(dir, "store")
			wantError(t, try(s), providers.ErrExhausted, "the disk of the node is full", "image prune")
			wantNothing(t, s)
		})
	}
}

// mountSmall mounts a file system of a few megabytes.
func mountSmall(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("vendetta-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestReadOnlyStore: a store that cannot be written to fails each change, says so,
// and still shows what it has.
func TestReadOnlyStore(t *testing.T) {
	dir := mountSmall(t)
	s := quick(t)
	s.options.Dir = filepath.Join(dir, "store")
	ref, other := simple(t), imageOf(t, nil, layerOf(t, file("g", "x"))).layout(t)
	image, err := s.Get(t.Context(), ref, "", "me")
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "d.img")
	write(t, disk, rawDisk("x"))
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	archive := imageOf(t, nil).savedOf(t, "x:1")
	for name, do := range map[string]func() error{
		"get":      func() error { _, err := s.Get(t.Context(), other, "", "you"); return err },
		"get disk": func() error { _, err := s.GetDisk(t.Context(), disk, "", "", "you"); return err },
		"pull":     func() error { _, err := s.Pull(t.Context(), other, nil); return err },
		"import":   func() error { _, err := s.Import(t.Context(), "", bytes.NewReader(archive)); return err },
		"prune":    func() error { _, err := s.Prune(t.Context()); return err },
		"hold":     func() error { return s.Hold(image.Digest, "you") },
		"release":  func() error { return s.Release("me") },
		"derive": func() error {
			_, err := s.Derived(t.Context(), image.Digest, "x", func(context.Context, string) error { return nil })
			return err
		},
		"settle":     func() error { return s.settle(dir, filepath.Dir(image.Root)) },
		"set":        func() error { return s.setMeaning(t.Context(), reference{}, meaning{}) },
		"write":      func() error { return writeJSON(s.path("x"), s.path(tmpDir), 1) },
		"empty":      func() error { return os.Remove(image.Root) },
		"let go":     func() error { return s.letGo(image.Digest, "me") },
		"make place": func() error { return New(Options{Dir: filepath.Join(dir, "new")}).prepare() },
	} {
		if err := do(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if images, err := s.List(t.Context()); err != nil || len(images) != 1 || images[0].Used != 1 {
		t.Errorf("%+v, %v", images, err)
	}
	if held, err := s.Held(image.Digest); err != nil || held.Root != image.Root {
		t.Errorf("%+v, %v", held, err)
	}
	// Nor can an image be unpacked there.
	tr, err := openTree(image.Root, false, small)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.close() }()
	for name, layer := range map[string][]byte{
		"file": layerOf(t, file("g", "x")), "again": layerOf(t, file("f", "x")), "folder": layerOf(t, folder("d/")), "parents": layerOf(t, file("d/e", "x")),
		"link": layerOf(t, symlink("s", "f")), "hard link": layerOf(t, hardlink("h", "f")), "pipe": layerOf(t, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}),
		"root": layerOf(t, folder("./")), "whiteout": layerOf(t, file(".wh.f", "")), "opaque": layerOf(t, file(".wh..wh..opq", "")),
	} {
		err := tr.unpack(t.Context(), &budget{limits: small}, bytes.NewReader(layer), sum(layer), int64(len(layer)), sum(layer))
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoStore: a folder that cannot be made.
func TestNoStore(t *testing.T) {
	s := quick(t)
	write(t, s.options.Dir, nil)
	ref := simple(t)
	for name, do := range map[string]func() error{
		"get":     func() error { _, err := s.Get(t.Context(), ref, "", "you"); return err },
		"pull":    func() error { _, err := s.Pull(t.Context(), ref, nil); return err },
		"import":  func() error { _, err := s.Import(t.Context(), "x:1", strings.NewReader("")); return err },
		"prune":   func() error { _, err := s.Prune(t.Context()); return err },
		"list":    func() error { _, err := s.List(t.Context()); return err },
		"disk":    func() error { _, err := s.GetDisk(t.Context(), "/a.img", "", "", "you"); return err },
		"release": func() error { return s.Release("you") },
		"held":    func() error { _, err := s.Held(sum(nil)); return err },
	} {
		if err := do(); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProgress tells of large downloads in tenths.
func TestProgress(t *testing.T) {
	image := imageOf(t, nil, layerOf(t, file("f", strings.Repeat("x", 17<<20))))
	m := newMoody(t)
	var lines []string
	if _, err := quick(t).Pull(t.Context(), m.push(t, image, "some/image", "1"), func(line string) { lines = append(lines, line) }); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(lines, "\n"); !strings.Contains(all, "8 of 17 MB") || !strings.Contains(all, "17 of 17 MB") || len(lines) > 20 {
		t.Errorf("said %q", lines)
	}
}

// TestCancelledEverywhere: a context that ended ends every call.
func TestCancelledEverywhere(t *testing.T) {
	s := quick(t)
	ref := simple(t)
	image, err := s.Get(t.Context(), ref, "", "me")
	if err != nil {
		t.Fatal(err)
	}
	busy, err := lockStore(t.Context(), s.path(storeLock), true)
	if err != nil {
		t.Fatal(err)
	}
	defer busy()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, do := range map[string]func() error{
		"get":    func() error { _, err := s.Get(ctx, ref, "", "you"); return err },
		"import": func() error { _, err := s.Import(ctx, "x:1", strings.NewReader("")); return err },
		"prune":  func() error { _, err := s.Prune(ctx); return err },
		"set":    func() error { return s.setMeaning(ctx, reference{}, meaning{}) },
		"derive": func() error {
			_, err := s.Derived(ctx, image.Digest, "x", func(context.Context, string) error { return nil })
			return err
		},
	} {
		if err := do(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Waiting for a turn ends too.
	for range together {
		s.turns <- struct{}{}
	}
	disk := filepath.Join(t.TempDir(), "d.img")
	write(t, disk, rawDisk("x"))
	for name, do := range map[string]func() error{
		"get":  func() error { _, err := s.Get(ctx, imageOf(t, nil, layerOf(t)).layout(t), "", "you"); return err },
		"disk": func() error { _, err := s.GetDisk(ctx, disk, "", "", "you"); return err },
	} {
		if err := do(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOrdinaryUser: all of it without root.
func TestOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests run as an ordinary user")
	}
	const nobody = 65534
	// Where that user may enter: t.TempDir belongs to root.
	dir, err := os.MkdirTemp("", "vimg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	store := filepath.Join(dir, "store")
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(store, 0o700), os.Chown(store, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, readFile(t, self), 0o755); err != nil {
		t.Fatal(err)
	}
	c := process(t, "get", store, testbed.RegistryImage(t), "one")
	c.Path = program
	c.Env = append(c.Env, "HOME=/nonexistent")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	said, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	digest, flat, _ := strings.Cut(strings.TrimSpace(string(said)), " ")
	if flat != "true" {
		t.Errorf("said %q", said)
	}
	image, err := New(Options{Dir: store}).Held(digest)
	if err != nil || !image.Flat {
		t.Fatal(image, err)
	}
	err = filepath.WalkDir(image.Root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && owner(t, path) != nobody {
			t.Errorf("%s belongs to %d", path, owner(t, path))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
