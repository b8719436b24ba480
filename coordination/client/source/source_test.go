package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vendetta-dev/vendetta/coordination/api"
)

// userGit runs git as the user would, with an identity and no configuration of this machine.
func userGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Env = append(gitEnv(os.Environ()),
		"HOME="+t.TempDir(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// repositoryOnDisk has two commits, a second branch, a tag, an origin with a
// password, and every kind of uncommitted change.
func repositoryOnDisk(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "project")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	userGit(t, dir, "init", "-q", "-b", "main")
	write(t, dir, "kept.txt", "kept\n")
	write(t, dir, "changed.txt", "old\n")
	write(t, dir, "deleted.txt", "gone\n")
	write(t, dir, "sub/run.sh", "#!/bin/sh\n")
	write(t, dir, ".gitignore", "*.log\n")
	if err := errors.Join(os.Chmod(filepath.Join(dir, "sub/run.sh"), 0o755), os.Symlink("kept.txt", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	userGit(t, dir, "add", ".")
	userGit(t, dir, "commit", "-qm", "one")
	userGit(t, dir, "branch", "other")
	userGit(t, dir, "tag", "v1")
	write(t, dir, "kept.txt", "kept more\n")
	userGit(t, dir, "commit", "-qam", "two")
	userGit(t, dir, "remote", "add", "origin", "https://user:secret@example.com/team/project.git?token=secret")
	userGit(t, dir, "update-ref", "refs/remotes/origin/main", "HEAD~1")
	userGit(t, dir, "config", "branch.main.merge", "refs/heads/main")

	write(t, dir, "changed.txt", "new\n")
	write(t, dir, "staged.txt", "staged\n")
	userGit(t, dir, "add", "staged.txt")
	write(t, dir, "new dir/ünträcked\n.txt", "untracked\n")
	write(t, dir, "noise.log", "ignored\n")
	if err := os.Remove(filepath.Join(dir, "deleted.txt")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// unpacked packs dir and unpacks it with the system's tar, as a guest would.
func unpacked(t *testing.T, dir string, clean bool) (string, *Archive) {
	t.Helper()
	a, err := Pack(t.Context(), dir, clean)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	var buf bytes.Buffer
	if err := a.WriteTar(t.Context(), &buf); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	cmd := exec.Command("tar", "-x", "--no-same-owner", "-C", out)
	cmd.Stdin = &buf
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, said)
	}
	return out, a
}

func TestPackBringsHistoryAndUncommittedFiles(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	out, a := unpacked(t, dir, false)

	if got, want := userGit(t, out, "status", "--porcelain", "-z"), " M changed.txt\x00 D deleted.txt\x00?? new dir/\x00?? staged.txt\x00"; got != want {
		t.Errorf("status in the workspace:\n got %q\nwant %q", got, want)
	}
	if got := userGit(t, out, "log", "--format=%s", "--all"); got != "two\none\n" {
		t.Errorf("log = %q", got)
	}
	refs := userGit(t, out, "for-each-ref", "--format=%(refname)")
	if want := "refs/heads/main\nrefs/heads/other\nrefs/remotes/origin/main\nrefs/tags/v1\n"; refs != want {
		t.Errorf("refs = %q, want %q", refs, want)
	}
	if got := userGit(t, out, "remote", "get-url", "origin"); got != "https://example.com/team/project.git\n" {
		t.Errorf("origin = %q", got)
	}
	if got := userGit(t, out, "rev-parse", "--abbrev-ref", "main@{upstream}"); got != "origin/main\n" {
		t.Errorf("upstream = %q", got)
	}
	userGit(t, out, "fsck", "--strict")
	for _, name := range []string{".git/objects/info/alternates", ".git/hooks", "noise.log", "deleted.txt", ".git/FETCH_HEAD"} {
		if _, err := os.Lstat(filepath.Join(out, name)); err == nil {
			t.Errorf("%s was brought", name)
		}
	}
	if target, err := os.Readlink(filepath.Join(out, "link")); err != nil || target != "kept.txt" {
		t.Errorf("link: %q, %v", target, err)
	}
	if info, err := os.Stat(filepath.Join(out, "sub/run.sh")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("run.sh: %v, %v", info, err)
	}
	head := strings.TrimSpace(userGit(t, dir, "rev-parse", "HEAD"))
	if s := a.Source; s.GetCommit() != head || s.GetBranch() != "main" || !s.GetDirty() || s.GetPath() != a.repo.dir {
		t.Errorf("source = %v", s)
	}
	config, err := os.ReadFile(filepath.Join(out, ".git/config"))
	if err != nil || bytes.Contains(config, []byte("secret")) {
		t.Errorf("config holds the secret: %s %v", config, err)
	}
}

func TestPackCleanBringsHead(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	// Also from a folder below the top.
	out, a := unpacked(t, filepath.Join(dir, "sub"), true)
	if got := userGit(t, out, "status", "--porcelain"); got != "" {
		t.Errorf("status = %q", got)
	}
	if a.Source.GetDirty() {
		t.Error("dirty although clean was asked for")
	}
	if target, err := os.Readlink(filepath.Join(out, "link")); err != nil || target != "kept.txt" {
		t.Errorf("link: %q, %v", target, err)
	}
}

func TestPackDetachedHead(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	userGit(t, dir, "checkout", "-q", "-f", "--detach")
	userGit(t, dir, "commit", "-q", "--allow-empty", "-m", "on no branch")
	out, a := unpacked(t, dir, false)
	if got := userGit(t, out, "log", "-1", "--format=%s"); got != "on no branch\n" {
		t.Errorf("log = %q", got)
	}
	if a.Source.GetBranch() != "" || userGit(t, out, "rev-parse", "--abbrev-ref", "HEAD") != "HEAD\n" {
		t.Errorf("HEAD is on a branch: %v", a.Source)
	}
}

func TestPackBeforeTheFirstCommit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	userGit(t, dir, "init", "-q", "-b", "trunk")
	write(t, dir, "a.txt", "a\n")
	for _, clean := range []bool{false, true} {
		out, a := unpacked(t, dir, clean)
		if got := userGit(t, out, "symbolic-ref", "HEAD"); got != "refs/heads/trunk\n" {
			t.Errorf("HEAD = %q", got)
		}
		_, err := os.Stat(filepath.Join(out, "a.txt"))
		if brought := err == nil; brought == clean || a.Source.GetDirty() == clean || a.Source.GetCommit() != "" {
			t.Errorf("clean %v: brought %v, source %v", clean, brought, a.Source)
		}
	}
}

func TestPackLinkedWorktreeShallowAndSparse(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	tree := filepath.Join(t.TempDir(), "tree")
	userGit(t, dir, "worktree", "add", "-q", tree, "other")
	out, a := unpacked(t, tree, false)
	if got := userGit(t, out, "status", "--porcelain"); got != "" || a.Source.GetBranch() != "other" {
		t.Errorf("linked worktree: status %q, source %v", got, a.Source)
	}

	shallow := filepath.Join(t.TempDir(), "shallow")
	userGit(t, t.TempDir(), "clone", "-q", "--depth=1", "file://"+dir, shallow)
	out, _ = unpacked(t, shallow, false)
	if got := userGit(t, out, "log", "--format=%s") + userGit(t, out, "status", "--porcelain"); got != "two\n" {
		t.Errorf("shallow: %q", got)
	}

	userGit(t, shallow, "sparse-checkout", "set", "--no-cone", "/kept.txt")
	if _, err := os.Stat(filepath.Join(shallow, "changed.txt")); err == nil {
		t.Fatal("the checkout is not sparse")
	}
	out, _ = unpacked(t, shallow, false)
	if got := userGit(t, out, "status", "--porcelain"); got != "" {
		t.Errorf("sparse: files read as deleted: %q", got)
	}
}

func TestPackSubmodulesAndNestedRepositories(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	inner := repositoryOnDisk(t)
	userGit(t, dir, "submodule", "--quiet", "add", inner, "lib")
	userGit(t, dir, "commit", "-qam", "three")
	userGit(t, dir, "clone", "-q", inner, filepath.Join(dir, "nested"))
	for _, clean := range []bool{false, true} {
		out, a := unpacked(t, dir, clean)
		notes := strings.Join(a.Notes, "\n")
		if !strings.Contains(notes, "submodule lib ") || strings.Contains(notes, "nested") == clean {
			t.Errorf("clean %v: notes = %q", clean, notes)
		}
		if files, err := os.ReadDir(filepath.Join(out, "lib")); err != nil || len(files) != 0 {
			t.Errorf("lib: %v %v", files, err)
		}
		if got := userGit(t, out, "status", "--porcelain", "lib", "nested"); got != "" {
			t.Errorf("status = %q", got)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "lib")); err != nil {
		t.Fatal(err)
	}
	out, _ := unpacked(t, dir, false)
	if _, err := os.Stat(filepath.Join(out, "lib")); err == nil {
		t.Error("a submodule that was removed came back")
	}
}

// A folder that became a symlink must not leak what lies behind it.
func TestPackNeverReadsThroughASymlink(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	outside := t.TempDir()
	write(t, outside, "run.sh", "SECRET\n")
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "sub")), os.Symlink(outside, filepath.Join(dir, "sub"))); err != nil {
		t.Fatal(err)
	}
	a, err := Pack(t.Context(), dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var buf bytes.Buffer
	if err := a.WriteTar(t.Context(), &buf); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&buf); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(h.Name, "sub") {
			names = append(names, h.Name)
		}
		if data, _ := io.ReadAll(r); bytes.Contains(data, []byte("SECRET")) {
			t.Errorf("%s holds a file from outside the repository", h.Name)
		}
	}
	if !slices.Equal(names, []string{"sub"}) {
		t.Errorf("entries = %q", names)
	}
}

