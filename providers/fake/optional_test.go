package fake_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vendetta-dev/vendetta/providers"
	"github.com/vendetta-dev/vendetta/providers/fake"
	"github.com/vendetta-dev/vendetta/providers/providertest"
)

func create(t *testing.T, p *fake.Provider, spec providers.Spec) providers.Instance {
	t.Helper()
	made, err := p.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// optional calls every optional method once and returns what each answered.
func optional(t *testing.T, p *fake.Provider) map[fake.Operation]error {
	t.Helper()
	ctx, errs := t.Context(), map[fake.Operation]error{}
	_, errs[fake.Snapshot] = p.Snapshot(ctx, "w", "one")
	_, errs[fake.Snapshots] = p.Snapshots(ctx, "w")
	errs[fake.Restore] = p.Restore(ctx, "w", "one")
	errs[fake.RemoveSnapshot] = p.RemoveSnapshot(ctx, "w", "one")
	_, errs[fake.Fork] = p.Fork(ctx, "w", providers.Spec{Workspace: "v"})
	errs[fake.Pause] = p.Pause(ctx, "w")
	errs[fake.Resume] = p.Resume(ctx, "w")
	_, errs[fake.Resize] = p.Resize(ctx, "w", providers.Resources{CPUs: 2})
	return errs
}

func TestCapabilitiesAreSwitchedOff(t *testing.T) {
	machine, p := setUp(t, idle)
	create(t, p, providers.Spec{Workspace: "w"})
	machine.SetCapabilities()
	for operation, err := range optional(t, p) {
		if !errors.Is(err, providers.ErrUnsupported) {
			t.Errorf("%s: %v", operation, err)
		}
	}
	limited := providers.Spec{Workspace: "v", Resources: providers.Resources{DiskBytes: 1}}
	if _, err := p.Create(t.Context(), limited); !errors.Is(err, providers.ErrUnsupported) {
		t.Error(err)
	}
	machine.SetCapabilities(providers.CapabilityLimitDisk, providers.CapabilityFork)
	create(t, p, limited)
	if got := p.Probe(t.Context()).Capabilities; !slices.Equal(got, []string{"fork", "limit-disk"}) {
		t.Errorf("announced %q", got)
	}
}

func TestOptionalFailuresAreUsedUp(t *testing.T) {
	machine, p := setUp(t, idle)
	create(t, p, providers.Spec{Workspace: "w"})
	if err := p.Start(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Snapshot(t.Context(), "w", "one"); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("cause")
	for operation := range optionalOperations {
		machine.Fail(operation, cause)
	}
	for operation, err := range optional(t, p) {
		if !errors.Is(err, cause) {
			t.Errorf("%s: %v", operation, err)
		}
	}
	for operation, err := range optional(t, p) {
		// The restore stopped it.
		if stopped := operation == fake.Pause || operation == fake.Resume; (err != nil) != stopped {
			t.Errorf("%s again: %v", operation, err)
		}
	}
	if calls := machine.Calls(); !slices.Contains(calls, fake.Call{Operation: fake.Fork, Workspace: "w"}) {
		t.Errorf("calls %v", calls)
	}
}

var optionalOperations = map[fake.Operation]bool{
	fake.Snapshot: true, fake.Snapshots: true, fake.Restore: true, fake.RemoveSnapshot: true,
	fake.Fork: true, fake.Pause: true, fake.Resume: true, fake.Resize: true,
}

func TestForkAndRestoreHalfway(t *testing.T) {
	machine, p := setUp(t, idle)
	create(t, p, providers.Spec{Workspace: "w", Resources: providers.Resources{CPUs: 2, PIDs: 7}})
	cause := errors.New("cause")
	machine.FailForkHalfway(cause)
	if _, err := p.Fork(t.Context(), "w", providers.Spec{Workspace: "v"}); !errors.Is(err, cause) {
		t.Error(err)
	}
	if i, err := p.Inspect(t.Context(), "v"); err != nil || i.State != providers.StateBroken {
		t.Errorf("%+v, %v", i, err)
	}
	if err := p.Destroy(t.Context(), "v", true); err != nil {
		t.Error(err)
	}
	if _, err := p.Fork(t.Context(), "w", providers.Spec{Workspace: "v", Resources: providers.Resources{CPUs: 3}}); err != nil {
		t.Fatal(err)
	}
	if spec, there := machine.Spec("v"); !there || spec.Resources.CPUs != 3 || spec.Resources.PIDs != 7 {
		t.Errorf("%+v, %v", spec, there)
	}
	if _, there := machine.Spec("absent"); there {
		t.Error("a spec of nothing")
	}
	if _, err := p.Snapshot(t.Context(), "w", "one"); err != nil {
		t.Fatal(err)
	}
	machine.FailRestoreHalfway(cause)
	if err := p.Restore(t.Context(), "w", "one"); !errors.Is(err, cause) {
		t.Error(err)
	}
	if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateBroken {
		t.Errorf("%+v, %v", i, err)
	}
	if err := p.Restore(t.Context(), "w", "one"); err != nil {
		t.Error(err)
	}
	if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateStopped {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestMemoryIsAnnouncedAndStartsAnew(t *testing.T) {
	machine, p := setUp(t, idle)
	machine.SetCapabilities(providers.CapabilitySnapshot, providers.CapabilitySnapshotMemory, providers.CapabilityFork, providers.CapabilityForkMemory)
	create(t, p, providers.Spec{Workspace: "w"})
	if err := p.Start(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if s, err := p.Snapshot(t.Context(), "w", "one"); err != nil || !s.Memory {
		t.Errorf("%+v, %v", s, err)
	}
	if made, err := p.Fork(t.Context(), "w", providers.Spec{Workspace: "v"}); err != nil || made.State != providers.StateRunning {
		t.Errorf("%+v, %v", made, err)
	}
	if err := p.Stop(t.Context(), "w", time.Second); err != nil {
		t.Fatal(err)
	}
	if err := p.Restore(t.Context(), "w", "one"); err != nil {
		t.Fatal(err)
	}
	if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateRunning {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestPausedLinkCarriesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machine, p := setUp(t, func(ctx context.Context, home fake.Home) {
			conn, err := home.Dial(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				<-ctx.Done()
				_ = conn.Close()
			}()
			for word := make([]byte, 1); ; {
				if _, err := conn.Read(word); err != nil {
					return
				}
				if _, err := conn.Write(word); err != nil {
					return
				}
			}
		})
		var halted []bool
		machine.SetFreezer(func(_ fake.Home, halt bool) { halted = append(halted, halt) })
		create(t, p, providers.Spec{Workspace: "w"})
		if err := p.Start(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		conn, err := p.Connect(t.Context(), "w")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := p.Pause(t.Context(), "w"); err != nil {
				t.Fatal(err)
			}
		}
		if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StatePaused {
			t.Errorf("%+v, %v", i, err)
		}
		if _, err := conn.Write([]byte("a")); err != nil {
			t.Error(err) // the read that was under way takes it
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a paused guest answered: %v", err)
		}
		if err := p.Start(t.Context(), "w"); err != nil { // resumes
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Errorf("after resume: %v", err)
		}
		if !slices.Equal(halted, []bool{true, false}) {
			t.Errorf("halted %v", halted)
		}
		if err := p.Pause(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(t.Context(), "w", time.Minute); err != nil {
			t.Error(err)
		}
		if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateStopped {
			t.Errorf("%+v, %v", i, err)
		}
	})
}

func TestResizeAtTheNextStart(t *testing.T) {
	machine, p := setUp(t, idle)
	machine.SetCapabilities(providers.CapabilityResize, providers.CapabilityLimitDisk)
	create(t, p, providers.Spec{Workspace: "w", Resources: providers.Resources{DiskBytes: 5, PIDs: 3}})
	if _, err := p.Resize(t.Context(), "w", providers.Resources{DiskBytes: 4}); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	if _, err := p.Resize(t.Context(), "w", providers.Resources{CPUs: -1}); !errors.Is(err, providers.ErrInvalid) {
		t.Error(err)
	}
	machine.SetResizeNote("cpus change at the next start")
	if err := p.Start(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []providers.Resources{{CPUs: 4}, {MemoryBytes: 9}} {
		if note, err := p.Resize(t.Context(), "w", r); err != nil || note == "" {
			t.Errorf("%q, %v", note, err)
		}
	}
	if spec, _ := machine.Spec("w"); spec.Resources.CPUs != 0 {
		t.Errorf("%+v", spec.Resources)
	}
	if err := p.Stop(t.Context(), "w", time.Second); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if spec, _ := machine.Spec("w"); spec.Resources != (providers.Resources{CPUs: 4, MemoryBytes: 9, DiskBytes: 5, PIDs: 3}) {
		t.Errorf("%+v", spec.Resources)
	}
}

func TestConsoleAndBoot(t *testing.T) {
	machine, p := setUp(t, idle)
	machine.SetBoot(time.Minute)
	if made := create(t, p, providers.Spec{Workspace: "w"}); made.Boot != time.Minute {
		t.Errorf("%+v", made)
	}
	machine.SetConsole("w", "no init found")
	if got := p.Console(t.Context(), "w"); got != "no init found" {
		t.Errorf("console %q", got)
	}
	other := fake.New(fake.Options{ServerID: "other", Machine: machine})
	if got := other.Console(t.Context(), "w"); got != "" {
		t.Errorf("console of another server's %q", got)
	}
}

func TestSnapshotThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	machine := fake.NewMachine(dir, idle)
	t.Cleanup(machine.Close)
	p := fake.New(fake.Options{ServerID: "s", Machine: machine})
	create(t, p, providers.Spec{Workspace: "w"})
	if _, err := p.Snapshot(t.Context(), "w", "one"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".snapshots")); err != nil {
		t.Fatal(err)
	}
	if err := p.Restore(t.Context(), "w", "one"); err == nil {
		t.Error("restored from nothing")
	}
	if i, err := p.Inspect(t.Context(), "w"); err != nil || i.State != providers.StateBroken {
		t.Errorf("%+v, %v", i, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".snapshots"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Snapshot(t.Context(), "w", "two"); err == nil {
		t.Error("kept a snapshot in a file")
	}
	if err := os.RemoveAll(filepath.Join(dir, "w")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Fork(t.Context(), "w", providers.Spec{Workspace: "v"}); err == nil {
		t.Error("forked nothing")
	}
	if all, err := p.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}

// saved is an archive with these files.
func saved(t *testing.T, files map[string]string) *bytes.Buffer {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &archive
}

func TestImages(t *testing.T) {
	machine, p := setUp(t, idle)
	images, ctx := machine.Images(), t.Context()
	machine.SetImages("base", "other")
	if _, err := images.Pull(ctx, "absent", nil); !errors.Is(err, providers.ErrImage) {
		t.Error(err)
	}
	var said []string
	first, err := images.Pull(ctx, "base", func(line string) { said = append(said, line) })
	if err != nil || first.Digest == "" || len(said) == 0 {
		t.Fatalf("%+v, %v, %q", first, err, said)
	}
	made := create(t, p, providers.Spec{Workspace: "w", Image: "base"})
	if made.Digest != first.Digest {
		t.Errorf("%+v", made)
	}
	machine.MoveTag("base")
	moved, err := images.Pull(ctx, "base", nil)
	if err != nil || moved.Digest == first.Digest || moved.Used != 0 {
		t.Errorf("%+v, %v", moved, err)
	}
	if again := create(t, p, providers.Spec{Workspace: "v", Image: "base", Digest: first.Digest}); again.Digest != first.Digest {
		t.Errorf("%+v", again)
	}
	if _, err := images.Pull(ctx, "other", nil); err != nil {
		t.Fatal(err)
	}
	create(t, p, providers.Spec{Workspace: "u", Image: "other"})
	if _, err := p.Snapshot(ctx, "u", "one"); err != nil {
		t.Fatal(err)
	}
	if err := p.Destroy(ctx, "u", false); err != nil {
		t.Fatal(err)
	}
	if gone, err := images.Prune(ctx); err != nil || len(gone) != 1 || gone[0].Ref != "base" {
		t.Errorf("%+v, %v", gone, err)
	}
	imported, err := images.Import(ctx, "", saved(t, map[string]string{"manifest.json": `[{"Config":"c","RepoTags":["saved:1"]}]`}))
	if err != nil || imported.Ref != "saved:1" || imported.Digest == "" {
		t.Errorf("%+v, %v", imported, err)
	}
	layout := `{"manifests":[{"digest":"sha256:abc","annotations":{"org.opencontainers.image.ref.name":"laid:1"}}]}`
	imported, err = images.Import(ctx, "named:2", saved(t, map[string]string{"./index.json": layout}))
	if err != nil || imported.Ref != "named:2" || imported.Digest != "sha256:abc" {
		t.Errorf("%+v, %v", imported, err)
	}
	create(t, p, providers.Spec{Workspace: "x", Image: "named:2"})
	all, err := images.List(ctx)
	if err != nil || len(all) != 3 || all[0].Ref != "named:2" || all[0].Used != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	for what, c := range map[string]struct {
		ref     string
		archive *bytes.Buffer
		kind    error
	}{
		"not a tar":  {"a", bytes.NewBufferString(strings.Repeat("no tar ", 200)), providers.ErrImage},
		"no image":   {"a", saved(t, map[string]string{"etc/passwd": ""}), providers.ErrImage},
		"bad name":   {"-flag", saved(t, map[string]string{"index.json": layout}), providers.ErrInvalid},
		"without it": {"", saved(t, map[string]string{"index.json": `{"manifests":[{"digest":"sha256:abc"}]}`}), providers.ErrInvalid},
	} {
		if _, err := images.Import(ctx, c.ref, c.archive); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
	cause := errors.New("cause")
	for _, operation := range []fake.Operation{fake.ListImages, fake.PullImage, fake.ImportImage, fake.PruneImages} {
		machine.Fail(operation, cause)
	}
	_, listed := images.List(ctx)
	_, pulled := images.Pull(ctx, "base", nil)
	_, taken := images.Import(ctx, "a", nil)
	_, pruned := images.Prune(ctx)
	for what, err := range map[string]error{"list": listed, "pull": pulled, "import": taken, "prune": pruned} {
		if !errors.Is(err, cause) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if images.Name() != "fake" {
		t.Error(images.Name())
	}
}

func TestImagesContract(t *testing.T) {
	machine, p := setUp(t, idle)
	published := []string{}
	providertest.RunImages(t, providertest.ImagesHarness{
		New: func(*testing.T) providers.Images { return machine.Images() },
		Use: func(t *testing.T, image providers.Image) (release func()) {
			workspace := strings.ToLower(rand.Text()[:12])
			create(t, p, providers.Spec{Workspace: workspace, Image: image.Ref})
			return func() {
				if err := p.Destroy(context.WithoutCancel(t.Context()), workspace, true); err != nil {
					t.Error(err)
				}
			}
		},
		Publish: func(_ *testing.T, ref string) {
			published = append(published, ref)
			machine.SetImages(published...)
			machine.MoveTag(ref)
		},
	})
}