// Hooks and an inherited environment must not decide what git does.
func TestPackRunsNoHooksAndIgnoresGitVariables(t *testing.T) {
	dir := repositoryOnDisk(t)
	marker := filepath.Join(t.TempDir(), "ran")
	for _, hook := range []string{"post-checkout", "reference-transaction", "post-merge", "fsmonitor"} {
		write(t, dir, ".git/hooks/"+hook, "#!/bin/sh\ntouch "+marker+"\n")
		if err := os.Chmod(filepath.Join(dir, ".git/hooks", hook), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	userGit(t, dir, "config", "core.hooksPath", filepath.Join(dir, ".git/hooks"))
	userGit(t, dir, "config", "core.fsmonitor", filepath.Join(dir, ".git/hooks/fsmonitor"))
	_ = os.Remove(marker)
	t.Setenv("GIT_DIR", "/nowhere")
	t.Setenv("GIT_INDEX_FILE", "/nowhere/index")
	out, _ := unpacked(t, dir, false)
	if _, err := os.Stat(marker); err == nil {
		t.Error("a hook ran")
	}
	if got := userGit(t, out, "log", "-1", "--format=%s"); got != "two\n" {
		t.Errorf("log = %q", got)
	}
}

func TestPackErrors(t *testing.T) {
	t.Parallel()
	plain := t.TempDir()
	bare := t.TempDir()
	userGit(t, bare, "init", "-q", "--bare")
	odd := t.TempDir()
	userGit(t, odd, "init", "-q")
	write(t, odd, ".git/HEAD", strings.Repeat("0", 39)+"1\n")
	broken := repositoryOnDisk(t)
	write(t, broken, ".git/index", "not an index")
	for name, c := range map[string]struct{ dir, want string }{
		"no repository": {plain, "is not in a git repository"},
		"bare":          {bare, "has no work tree"},
		"no folder":     {filepath.Join(plain, "none"), "is not a folder on this machine"},
		"no commit":     {odd, "names neither a branch nor a commit"},
		"broken index":  {broken, "git ls-files: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := Pack(t.Context(), c.dir, false)
			if err == nil {
				t.Fatalf("packed %v", a.Source)
			}
			if e := api.From(err); !strings.Contains(e.Message, c.want) || e.Code == api.Internal {
				t.Errorf("error = %s %q, want %q", e.Code, e.Message, c.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Pack(ctx, repositoryOnDisk(t), false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPackWithoutGit(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Pack(t.Context(), t.TempDir(), false)
	if e := api.From(err); e == nil || e.Code != api.FailedPrecondition || !strings.Contains(e.Next, "install git") {
		t.Errorf("error = %v", err)
	}
}

func TestWriteTarSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := repositoryOnDisk(t)
	a, err := Pack(t.Context(), dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.WriteTar(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	full := errors.New("no room")
	if err := a.WriteTar(t.Context(), failing{full}); !errors.Is(err, full) {
		t.Errorf("writer: %v", err)
	}
	a.files[0].object = strings.Repeat("1", 40)
	if err := a.WriteTar(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("missing object: %v", err)
	}
	a.files[0].path = "../out"
	if err := a.WriteTar(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Errorf("path: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteTar(t.Context(), io.Discard); err == nil {
		t.Error("the repository went away unnoticed")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteTar(t.Context(), io.Discard); err == nil {
		t.Error("the clone went away unnoticed")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestCleanOrigin(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"https://u:p@example.com/a.git?private_token=x#y": "https://example.com/a.git",
		"https://token@example.com/a.git":                 "https://example.com/a.git",
		"ssh://git:p@example.com:22/a.git":                "ssh://git@example.com:22/a.git",
		"ssh://example.com/a.git":                         "ssh://example.com/a.git",
		"git@example.com:team/a.git":                      "git@example.com:team/a.git",
		"/home/me/a.git":                                  "/home/me/a.git",
		"ext::sh -c secret":                               "",
		"https://u:p%zz@example.com/":                     "",
	} {
		if got := cleanOrigin(address); got != want {
			t.Errorf("cleanOrigin(%q) = %q, want %q", address, got, want)
		}
	}
}

func TestPermissionsWithoutAFileSystemThatKeepsThem(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode  os.FileMode
		index int64
		kept  bool
		want  os.FileMode
	}{{0o640, modeExecutable, true, 0o640}, {0o666, modeExecutable, false, 0o755}, {0o666, modeRegular, false, 0o644}} {
		if got := permissions(c.mode, c.index, c.kept); got != c.want {
			t.Errorf("permissions(%v, %o, %v) = %v", c.mode, c.index, c.kept, got)
		}
	}
}
